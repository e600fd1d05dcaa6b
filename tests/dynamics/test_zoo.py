"""Every family of weight dynamics with a flow: what it computes, by numpy and scipy; how it starts; what it costs; how it trains."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import pytest
import scipy.interpolate
import scipy.linalg
import torch
from torch import Tensor, nn

import anodev2
from anodev2 import (
    BSpline,
    CheckpointAdjoint,
    CoupledODEBlock,
    DeltaRule,
    DepthGroups,
    Dynamics,
    FieldDynamics,
    Galerkin,
    GradientFlow,
    Hebb,
    Hyper,
    LowRank,
    NeuralDynamics,
    ODEBlock,
    Oja,
    ReactionDiffusionAdvection,
    Scale,
    SkewFlow,
    Static,
    Templates,
    diagnose,
    odeint,
    unroll,
)
from anodev2.gradients.adjoint import as_adjoint
from anodev2.pde import Advection, Diffusion, Dirichlet, Equation, Grid1D, Wave
from problems import Convolutions, image
from sampled import rows

SHAPES = {"a.weight": (4, 3, 3, 3), "b.weight": (5, 4), "c.weight": (2, 1, 5)}
SIZES = [math.prod(shape) for shape in SHAPES.values()]
OUT = [shape[0] for shape in SHAPES.values()]
TIMES = [0.0, 0.1, 0.25, 0.5, 0.6, 1.0]


def mixed(*args: float) -> Dynamics:
    return ReactionDiffusionAdvection(*args, mix=True)


# a family whose weights do not jump, and how many parameters it has beside theta_0 for the weights above
SMOOTH: dict[str, tuple[Callable[[], Dynamics], int]] = {
    "LowRank": (lambda: LowRank(2), 2 * sum(out + size // out for out, size in zip(OUT, SIZES, strict=True))),
    "LowRank fourier": (
        lambda: LowRank(1, basis="fourier", size=3),
        2 * sum(out + size // out for out, size in zip(OUT, SIZES, strict=True)),
    ),
    "Templates": (lambda: Templates(2, 3, basis="chebyshev"), 2 * sum(SIZES) + 3 * 2 * 2),
    "Hyper": (lambda: Hyper(3, frequencies=2), 3 * sum(SIZES) + 3 * 5),
    "SkewFlow": (SkewFlow, 6 + 10 + 1),
    "BSpline": (lambda: BSpline(5, 3), 4 * sum(SIZES)),
    "Scale": (lambda: Scale(3, basis="chebyshev"), 2 * sum(OUT)),
    "Galerkin": (lambda: Galerkin("chebyshev", 3), 2 * sum(SIZES)),
}
JUMPING: dict[str, tuple[Callable[[], Dynamics], int]] = {
    "LowRank constant": (
        lambda: LowRank(1, basis="constant", size=4),
        3 * sum(out + size // out for out, size in zip(OUT, SIZES, strict=True)),
    ),
    "Templates constant": (lambda: Templates(2, 5), 2 * sum(SIZES) + 3 * 2 * 4),
    "Scale constant": (lambda: Scale(5), 4 * sum(OUT)),
    "BSpline 1": (lambda: BSpline(3, 1), 2 * sum(SIZES)),  # steps of equal length would have to end at its knots
}
KERNELS: dict[str, tuple[Callable[[], Dynamics], int]] = {  # of kernels alone
    "reaction-diffusion-advection": (lambda: ReactionDiffusionAdvection(0.0), 4 + 3),
    "mix": (lambda: mixed(0.0), (4 + 4) + (3 + 1)),  # of a: both channel axes are long enough; of c: out has 2, in 1 channel
    "per channel": (lambda: ReactionDiffusionAdvection(0.0, per="channel"), 4 * 4 + 2 * 3),
}


def along_inputs(equation: Callable[[Grid1D, nn.Parameter], Equation], **grid: Any) -> Dynamics:
    """Kernels of three input channels as fields along these, which stand still at first."""
    return FieldDynamics(equation(Grid1D(3, **grid), nn.Parameter(torch.zeros(()))), "o i h w -> (o h w) i")


FIELDS: dict[str, tuple[Callable[[], Dynamics], int]] = {  # of the weight a alone
    "diffusion": (lambda: along_inputs(Diffusion), 1),
    "diffusion between walls": (lambda: along_inputs(Diffusion, boundary=Dirichlet(0.0)), 1),
    "advection": (lambda: along_inputs(Advection), 1),
    "wave": (lambda: along_inputs(Wave), 1 + SIZES[0]),
}


def halves(family: str) -> DepthGroups:
    dynamics = (SMOOTH | JUMPING | KERNELS | FIELDS)[family][0]()
    if hasattr(dynamics, "length"):
        vars(dynamics)["length"] = 0.5
    return DepthGroups(dynamics)


GROUPED: dict[str, tuple[Callable[[], Dynamics], int]] = {  # slopes jump where a group ends
    "three groups": (lambda: DepthGroups(Galerkin("chebyshev", 2, length=0.55), (0.2, 0.45)), 3 * sum(SIZES)),
    **{f"halves of {name}": (partial(halves, name), 2 * count) for name, (_, count) in (SMOOTH | KERNELS | JUMPING | FIELDS).items()},
}
FAMILIES = SMOOTH | JUMPING | KERNELS | FIELDS | GROUPED
QUICK = [*SMOOTH, *JUMPING, *KERNELS, "advection", "wave", "three groups", "halves of SkewFlow", "halves of mix"]


def weights(dynamics: Dynamics, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    made = {name: torch.randn(shape, dtype=dtype) for name, shape in SHAPES.items()}
    return {name: weight for name, weight in made.items() if dynamics.accepts(name, weight)}


def moving(family: str, dtype: torch.dtype = torch.float64, size: float = 0.3) -> tuple[Dynamics, dict[str, Tensor]]:
    """With parameters that are not zero."""
    dynamics = FAMILIES[family][0]().to(dtype)
    theta = weights(dynamics, dtype)
    dynamics.bind(theta)
    for name, parameter in dynamics.named_parameters():
        parameter.data.normal_(std=size)
        if "tau" in name or "diffusivity" in name:
            parameter.data.abs_()
    return dynamics, theta


def flow(dynamics: Dynamics, theta: dict[str, Tensor], times: list[float]) -> dict[str, Tensor]:
    found = dynamics.flow(theta, times)
    assert found is not None
    return found


def test_every_public_dynamics_is_in_these_sweeps() -> None:
    kinds = {type(FAMILIES[family][0]()) for family in QUICK}
    classes = [kind for kind in map(vars(anodev2).get, anodev2.__all__) if inspect.isclass(kind) and not inspect.isabstract(kind)]
    rules = {Hebb, Oja, DeltaRule, GradientFlow}  # of each sample, without flow: test_learning_rules.py
    rest = {Static, NeuralDynamics}  # standing still, and a user's own: test_dynamics.py
    assert {kind for kind in classes if issubclass(kind, Dynamics)} - kinds == rules | rest


@pytest.mark.parametrize("family", [*SMOOTH, *KERNELS, *FIELDS])
def test_the_flow_equals_fine_stepping(family: str) -> None:
    dynamics, theta = moving(family)
    with torch.no_grad():
        stepped = dynamics.weights(odeint(dynamics, dynamics.start(theta), TIMES, steps=5, method="dopri8"))
        path = flow(dynamics, theta, TIMES)
    for name in theta:
        assert (path[name][1:] - theta[name]).abs().max() > 1e-3
        torch.testing.assert_close(path[name], stepped[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", rows([n for n in GROUPED if n.removeprefix("halves of ") not in JUMPING], quick=QUICK[-3:]))
def test_a_group_goes_on_where_the_one_before_ends(family: str) -> None:
    """Against each group stepped by itself, from the end of the one before."""
    dynamics, theta = moving(family)
    assert isinstance(dynamics, DepthGroups)
    ends = [*dynamics.starts[1:], 1.0]
    times = [start + part * (end - start) for start, end in zip(dynamics.starts, ends, strict=True) for part in (0.0, 0.4, 0.9)]
    path = flow(dynamics, theta, [*reversed(times), 1.0])
    with torch.no_grad():
        for place, (start, end) in enumerate(zip(dynamics.starts, ends, strict=True)):
            asked = [part * (end - start) for part in (0.0, 0.4, 0.9, 1.0)]
            group: Any = dynamics.groups[place]
            stepped = group.weights(odeint(group, group.start(theta), asked, steps=10, method="dopri8"))
            for name in theta:
                ours = path[name][: len(times)].flip(0)[3 * place : 3 * place + 3]
                torch.testing.assert_close(ours, stepped[name][:3], rtol=0, atol=1e-10)
                if family != "halves of wave":  # whose slope is one of velocities too, which begin anew with each group
                    slope = dynamics(start, {name: w[0] for name, w in stepped.items()})[name]
                    torch.testing.assert_close(slope, group(0.0, {name: w[0] for name, w in stepped.items()})[name])
            theta = {name: values[-1] for name, values in stepped.items()}
    for name in theta:
        torch.testing.assert_close(path[name][-1], theta[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", rows(FAMILIES, quick=QUICK))
def test_fresh_dynamics_share_the_weights_to_the_bit_and_have_as_many_parameters_as_they_say(family: str, dtype: torch.dtype) -> None:
    make, count = FAMILIES[family]
    dynamics = make().to(dtype)
    theta = weights(dynamics, dtype)
    dynamics.bind(theta)
    assert sum(p.numel() for p in dynamics.parameters()) == count and all(p.dtype == dtype for p in dynamics.parameters())
    for name, path in flow(dynamics, theta, TIMES).items():
        assert all(torch.equal(weight, theta[name]) for weight in path)
    moved, theta = moving(family, dtype)
    for name, path in flow(moved, theta, TIMES).items():
        assert path.dtype == dtype and torch.equal(path[0], theta[name]) and not torch.equal(path[4], theta[name])
    if family.removeprefix("halves of ") not in FIELDS:  # an equation may move weights of several blocks
        with pytest.raises(ValueError, match=r"this \w+ already evolves another block's weights"):
            moved.bind(theta)


@pytest.mark.parametrize("family", rows(FAMILIES, quick=QUICK))
def test_a_fresh_block_is_the_ode_block_to_the_bit_and_trains(family: str) -> None:
    torch.manual_seed(0)
    f, z = Convolutions().eval(), image()
    block = CoupledODEBlock(f, FAMILIES[family][0](), steps=5, method="euler")
    out = block(z)
    assert torch.equal(out, ODEBlock(f, steps=5)(z))
    out.square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in block.dynamics.parameters())  # it can leave its start


def outcome(z: Tensor, block: Callable[..., Any], parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    z = z.clone().requires_grad_()
    out = block(z)
    return out, list(torch.autograd.grad(out.square().sum(), [z, *parameters]))


@pytest.mark.parametrize("family", rows(FAMILIES, quick=QUICK))
def test_blocks_are_differentiated_written_out_and_described(family: str) -> None:
    """Every adjoint against "direct"; unroll against the block; the weights told by weight_path against those of the block."""
    torch.manual_seed(0)
    block = CoupledODEBlock(Convolutions().eval(), FAMILIES[family][0](), steps=4, method="euler", adjoint="direct")
    for parameter in block.dynamics.parameters():
        parameter.data.normal_(std=0.1).abs_()
    z = image()
    expected, (slope, *slopes) = outcome(z, block, list(block.parameters()))
    for adjoint in ("checkpoint", CheckpointAdjoint(slots=2), CheckpointAdjoint(memory="1MB")):
        other = copy.deepcopy(block)
        other.adjoint = as_adjoint(adjoint)
        out, (own, *found) = outcome(z, other, list(other.parameters()))
        assert torch.equal(out, expected) and torch.equal(own, slope)
        for one, two in zip(found, slopes, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)
    assert torch.equal(block.unroll()(z), expected)
    path = diagnose.weight_path(block, [0.0, 0.4, 1.0])
    for name, weight in block.weights(0.4).items():
        torch.testing.assert_close(path.theta[name][1], weight.detach(), rtol=1e-14, atol=1e-14)
        assert (path.theta[name][1] - path.theta[name][0]).abs().max() > 1e-3


class Convolution(nn.Conv2d):
    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.tanh(super().forward(z))


class Row(nn.Module):
    """Images through a block of each family, every one of which gets the same."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict()
        for family in QUICK:
            block = CoupledODEBlock(Convolution(3, 3, 3, padding=1), FAMILIES[family][0](), steps=3, method="euler", adjoint="direct")
            for parameter in block.dynamics.parameters():
                parameter.data.normal_(std=0.1).abs_()
            self.blocks[family.replace(".", " ")] = block

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        return {name: block(z) for name, block in self.blocks.items()}


