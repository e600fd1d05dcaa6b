"""What to cite for a solve: the papers of its method, of its gradient and of the dynamics of its weights, as BibTeX."""

from __future__ import annotations

from .dynamics import DepthGroups, Dynamics
from .gradients.adjoint import Adjoint, CheckpointAdjoint, as_adjoint
from .solvers import METHODS, Auto, Method, as_method
from .solvers.tableau import Tableau

ANODE, ANODEV2 = "gholami2019anode", "zhang2019anodev2"
NONSTIFF, STIFF, GEOMETRIC = "hairer1993nonstiff", "hairer1996stiff", "hairer2006geometric"
METHOD_KEYS = {
    **dict.fromkeys(("euler", "midpoint", "heun2", "rk4", "rk4_38"), (NONSTIFF,)),
    "ralston": ("ralston1962bounds",),
    **dict.fromkeys(("ssprk2", "ssprk3"), ("shu1988efficient",)),
    "bosh3": ("bogacki1989pair",),
    "dopri5": ("dormand1980family",),
    "dopri8": ("prince1981high", NONSTIFF),
    "tsit5": ("tsitouras2011pairs",),
    **dict.fromkeys(("leapfrog", "implicit_midpoint"), (GEOMETRIC,)),
    "exponential_euler": ("hochbruck2010exponential",),
    "etdrk4": ("cox2002exponential", "kassam2005fourth"),
    **dict.fromkeys(("imex1", "imex2", "imex3"), ("ascher1997implicit",)),
    **dict.fromkeys(("backward_euler", "rodas4"), (STIFF,)),
    "rodas5p": ("steinebach2023rodas5p",),
    "esdirk4": ("kennedy2003additive",),
    "kvaerno5": ("kvaerno2004singly",),
    "auto": (STIFF,),
    "map": (),
}
ADJOINT_KEYS = {
    "CheckpointAdjoint": (ANODE,),
    "DirectAdjoint": (),
    "ReversibleAdjoint": ("mccallum2024efficient",),
    "BacksolveAdjoint": ("chen2018neural",),
}
DYNAMICS_KEYS = {
    "BSpline": ("gunther2021spline",),
    "DeltaRule": ("yang2024parallelizing",),
    "Galerkin": ("massaroli2020dissecting", "queiruga2021stateful"),
    "GradientFlow": ("sun2025learning",),
    "Hebb": ("schlag2021linear",),
    "Hyper": ("ha2017hypernetworks", "tong2025neural"),
    "LowRank": ("hu2022lora", "bae2025relaxed"),
    "Oja": ("oja1982simplified",),
    "SkewFlow": ("choromanski2020ode",),
    "Static": (),
    "Templates": ("savarese2019learning",),
}


def citation(
    method: str | Tableau | Method = "rk4", adjoint: str | Adjoint = "checkpoint", dynamics: Dynamics | type[Dynamics] | None = None
) -> str:
    """BibTeX of the papers behind a solve; ``print`` it.

    Args:
        method: as ``odeint`` takes it. One of your own has no entry.
        adjoint: as ``odeint`` takes it; ``CheckpointAdjoint(slots=...)`` or ``(memory=...)`` is that of binomial checkpoints.
        dynamics: of weights that move, an object or a class; None: weights that stand still.

    Returns:
        Entries, in the order of the arguments, each once. ANODEV2 is among them where weights move.

    Raises:
        ValueError: a method or an adjoint that there is not.
        TypeError: dynamics that are none.
    """
    keys = [*_of_method(method), *_of_adjoint(as_adjoint(adjoint)), *_of_dynamics(dynamics)]
    return "\n\n".join(bibtex(key) for key in dict.fromkeys(keys))


