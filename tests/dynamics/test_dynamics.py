from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.fftpack
import torch
from torch import Tensor, nn

from anodev2 import CoupledODEBlock, Dynamics, FieldDynamics, NeuralDynamics, ReactionDiffusionAdvection, Static, odeint
from sampled import rows

SHAPES = [(4, 3, 3, 3), (2, 3, 5, 3), (4, 2, 4, 4), (3, 2, 7), (2, 2, 2, 3, 5), (3, 1, 1, 3), (2, 1, 9, 8), (4, 3, 1, 1)]


def kernels(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"conv.weight": torch.randn(shape, dtype=dtype)}


def bound(theta: dict[str, Tensor], *args: Any, **options: Any) -> ReactionDiffusionAdvection:
    dynamics = ReactionDiffusionAdvection(*args, **options)
    dynamics.bind(theta)
    return dynamics


@pytest.mark.parametrize(("shape", "per"), rows(SHAPES, ["layer", "channel"], quick=2))
def test_closed_form_equals_fine_stepping(shape: tuple[int, ...], per: str) -> None:
    theta = kernels(shape)
    dynamics = bound(theta, 0.05, 0.3, -0.2, per=per)
    for parameter in dynamics.parameters():  # something different for each channel
        parameter.data *= 1 + torch.rand_like(parameter)
    path = dynamics.flow(theta, [0.0, 0.5, 1.0])
    assert path is not None
    stepped = odeint(dynamics, theta, [0.0, 0.5, 1.0], steps=8, method="dopri8")
    torch.testing.assert_close(path["conv.weight"], stepped["conv.weight"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_generator_has_its_fourier_symbol(shape: tuple[int, ...]) -> None:
    """Against a derivative taken with the full complex transform, mode by mode."""
    theta = kernels(shape)
    space = shape[2:]
    velocity = [0.3 + 0.1 * i for i in range(len(space))]
    dynamics = bound(theta, 0.7, velocity, 0.4)
    symbol = torch.full(space, 0.4, dtype=torch.complex128)
    for axis, (size, v) in enumerate(zip(space, velocity, strict=True)):
        k = 2 * math.pi * torch.fft.fftfreq(size, dtype=torch.float64)
        first = torch.where((torch.arange(size) * 2) == size, 0.0, k)
        symbol = symbol + (-0.7 * k**2 + 1j * v * first).view(-1, *(1,) * (len(space) - axis - 1))
    axes = tuple(range(2, len(shape)))
    expected = torch.fft.ifftn(symbol * torch.fft.fftn(theta["conv.weight"], dim=axes), dim=axes)
    assert expected.imag.abs().max() < 1e-14
    torch.testing.assert_close(dynamics(0.0, theta)["conv.weight"], expected.real, rtol=1e-12, atol=1e-12)


def test_signs_and_rates() -> None:
    wave = torch.sin(2 * math.pi * torch.arange(5, dtype=torch.float64) / 5).expand(1, 1, 5)
    theta = {"w": wave}
    shift = bound(theta, 0.0, 1.0).flow(theta, [1.0])
    assert shift is not None
    torch.testing.assert_close(shift["w"][0], wave.roll(-1, -1))  # w(x + upsilon t): towards -x
    growth = bound(theta, 0.0, 0.0, 0.3).flow({"w": wave + 2}, [2.0])
    assert growth is not None
    torch.testing.assert_close(growth["w"][0], (wave + 2) * math.exp(0.6))
    decay = bound(theta, 0.1).flow(theta, [1.0])
    assert decay is not None
    torch.testing.assert_close(decay["w"][0], wave * math.exp(-0.1 * (2 * math.pi / 5) ** 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learnable", [True, False])
def test_zero_coefficients_and_zero_time_return_theta_to_the_bit(dtype: torch.dtype, learnable: bool) -> None:
    theta = kernels((4, 3, 3, 3), dtype)
    still = bound(theta, 0.0, 0.0, 0.0, learnable=learnable).flow(theta, [0.0, 0.3, 7.0])
    assert still is not None and all(torch.equal(weight, theta["conv.weight"]) for weight in still["conv.weight"])
    moving = bound(theta, 0.1, 0.2, 0.3, learnable=learnable).flow(theta, [0.0, 0.3])
    assert moving is not None and torch.equal(moving["conv.weight"][0], theta["conv.weight"])
    assert not torch.equal(moving["conv.weight"][1], theta["conv.weight"])


def test_diffusivity_stays_non_negative_and_can_leave_zero() -> None:
    theta = kernels((2, 2, 3, 3))
    dynamics = bound(theta, 0.0)
    signed = dynamics.signed_tau["conv/weight"]
    assert dynamics.coefficients("conv.weight")[0] == 0
    flow = dynamics.flow(theta, [1.0])
    assert flow is not None
    (slope,) = torch.autograd.grad(flow["conv.weight"].square().sum(), signed)
    assert slope < 0  # diffusion shrinks the norm: a gradient step on -norm raises tau from 0
    with torch.no_grad():
        signed.fill_(-0.3)
    assert dynamics.coefficients("conv.weight")[0] == 0
    flow = dynamics.flow(theta, [1.0])
    assert flow is not None
    (below,) = torch.autograd.grad(flow["conv.weight"].square().sum(), signed)
    assert below == 0  # as nothing changes there


@pytest.mark.parametrize(
    ("start", "wanted", "rate", "momentum"),
    [(0.05, 0.0, 0.05, 0.9), (0.05, 0.0, 0.1, 0.9), (0.05, 0.0, 0.4, 0.9), (-0.05, 0.08, 0.02, 0.0)],
)
def test_a_step_beyond_zero_is_no_strong_diffusion_and_comes_back(start: float, wanted: float, rate: float, momentum: float) -> None:
    """With the hook of the page; SGD from tau = 0.05 to 0 overshoots: |p| was led to 0.07, 2.5 and 9.5 so, softplus never gets to 0."""
    theta = {"w": torch.randn(8, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
    target, dynamics = bound(theta, wanted, learnable=False).flow(theta, [1.0]), bound(theta, 0.05)
    p = dynamics.signed_tau["w"]
    with torch.no_grad():
        p.fill_(start)
    optimizer = torch.optim.SGD([p], lr=rate, momentum=momentum)
    optimizer.register_step_post_hook(dynamics.project)
    for _ in range(300):
        optimizer.zero_grad()
        flow = dynamics.flow(theta, [1.0])
        assert flow is not None and target is not None
        (flow["w"] - target["w"]).square().mean().backward()
        optimizer.step()
        assert dynamics.coefficients("w")[0] < 0.25
    assert dynamics.coefficients("w")[0].item() == pytest.approx(wanted, abs=1e-3)


def test_gradcheck_of_weights_and_coefficients() -> None:
    theta = kernels((2, 2, 3, 3))
    dynamics = bound(theta, 0.05, 0.1, -0.1)
    names = list(dict(dynamics.named_parameters()))

    def flow(weight: Tensor, *parameters: Tensor) -> Tensor:
        class Call(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.d = dynamics

            def forward(self, weight: Tensor) -> Tensor:
                path = self.d.flow({"conv.weight": weight}, [0.0, 0.4, 1.0])
                assert path is not None
                return path["conv.weight"]

        return torch.func.functional_call(Call(), {f"d.{n}": p for n, p in zip(names, parameters, strict=True)}, (weight,))

    inputs = [theta["conv.weight"], *(p.detach().clone() for p in dynamics.parameters())]
    assert torch.autograd.gradcheck(flow, [x.requires_grad_() for x in inputs])


def test_per_layer_and_per_channel_coefficients() -> None:
    theta = {"a.weight": torch.randn(4, 3, 3, 3), "b.weight": torch.randn(6, 4, 5, 5)}
    layer, channel = bound(theta), bound(theta, per="channel")
    assert [c.shape for c in layer.coefficients("a.weight")] == [(), (2,), ()]
    assert [c.shape for c in channel.coefficients("b.weight")] == [(6,), (6, 2), (6,)]
    assert sum(p.numel() for p in layer.parameters()) == 8 and sum(p.numel() for p in channel.parameters()) == 40
    assert not any(p.requires_grad for p in bound(theta, learnable=False).parameters())


def test_kernels_of_one_shape_move_together_as_each_alone() -> None:
    shapes = {"a": (4, 3, 3, 3), "b": (4, 3, 3, 3), "c": (3, 4, 3, 3), "d": (4, 3, 1, 1), "e": (4, 3, 1, 1)}
    theta = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    theta["b"] = theta["b"].contiguous(memory_format=torch.channels_last)
    together = bound(theta, 0.1, [0.2, -0.3], 0.1, per="channel")
    for parameter in together.parameters():
        parameter.data *= 1 + torch.rand_like(parameter)
    path = together.flow(theta, [0.0, 0.5, 1.0])
    assert path is not None and list(path) == list(shapes)
    for name, weight in theta.items():
        alone = bound({name: weight}, per="channel")
        alone.load_state_dict({key: value for key, value in together.state_dict().items() if key.endswith(f".{name}")})
        expected = alone.flow({name: weight}, [0.0, 0.5, 1.0])
        assert expected is not None
        torch.testing.assert_close(path[name], expected[name], rtol=1e-14, atol=1e-14)


def test_weights_keep_their_layout_in_memory() -> None:
    theta = {"w": torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)}
    path = bound(theta, 0.1).flow(theta, [0.0, 0.5])
    assert path is not None and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in path["w"])


def test_parameters_without_effect_are_not_made() -> None:
    theta = {"one": torch.randn(4, 3, 1, 1), "row": torch.randn(4, 3, 1, 3), "two": torch.randn(4, 3, 2, 2)}
    dynamics = bound({name: w.double() for name, w in theta.items()}, 0.1, 0.2, 0.3)
    shapes = {name: tuple(p.shape) for name, p in dynamics.named_parameters()}
    expected = dict.fromkeys(["signed_tau.row", "signed_tau.two", "upsilon.row", "rho.one", "rho.row", "rho.two"], (1,))
    assert shapes == expected
    assert [c.tolist() for c in dynamics.coefficients("one")] == [0.0, [0.0, 0.0], 0.3]
    assert [c.tolist() for c in dynamics.coefficients("row")] == [0.1, [0.0, 0.2], 0.3]
    path = dynamics.flow({name: w.double() for name, w in theta.items()}, [1.0])
    assert path is not None
    torch.testing.assert_close(path["one"][0], theta["one"].double() * math.exp(0.3))
    loss = torch.stack([w.square().sum() for w in path.values()]).sum()
    gradients = torch.autograd.grad(loss, list(dynamics.parameters()))
    assert all(gradient.any() for gradient in gradients)


class Oscillation(nn.Module):
    """u' = v, v' = -w^2 u in every point, without and with its closed form; w is trained."""

    components = 2

    def __init__(self, closed: bool) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        if closed:
            self.flow = self._flow

    def forward(self, t: Any, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return y[1], -(self.frequency**2) * y[0]

    def _flow(self, y: tuple[Tensor, Tensor], times: list[float]) -> tuple[Tensor, Tensor]:
        w = self.frequency
        phase = w * torch.tensor(times, dtype=torch.float64).view(-1, *(1,) * y[0].ndim)
        return y[0] * phase.cos() + y[1] * phase.sin() / w, y[1] * phase.cos() - w * y[0] * phase.sin()


def smoothing(t: Any, u: Tensor) -> Tensor:
    """Diffusion along the last axis, cyclic."""
    return u.roll(1, -1) + u.roll(-1, -1) - 2 * u


class Squash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False, dtype=torch.float64)

    def forward(self, t: Any, z: Tensor) -> Tensor:
        return torch.tanh(self.conv(z))


@pytest.mark.parametrize("pattern", ["o i h w -> (o h w) i", "o i h w -> o (h w) i", "o i h w -> (i h w) o", "o i h w -> (o i h) w"])
def test_fields_evolve_along_the_last_axis_of_the_pattern(pattern: str) -> None:
    weight = kernels((4, 5, 3, 3))["conv.weight"]
    axis = ["o", "i", "h", "w"].index(pattern.split()[-1])
    slope = FieldDynamics(smoothing, pattern)(0.0, {"w": weight})["w"]
    torch.testing.assert_close(slope, weight.roll(1, axis) + weight.roll(-1, axis) - 2 * weight)


def test_weights_that_oscillate_train_with_their_velocities() -> None:
    torch.manual_seed(0)
    z, outputs, gradients = torch.randn(2, 4, 5, 5, dtype=torch.float64), [], []
    for closed, method, steps in ((True, "euler", 1), (False, "rk4", 200), (False, "leapfrog", 1000)):
        torch.manual_seed(1)
        dynamics = FieldDynamics(Oscillation(closed), "o i h w -> (o h w) i")
        block = CoupledODEBlock(Squash(), dynamics, steps=3, weight_method=method, weight_steps=steps)
        with torch.no_grad():
            dynamics.velocity["conv/weight"].copy_(torch.randn(4, 4, 3, 3, dtype=torch.float64))
        out = block(z)
        out.square().sum().backward()
        outputs.append(out.detach())
        gradients.append([p.grad for p in block.parameters()])
        assert len(gradients[-1]) == 3 and all(g is not None and g.any() for g in gradients[-1])
    for out, gradient, bound in zip(outputs[1:], gradients[1:], (1e-8, 2e-5), strict=True):
        torch.testing.assert_close(out, outputs[0], rtol=bound, atol=bound)
        torch.testing.assert_close(gradient, gradients[0], rtol=10 * bound, atol=10 * bound)


def test_field_dynamics_names_mistakes() -> None:
    for pattern in ("o i h w", "o i -> (o i)", "o i h w -> (o h w) k"):
        with pytest.raises(ValueError, match="pattern="):
            FieldDynamics(smoothing, pattern)
    with pytest.raises(TypeError, match="equation must be callable"):
        FieldDynamics(3, "o i -> o i")  # pyright: ignore[reportArgumentType]
    dynamics = FieldDynamics(Oscillation(True), "o i h w -> (o h w) i")
    assert not dynamics.accepts("w", torch.zeros(3)) and dynamics.accepts("w", torch.zeros(2, 2, 3, 3))
    dynamics.bind(kernels((2, 2, 3, 3)))
    with pytest.raises(ValueError, match="deepcopy"):
        dynamics.bind(kernels((2, 2, 3, 3)))


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (3, 2, 7), (2, 2, 4, 4), (3, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_nonlinear_kernels_warn_beyond_their_stable_step(method: str, per: str, shape: tuple[int, ...]) -> None:
    """Small kernels, where tanh(2 w) is 2 w: 0.98 of the limit amplifies none of them, 1.1 of it one, and warns."""
    theta = {"a": 1e-9 * torch.randn(shape, dtype=torch.float64), "b": 1e-9 * torch.randn(shape, dtype=torch.float64)}
    dynamics = bound(theta, 4.0, 0.3, -0.1, per=per, nonlinearity=lambda w: torch.tanh(2 * w))
    with torch.no_grad():
        for name, tau in dynamics.signed_tau.items():
            tau.mul_(2 if name == "b" else 1)
    step = dynamics.max_stable_step(method)
    largest = lambda path: max(weight[-1].abs().max().item() for weight in path.values())
    with torch.no_grad():
        assert largest(odeint(dynamics, theta, [0.0, 98.0 * step], method=method, steps=100)) < 2e-8
        with pytest.warns(UserWarning, match="beyond the largest stable one, .* for ReactionDiffusionAdvection"):
            assert largest(odeint(dynamics, theta, [0.0, 110.0 * step], method=method, steps=100)) > 1e-5


@pytest.mark.parametrize("convolution", [nn.Conv2d(3, 5, 3), nn.ConvTranspose2d(3, 5, 3)], ids=["plain", "transposed"])
def test_coefficients_per_channel_are_along_the_first_axis(convolution: nn.Module) -> None:
    """Output channels of a convolution, input channels of a transposed one."""
    weight = convolution.get_parameter("weight").detach().double()
    dynamics = bound({"w": weight}, 0.0, 0.0, 0.3, per="channel")
    with torch.no_grad():
        dynamics.rho["w"].copy_(torch.arange(len(weight)))
    path = dynamics.flow({"w": weight}, [1.0])
    assert path is not None
    grown = torch.stack([row * math.exp(i) for i, row in enumerate(weight)])
    torch.testing.assert_close(path["w"][0], grown, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "value"), [("tau", math.inf), ("upsilon", math.nan), ("rho", math.inf), ("upsilon", (0.0, math.inf))])
def test_coefficients_that_are_not_finite_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}=.*finite"):
        ReactionDiffusionAdvection(**{name: value})


def test_a_nonlinearity_is_stepped() -> None:
    theta = kernels((2, 2, 3, 3))
    plain, bent = bound(theta, 0.1, 0.2), bound(theta, 0.1, 0.2, nonlinearity=torch.tanh)
    assert bent.flow(theta, [1.0]) is None
    torch.testing.assert_close(bent(0.0, theta)["conv.weight"], torch.tanh(plain(0.0, theta)["conv.weight"]))


def test_what_cannot_evolve_is_not_accepted() -> None:
    rda = ReactionDiffusionAdvection()
    accepted = {shape: rda.accepts("w", torch.zeros(shape)) for shape in [(4, 4, 3, 3), (4, 4, 1, 3), (4, 4, 1, 1), (4, 4), (4,)]}
    assert list(accepted.values()) == [True, True, True, False, False]
    assert Static().accepts("w", torch.zeros(4)) and not Static().accepts("w", torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"), [({"tau": -0.1}, "tau=-0.1"), ({"tau": math.nan}, "tau=nan"), ({"per": "kernel"}, "per='kernel'")]
)
def test_coefficients_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReactionDiffusionAdvection(**options)


def test_one_dynamics_serves_one_block() -> None:
    theta = kernels((2, 2, 3, 3))
    dynamics = bound(theta)
    with pytest.raises(ValueError, match="deepcopy"):
        dynamics.bind(theta)
    with pytest.raises(ValueError, match=r"upsilon=.*conv.weight has 2 spatial axes"):
        bound(theta, upsilon=[0.1, 0.2, 0.3])


def test_static_stands_still() -> None:
    theta = kernels((2, 2, 3, 3))
    path = Static().flow(theta, [0.0, 1.0])
    assert torch.equal(path["conv.weight"][1], theta["conv.weight"])
    assert not Static()(0.0, theta)["conv.weight"].any()


def test_neural_dynamics_wraps_a_module_or_function() -> None:
    dynamics = NeuralDynamics(lambda t, theta: {name: t * w for name, w in theta.items()})
    assert isinstance(dynamics, Dynamics) and dynamics(2.0, {"w": torch.ones(2)})["w"].tolist() == [2.0, 2.0]
    with pytest.raises(TypeError, match="module must be callable"):
        NeuralDynamics(3)  # pyright: ignore[reportArgumentType]


def test_half_precision_weights_flow() -> None:
    theta = kernels((2, 2, 3, 3), torch.bfloat16)
    path = bound(theta, 0.1).flow(theta, [0.0, 1.0])
    assert path is not None and path["conv.weight"].dtype == torch.bfloat16
    assert "tau=0.02" in repr(ReactionDiffusionAdvection())


class Spatial(nn.Module):
    """f(t, z) of a depthwise 7x7 kernel, one of 5x5 with holes of 3, and one along rows, depthwise with holes of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 7, padding=3, groups=4)
        self.dilated = nn.Conv2d(4, 4, 5, padding=6, dilation=3, bias=False)
        self.row = nn.Conv2d(4, 8, (1, 5), padding=(0, 4), dilation=2, groups=2)
        self.double()

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.row(torch.tanh(self.dilated(torch.tanh(self.depthwise(z))))).unflatten(1, (4, 2)).mean(2) * (1 + t)


def convolved_by_hand(z: Tensor, kernel: Tensor, dilation: int, groups: int) -> Tensor:
    """Sums of shifted images, zeros around them."""
    out, inner, *sizes = kernel.shape
    rows, columns = (dilation * (size // 2) for size in sizes)
    padded = nn.functional.pad(z, [columns, columns, rows, rows]).unflatten(1, (groups, inner))
    result = torch.zeros_like(z[:, :1]).expand(-1, out, -1, -1).unflatten(1, (groups, out // groups))
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            window = padded[..., i * dilation : i * dilation + z.shape[2], j * dilation : j * dilation + z.shape[3]]
            result = result + torch.einsum("goc,bgchw->bgohw", kernel[..., i, j].unflatten(0, (groups, out // groups)), window)
    return result.flatten(1, 2)


def moved_by_hand(kernel: Tensor, tau: Tensor, upsilon: Tensor, rho: Tensor, t: float) -> Tensor:
    """exp of the equation's matrix, which scipy's differentiation of periodic functions gives column by column."""
    place: Any = np.eye(kernel[0, 0].numel()).reshape(-1, *kernel.shape[2:])
    parts = [rho.view(-1, 1, 1) * torch.eye(len(place), dtype=kernel.dtype)]
    for axis, size in enumerate(kernel.shape[2:]):
        first, second = (
            torch.as_tensor(np.apply_along_axis(scipy.fftpack.diff, axis + 1, place, order, size) if size > 1 else 0 * place).flatten(1).mT
            for order in (1, 2)
        )
        parts.append(upsilon.view(-1, kernel.ndim - 2)[:, axis, None, None] * first + tau.view(-1, 1, 1) * second)
    matrices = torch.linalg.matrix_exp(t * sum(parts)).expand(len(kernel), -1, -1)  # pyright: ignore
    return torch.einsum("opq,oiq->oip", matrices, kernel.flatten(2)).view_as(kernel)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_depthwise_and_dilated_kernels_move_as_in_a_loop_written_by_hand(per: str) -> None:
    """Values and all gradients of a block of Euler steps; cells of a kernel are neighbours whatever the holes between them."""
    torch.manual_seed(0)
    f, z, steps = Spatial(), torch.randn(2, 4, 9, 11, dtype=torch.float64, requires_grad=True), 3
    dynamics = ReactionDiffusionAdvection(0.1, 0.2, -0.3, per=per)
    block = CoupledODEBlock(f, dynamics, steps=steps)
    for parameter in dynamics.parameters():
        parameter.data *= 1 + torch.rand_like(parameter)
    assert block.evolving == ("depthwise.weight", "dilated.weight", "row.weight")
    parameters = [z, *block.parameters()]
    y, by_hand = block(z), z
    for n in range(steps):
        kernels = {name: moved_by_hand(f.get_parameter(name), *dynamics.coefficients(name), n / steps) for name in block.evolving}
        x = torch.tanh(convolved_by_hand(by_hand, kernels["depthwise.weight"], 1, 4) + f.get_parameter("depthwise.bias")[:, None, None])
        x = torch.tanh(convolved_by_hand(x, kernels["dilated.weight"], 3, 1))
        x = convolved_by_hand(x, kernels["row.weight"], 2, 2) + f.get_parameter("row.bias")[:, None, None]
        by_hand = by_hand + (x[:, ::2] + x[:, 1::2]) / 2 * (1 + n / steps) / steps
    torch.testing.assert_close(y, by_hand, rtol=1e-12, atol=1e-12)
    found, expected = (torch.autograd.grad(end.square().sum(), parameters) for end in (y, by_hand))
    for one, two in zip(found, expected, strict=True):
        assert two.any()
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-11)