@pytest.mark.slow
def test_all_families_are_compiled_stacked_and_run_elsewhere() -> None:
    """In one program, which pays once for what each compiler and exporter takes to begin."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    z, row = image(torch.float32), Row()

    def slopes(call: Callable[[Tensor], dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        out = call(z)
        names, parameters = zip(*row.named_parameters(), strict=True)
        found = torch.autograd.grad(sum(values.square().sum() for values in out.values()), parameters)  # pyright: ignore
        return out, dict(zip(names, found, strict=True))

    (expected, gradients), (out, found) = slopes(row), slopes(torch.compile(row, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close([out, found], [expected, gradients], rtol=1e-5, atol=1e-5)
    expected = {name: values.detach() for name, values in expected.items()}
    moved = {name: 1.1 * p.detach() for name, p in row.named_parameters()}
    both = {name: torch.stack([p.detach(), moved[name]]) for name, p in row.named_parameters()}
    seeds = torch.func.vmap(lambda own: torch.func.functional_call(row, own, (z,)))(both)
    alone = torch.func.functional_call(row, moved, (z,))
    for name, values in seeds.items():
        torch.testing.assert_close(values, torch.stack([expected[name], alone[name].detach()]), rtol=1e-5, atol=1e-5)
    made = torch.onnx.export(torch.export.export(unroll(row), (z,)), dynamo=True, verbose=False)
    assert made is not None
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    ran = session.run(None, {session.get_inputs()[0].name: z.numpy()})
    torch.testing.assert_close(dict(zip(expected, map(torch.as_tensor, ran), strict=True)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", rows(FAMILIES, quick=QUICK))
def test_gradcheck_of_weights_and_parameters(family: str) -> None:
    dynamics, theta = moving(family)
    inside = 3 if family.removeprefix("halves of ") in FIELDS else 2
    small = {name: weight[:2, :inside].contiguous() for name, weight in theta.items()}
    dynamics = FAMILIES[family][0]().double()
    dynamics.bind(small)
    names = list(dict(dynamics.named_parameters()))

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.d = dynamics

        def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
            return tuple(flow(self.d, dict(zip(small, values, strict=True)), [0.0, 0.4, 1.0]).values())

    call = Call()

    def of(*values: Tensor) -> tuple[Tensor, ...]:
        own = {f"d.{name}": value for name, value in zip(names, values[len(small) :], strict=True)}
        return torch.func.functional_call(call, own, values[: len(small)])

    starts = [torch.randn_like(p).abs().mul_(0.3) for p in dynamics.parameters()]
    inputs = [value.detach().clone().requires_grad_() for value in (*small.values(), *starts)]
    assert torch.autograd.gradcheck(of, inputs, fast_mode=True)


def test_low_rank_and_templates_are_what_numpy_makes_of_their_factors() -> None:
    low, theta = moving("LowRank fourier")
    bank, _ = moving("Templates constant")
    for name, start in theta.items():
        key = name.replace(".", "/")
        left, right = (low.get_parameter(f"{side}.{key}").detach().numpy() for side in ("left", "right"))
        path = flow(low, theta, [0.3])[name][0].detach().numpy().reshape(start.shape[0], -1)
        terms = [(np.cos(2 * np.pi * 0.3) - 1) * left[0] @ right[0], np.sin(2 * np.pi * 0.3) * left[1] @ right[1]]
        np.testing.assert_allclose(path, start.numpy().reshape(start.shape[0], -1) + sum(terms), rtol=1e-12, atol=1e-12)
        templates, mixture = (bank.get_parameter(f"{part}.{key}").detach().numpy() for part in ("bank", "mixture"))
        for piece, time in enumerate([0.1, 0.3, 0.5, 0.7, 0.9]):
            expected = start.numpy() + (np.einsum("j,j...->...", mixture[piece - 1], templates) if piece else 0)
            np.testing.assert_allclose(flow(bank, theta, [time])[name][0].detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_hyper_is_one_small_network_for_all_weights() -> None:
    hyper, theta = moving("Hyper")
    inner, bias = (hyper.get_parameter(name).detach().numpy() for name in ("inner", "bias"))

    def network(s: float) -> np.ndarray:
        return np.tanh(inner @ [math.cos(math.pi * s), math.cos(2 * math.pi * s), math.sin(math.pi * s), math.sin(2 * math.pi * s)] + bias)

    for name, start in theta.items():
        layer = hyper.get_parameter(f"coefficients.{name.replace('.', '/')}").detach().numpy()
        expected = start.numpy() + np.tensordot(network(0.7) - network(0.0), layer, 1)
        np.testing.assert_allclose(flow(hyper, theta, [0.7])[name][0].detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_skew_flow_is_the_exponential_and_keeps_what_is_orthogonal() -> None:
    skew, theta = moving("SkewFlow", size=2.0)
    for name, start in theta.items():
        angles, out = skew.get_parameter(f"angles.{name.replace('.', '/')}").detach().numpy(), start.shape[0]
        generator = np.zeros((out, out))
        generator[np.tril_indices(out, -1)] = angles
        turn = scipy.linalg.expm(0.6 * (generator - generator.T))
        np.testing.assert_allclose(flow(skew, theta, [0.6])[name][0].detach().flatten(1), turn @ start.flatten(1).numpy(), atol=1e-12)
    columns = {"b.weight": torch.linalg.qr(theta["b.weight"])[0]}
    for weight in flow(skew, columns, [0.0, 1.0, 10.0])["b.weight"].detach():
        torch.testing.assert_close(weight.mT @ weight, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-13)
    assert not SkewFlow().accepts("w", torch.zeros(1, 4)) and not SkewFlow().accepts("w", torch.zeros(4))


@pytest.mark.parametrize("length", [1.0, -2.5])
@pytest.mark.parametrize(("size", "degree"), [(2, 1), (4, 1), (3, 2), (6, 2), (4, 3), (7, 3), (9, 4)])
def test_b_splines_are_those_of_scipy(size: int, degree: int, length: float) -> None:
    theta = {"w": torch.randn(3, 2, dtype=torch.float64)}
    dynamics = BSpline(size, degree, length=length)
    dynamics.bind(theta)
    dynamics.coefficients["w"].data.normal_()
    values = np.concatenate([np.zeros((1, 6)), dynamics.coefficients["w"].detach().numpy().reshape(size - 1, 6)])
    pieces = size - degree
    knots = np.concatenate([np.zeros(degree), np.linspace(0, 1, pieces + 1), np.ones(degree)])
    spline = scipy.interpolate.BSpline(knots, values, degree)
    s = np.array([0.0, 0.05, 0.2, 1 / 3, 0.5, 0.81, 0.999, 1.0])
    path = flow(dynamics, theta, list(s * length))["w"].detach().flatten(1)
    np.testing.assert_allclose(path.numpy(), theta["w"].flatten().numpy() + spline(s), rtol=1e-12, atol=1e-12)
    for place in (0.05, 0.21, 0.4, 0.81):
        slope = dynamics(place * length, theta)["w"].detach().flatten()
        np.testing.assert_allclose(slope, spline.derivative()(place) / length, rtol=1e-11, atol=1e-11)


def test_gains_are_exponentials_of_each_output_channel() -> None:
    scale, theta = moving("Scale constant")
    for name, start in theta.items():
        logs = scale.get_parameter(f"logarithms.{name.replace('.', '/')}").detach()
        for piece, time in enumerate([0.1, 0.3, 0.5, 0.7, 0.9]):
            gains = logs[piece - 1].exp() if piece else torch.ones(start.shape[0], dtype=torch.float64)
            expected = torch.stack([gain * row for gain, row in zip(gains, start, strict=True)])
            torch.testing.assert_close(flow(scale, theta, [time])[name][0], expected)


def test_channels_mix_by_the_symbol_of_each_axis() -> None:
    """Against the complex transform over all axes of a kernel at once."""
    dynamics, theta = moving("mix")
    assert isinstance(dynamics, ReactionDiffusionAdvection)
    start, (tau, velocity, rho) = theta["a.weight"], (c.detach() for c in dynamics.coefficients("a.weight"))
    symbol = torch.full(start.shape, float(rho), dtype=torch.complex128)
    across = [[dynamics.get_parameter(f"channels.{axis}.{what}.a/weight").item() for what in ("signed_tau", "upsilon")] for axis in (0, 1)]
    for axis, (t, v) in enumerate([*across, *((float(tau), float(v)) for v in velocity)]):
        k = 2 * math.pi * torch.fft.fftfreq(start.shape[axis], dtype=torch.float64)
        first = torch.where(torch.arange(start.shape[axis]) * 2 == start.shape[axis], 0.0, k)
        symbol = symbol + (-t * k**2 + 1j * v * first).view(-1, *[1] * (3 - axis))
    expected = torch.fft.ifftn(torch.exp(0.7 * symbol) * torch.fft.fftn(start))
    torch.testing.assert_close(flow(dynamics, theta, [0.7])["a.weight"][0], expected.real, rtol=1e-12, atol=1e-12)


def test_mixing_along_channels_shortens_the_stable_step() -> None:
    """The eigenvalues of the matrix of the slope, found by applying it, and Euler's limit for -12 along channels."""
    still, theta = ReactionDiffusionAdvection(0.0, mix=True), {"w": torch.randn(4, 6, 3, dtype=torch.float64)}
    still.bind(theta)
    for axis, tau in ((0, 1.0), (1, 0.5)):
        still.get_parameter(f"channels.{axis}.signed_tau.w").data.fill_(tau)
    (matrix,) = torch.autograd.functional.jacobian(lambda w: still(0.0, {"w": w})["w"].flatten(), (theta["w"],))
    smallest = torch.linalg.eigvals(matrix.flatten(1)).real.min().item()
    assert smallest == pytest.approx(-(1.5 * math.pi**2))
    assert still.max_stable_step("euler") == pytest.approx(2 / -smallest, rel=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRank(0), "rank=0"),
        (lambda: LowRank(1, basis="wavelet"), "basis='wavelet' must be one of"),
        (lambda: Templates(0, 3), "count=0"),
        (lambda: Templates(2, 1), "size=1 .*Static"),
        (lambda: Hyper(0), "width=0"),
        (lambda: Hyper(3, frequencies=0), "frequencies=0"),
        (lambda: Hyper(3, length=0), "length=0"),
        (lambda: BSpline(3, 3), r"size=3 must be at least degree \+ 1 = 4"),
        (lambda: BSpline(3, 0), "degree=0"),
        (lambda: Scale(4, basis="fourier"), "size=4 must be odd"),
        (lambda: DepthGroups(SkewFlow(), (0.5, 0.5)), r"ends must be increasing times above 0, .*got \(0.5, 0.5\)"),
        (lambda: DepthGroups(SkewFlow(), ()), "ends must be"),
        (lambda: DepthGroups(ReactionDiffusionAdvection(nonlinearity=torch.tanh)).flow({}, [0.1]), "no weights in closed form"),
        (lambda: ReactionDiffusionAdvection(per="channel", mix=True), "mix=True .*per='layer'"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("family", ["LowRank constant", "Templates constant", "Scale constant"])
def test_what_jumps_has_no_derivative_and_says_so(family: str) -> None:
    dynamics, theta = moving(family)
    with pytest.raises(ValueError, match=rf"{type(dynamics).__name__}\('constant'\) jumps"):
        dynamics(0.3, theta)
    with pytest.raises(ValueError, match=f"length=1.0 of this {type(dynamics).__name__} does not reach the time 1.5"):
        dynamics.flow(theta, [1.5])


def test_ends_of_groups_may_be_any_sequence_of_times() -> None:
    for ends in ((0.25, 0.5), [0.25, 0.5], torch.tensor([0.25, 0.5])):
        groups = DepthGroups(Galerkin("linear", 2), ends)
        assert groups.starts == (0.0, 0.25, 0.5) and len(groups.groups) == 3
    wrong: list[Any] = [0.5, torch.tensor(0.5), "half"]
    for ends in wrong:
        with pytest.raises(TypeError, match="ends must be a sequence of times"):
            DepthGroups(Galerkin("linear", 2), ends)