def bibtex(key: str) -> str:
    """An entry as text."""
    kind, fields = ENTRIES[key]
    width = max(len(name) for name in fields)
    lines = [f"  {name:{width}} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _of_method(method: str | Tableau | Method) -> tuple[str, ...]:
    chosen = as_method(method)
    if isinstance(chosen, Auto):
        return (*METHOD_KEYS["auto"], *(key for one in chosen.both for key in _of_method(one)))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(method, str):
        return METHOD_KEYS[method]
    same = [name for name, known in METHODS.items() if known is getattr(method, "tableau", method)]
    if same:
        return METHOD_KEYS[same[0]]
    kinds = [name for name, known in METHODS.items() if type(known) is type(chosen)]  # of a BackwardEuler(...) of one's own, say
    return METHOD_KEYS[kinds[0]] if len(kinds) == 1 else ()


def _of_adjoint(adjoint: Adjoint) -> tuple[str, ...]:
    own = ADJOINT_KEYS.get(type(adjoint).__name__, ())
    binomial = isinstance(adjoint, CheckpointAdjoint) and (adjoint.slots is not None or adjoint.memory is not None)
    return (*own, "griewank2000revolve") if binomial else own


def _of_dynamics(dynamics: Dynamics | type[Dynamics] | None) -> tuple[str, ...]:
    if dynamics is None:
        return ()
    kind = dynamics if isinstance(dynamics, type) else type(dynamics)
    if not issubclass(kind, Dynamics):
        raise TypeError(f"dynamics must be a Dynamics or None, got {dynamics!r}; see anodev2.Galerkin and its like")
    if isinstance(dynamics, DepthGroups):
        return _of_dynamics(dynamics.groups[0])  # pyright: ignore[reportArgumentType]
    known = [base.__name__ for base in kind.__mro__ if base.__name__ in DYNAMICS_KEYS]
    return () if known[:1] == ["Static"] else (ANODEV2, *(DYNAMICS_KEYS[known[0]] if known else ()))


def _entry(kind: str, author: str, title: str, where: tuple[str, str], year: int, **more: str) -> tuple[str, dict[str, str]]:
    return kind, {"author": author, "title": title, where[0]: where[1], "year": str(year), **more}


def _article(author: str, title: str, journal: str, year: int, **more: str) -> tuple[str, dict[str, str]]:
    return _entry("article", author, title, ("journal", journal), year, **more)


def _talk(author: str, title: str, where: str, year: int, eprint: str) -> tuple[str, dict[str, str]]:
    return _entry("inproceedings", author, title, ("booktitle", where), year, eprint=eprint, archiveprefix="arXiv")


def _preprint(author: str, title: str, year: int, eprint: str) -> tuple[str, dict[str, str]]:
    return "misc", {"author": author, "title": title, "year": str(year), "eprint": eprint, "archiveprefix": "arXiv"}


def _book(author: str, title: str, year: int) -> tuple[str, dict[str, str]]:
    return _entry("book", author, title, ("publisher", "Springer"), year)


HAIRER = "Hairer, Ernst and "
NEURIPS, ICLR, ICML = "Advances in Neural Information Processing Systems", "International Conference on Learning Representations", "ICML"
ENTRIES: dict[str, tuple[str, dict[str, str]]] = {
    ANODE: _talk(
        "Gholami, Amir and Keutzer, Kurt and Biros, George",
        "{ANODE}: Unconditionally Accurate Memory-Efficient Gradients for Neural {ODEs}",
        "International Joint Conference on Artificial Intelligence",
        2019,
        "1902.10298",
    ),
    ANODEV2: _talk(
        "Zhang, Tianjun and Yao, Zhewei and Gholami, Amir and Keutzer, Kurt and Gonzalez, Joseph and Biros, George and Mahoney, Michael W.",
        "{ANODEV2}: A Coupled Neural {ODE} Framework",
        NEURIPS,
        2019,
        "1906.04596",
    ),
    NONSTIFF: _book(HAIRER + "N{\\o}rsett, Syvert P. and Wanner, Gerhard", "Solving Ordinary Differential Equations {I}", 1993),
    STIFF: _book(HAIRER + "Wanner, Gerhard", "Solving Ordinary Differential Equations {II}", 1996),
    GEOMETRIC: _book(HAIRER + "Lubich, Christian and Wanner, Gerhard", "Geometric Numerical Integration", 2006),
    "ralston1962bounds": _article(
        "Ralston, Anthony", "{Runge-Kutta} Methods with Minimum Error Bounds", "Mathematics of Computation", 1962, volume="16"
    ),
    "shu1988efficient": _article(
        "Shu, Chi-Wang and Osher, Stanley",
        "Efficient Implementation of Essentially Non-oscillatory Shock-Capturing Schemes",
        "Journal of Computational Physics",
        1988,
        volume="77",
    ),
    "bogacki1989pair": _article(
        "Bogacki, P. and Shampine, L. F.", "A 3(2) Pair of {Runge-Kutta} Formulas", "Applied Mathematics Letters", 1989, volume="2"
    ),
    "dormand1980family": _article(
        "Dormand, J. R. and Prince, P. J.",
        "A Family of Embedded {Runge-Kutta} Formulae",
        "Journal of Computational and Applied Mathematics",
        1980,
        volume="6",
    ),
    "prince1981high": _article(
        "Prince, P. J. and Dormand, J. R.",
        "High Order Embedded {Runge-Kutta} Formulae",
        "Journal of Computational and Applied Mathematics",
        1981,
        volume="7",
    ),
    "tsitouras2011pairs": _article(
        "Tsitouras, Ch.",
        "{Runge-Kutta} Pairs of Order 5(4) Satisfying Only the First Column Simplifying Assumption",
        "Computers \\& Mathematics with Applications",
        2011,
        volume="62",
    ),
    "hochbruck2010exponential": _article(
        "Hochbruck, Marlis and Ostermann, Alexander", "Exponential Integrators", "Acta Numerica", 2010, volume="19"
    ),
    "cox2002exponential": _article(
        "Cox, S. M. and Matthews, P. C.",
        "Exponential Time Differencing for Stiff Systems",
        "Journal of Computational Physics",
        2002,
        volume="176",
    ),
    "kassam2005fourth": _article(
        "Kassam, Aly-Khan and Trefethen, Lloyd N.",
        "Fourth-Order Time-Stepping for Stiff {PDEs}",
        "SIAM Journal on Scientific Computing",
        2005,
        volume="26",
    ),
    "ascher1997implicit": _article(
        "Ascher, Uri M. and Ruuth, Steven J. and Spiteri, Raymond J.",
        "Implicit-Explicit {Runge-Kutta} Methods for Time-Dependent Partial Differential Equations",
        "Applied Numerical Mathematics",
        1997,
        volume="25",
    ),
    "steinebach2023rodas5p": _article(
        "Steinebach, Gerd",
        "Construction of {Rosenbrock-Wanner} Method {Rodas5P} and Numerical Benchmarks within the {Julia} Differential Equations Package",
        "BIT Numerical Mathematics",
        2023,
        volume="63",
    ),
    "kennedy2003additive": _article(
        "Kennedy, Christopher A. and Carpenter, Mark H.",
        "Additive {Runge-Kutta} Schemes for Convection-Diffusion-Reaction Equations",
        "Applied Numerical Mathematics",
        2003,
        volume="44",
    ),
    "kvaerno2004singly": _article(
        "Kv{\\ae}rn{\\o}, Anne",
        "Singly Diagonally Implicit {Runge-Kutta} Methods with an Explicit First Stage",
        "BIT Numerical Mathematics",
        2004,
        volume="44",
    ),
    "griewank2000revolve": _article(
        "Griewank, Andreas and Walther, Andrea",
        "Algorithm 799: Revolve: An Implementation of Checkpointing for the Reverse or Adjoint Mode of Computational Differentiation",
        "ACM Transactions on Mathematical Software",
        2000,
        volume="26",
    ),
    "mccallum2024efficient": _preprint(
        "McCallum, Sam and Foster, James", "Efficient, Accurate and Stable Gradients for Neural {ODEs}", 2024, "2410.11648"
    ),
    "chen2018neural": _talk(
        "Chen, Ricky T. Q. and Rubanova, Yulia and Bettencourt, Jesse and Duvenaud, David",
        "Neural Ordinary Differential Equations",
        NEURIPS,
        2018,
        "1806.07366",
    ),
    "gunther2021spline": _preprint(
        'G{\\"u}nther, Stefanie and Pazner, Will and Qi, Dongping',
        "Spline Parameterization of Neural Network Controls for Deep Learning",
        2021,
        "2103.00301",
    ),
    "yang2024parallelizing": _talk(
        "Yang, Songlin and others",
        "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
        NEURIPS,
        2024,
        "2406.06484",
    ),
    "massaroli2020dissecting": _talk("Massaroli, Stefano and others", "Dissecting Neural {ODEs}", NEURIPS, 2020, "2002.08071"),
    "queiruga2021stateful": _talk(
        "Queiruga, Alejandro and others", "Stateful {ODE-Nets} using Basis Function Expansions", NEURIPS, 2021, "2106.10820"
    ),
    "sun2025learning": _talk("Sun, Yu and others", "Learning to (Learn at Test Time)", ICML, 2025, "2407.04620"),
    "schlag2021linear": _talk(
        'Schlag, Imanol and Irie, Kazuki and Schmidhuber, J{\\"u}rgen',
        "Linear Transformers Are Secretly Fast Weight Programmers",
        ICML,
        2021,
        "2102.11174",
    ),
    "ha2017hypernetworks": _talk("Ha, David and Dai, Andrew and Le, Quoc V.", "{HyperNetworks}", ICLR, 2017, "1609.09106"),
    "tong2025neural": _talk("Tong, Anh and others", "Neural {ODE} Transformers", ICLR, 2025, "2503.01329"),
    "hu2022lora": _talk("Hu, Edward J. and others", "{LoRA}: Low-Rank Adaptation of Large Language Models", ICLR, 2022, "2106.09685"),
    "bae2025relaxed": _talk("Bae, Sangmin and others", "Relaxed Recursive Transformers", ICLR, 2025, "2410.20672"),
    "oja1982simplified": _article(
        "Oja, Erkki", "A Simplified Neuron Model as a Principal Component Analyzer", "Journal of Mathematical Biology", 1982, volume="15"
    ),
    "choromanski2020ode": _talk("Choromanski, Krzysztof and others", "An Ode to an {ODE}", NEURIPS, 2020, "2006.11421"),
    "savarese2019learning": _talk(
        "Savarese, Pedro and Maire, Michael",
        "Learning Implicitly Recurrent {CNNs} Through Parameter Sharing",
        ICLR,
        2019,
        "1902.09701",
    ),
}
