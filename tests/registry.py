"""One row per inference method: what the battery in `tests/test_battery.py` runs it with.

A new method adds one `Row` here and inherits every test of the battery; one for Gaussian processes
a `ProcessRow`, and inherits those of `tests/test_process_battery.py` (at the end of this file).

The battery's problem is a linear regression with known noise,

    theta_k ~ N(m_k, s_k),    y_i ~ N((X theta)_i, 1),    k = 1..3,  i = 1..24,

whose posterior N(mean, A^{-1}) is known. Prior and design are data, so that a shifted, scaled,
permuted or rotated problem is the same program with other numbers, and compiles nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import probkit as pk
from probkit import dist

ROWS, TERMS = 24, 3
COORDS = {"term": ["a", "b", "c"], "row": [f"r{i}" for i in range(ROWS)]}
DIMS = {"X": ("row", "term")}

regression = pk.Model(
    theta=pk.rv(lambda m, s: dist.Normal(m, s), dims="term"),
    fitted=pk.deterministic(lambda X, theta: X @ theta, dims="row"),
    y=pk.rv(lambda fitted: dist.Normal(fitted, 1.0), dims="row"),
)

#: The same problem with theta seen through softplus: another unconstrained space, log softplus.
softplus = pk.Model(
    positive=pk.rv(
        lambda m, s: dist.TransformedDistribution(
            dist.Normal(m, s), dist.transforms.SoftplusTransform()
        ),
        dims="term",
    ),
    y=pk.rv(
        lambda X, positive: dist.Normal(X @ dist.transforms.SoftplusTransform().inv(positive), 1.0),
        dims="row",
    ),
)


@dataclass(frozen=True, eq=False)
class Problem:
    """Data of the regression and its posterior in closed form."""

    m: np.ndarray
    s: np.ndarray
    X: np.ndarray
    y: np.ndarray

    @property
    def data(self) -> dict[str, np.ndarray]:
        return {"m": self.m, "s": self.s, "X": self.X, "y": self.y}

    @property
    def precision(self) -> np.ndarray:
        return self.X.T @ self.X + np.diag(self.s**-2)

    @property
    def mean(self) -> np.ndarray:
        return np.linalg.solve(self.precision, self.X.T @ self.y + self.m / self.s**2)

    @property
    def covariance(self) -> np.ndarray:
        return np.linalg.inv(self.precision)

    @property
    def log_evidence(self) -> float:
        # y ~ N(X m, I + X S X')
        cov = np.eye(ROWS) + self.X @ np.diag(self.s**2) @ self.X.T
        gap = self.y - self.X @ self.m
        log_det = np.linalg.slogdet(cov)[1]
        return float(-0.5 * (gap @ np.linalg.solve(cov, gap) + log_det + ROWS * np.log(2 * np.pi)))


def problem(seed: int = 0) -> Problem:
    """A well-conditioned problem: posterior sds of 0.2 to 0.5, correlations up to one half."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(ROWS, TERMS)) @ np.array([[0.7, 0.3, 0.0], [0, 0.6, 0.2], [0, 0, 0.5]])
    y = X @ np.array([0.5, -0.3, 0.8]) + rng.normal(size=ROWS)
    return Problem(np.array([0.2, 0.0, -0.1]), np.full(TERMS, 0.8), X, y)


def _shift(p: Problem) -> Problem:
    c = np.array([2.0, -1.0, 0.5])
    return Problem(p.m + c, p.s, p.X, p.y + p.X @ c)


def _scale(p: Problem) -> Problem:
    return Problem(1.5 * p.m, 1.5 * p.s, p.X / 1.5, p.y)


def _permute(p: Problem) -> Problem:
    order = [2, 0, 1]
    return Problem(p.m[order], p.s[order], p.X[:, order], p.y)


def _rotate(p: Problem) -> Problem:
    # All prior sds are equal, so that a rotated prior is a prior of the same kind.
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(TERMS, TERMS)))
    return Problem(q.T @ p.m, p.s, p.X @ q, p.y)


#: theta -> theta, theta + c, 1.5 theta, theta[order], q' theta.
TRANSFORMS: dict[str, Callable[[Problem], Problem]] = {
    "identity": lambda p: p,
    "shift": _shift,
    "scale": _scale,
    "permute": _permute,
    "rotate": _rotate,
}


@dataclass(frozen=True, eq=False)
class Row:
    """A method and what the battery may ask of it.

    Attributes:
        name: the row's name.
        make: the method with small settings; keywords override them.
        misspelt: an option that does not exist, and the one that the error must name.
        bad: keywords, the exception and words of its message, for options out of range.
        covariance: what the method's draws have as covariance, from the problem (a method with a
            known bias says so here); the posterior's own by default.
        slack: what is allowed beyond sampling error: means in posterior sds, sds as a ratio.
        draws: whether it draws by steps (chains, resuming) or fits a distribution.
        nonlinear: whether it is right in any unconstrained space (a normal is not).
        chains: chains of its draws.
        slow_eager: whether a step without jit takes too long for the normal tests.
    """

    name: str
    make: Callable[..., Any]
    misspelt: tuple[str, str]
    bad: tuple[tuple[dict[str, Any], type[Exception], str], ...]
    covariance: Callable[[Problem], np.ndarray] = field(default=lambda p: p.covariance)
    slack: tuple[float, float] = (0.0, 0.0)
    draws: bool = True
    nonlinear: bool = False
    chains: int = 4
    slow_eager: bool = False


def _with(method: type, **small: Any) -> Callable[..., Any]:
    return lambda **options: method(**{**small, **options})


_SGLD_STEP = 0.02


def _sgld_covariance(p: Problem) -> np.ndarray:
    """Stationary covariance of z <- z - (e/2) A (z - mean) + sqrt(e) N(0, I), by eigenvectors."""
    values, vectors = np.linalg.eigh(p.precision)
    return vectors @ np.diag(1.0 / (values * (1.0 - _SGLD_STEP * values / 4.0))) @ vectors.T


_COUNTS = (
    ({"draws": 0}, ValueError, "draws.*at least 1"),
    ({"draws": 2.5}, TypeError, "draws"),
)
_MCMC = (
    *_COUNTS,
    ({"warmup": -1}, ValueError, "warmup"),
    ({"chains": 0}, ValueError, "chains"),
)

REGISTRY: tuple[Row, ...] = (
    Row(
        "NUTS",
        _with(pk.NUTS, draws=600, warmup=300),
        ("target_acept", "target_accept"),
        (
            *_MCMC,
            ({"target_accept": 1.0}, ValueError, "target_accept"),
            ({"metric": "lowrank"}, ValueError, "low_rank"),
            ({"engine": "stan"}, ValueError, "engine"),
            ({"engine": "numpyro", "metric": "low_rank"}, ValueError, "metric"),
        ),
        nonlinear=True,
    ),
    Row(
        "NUTS-numpyro",
        _with(pk.NUTS, draws=600, warmup=300, engine="numpyro"),
        ("max_dept", "max_depth"),
        (*_MCMC, ({"max_depth": 0}, ValueError, "max_depth")),
        slow_eager=True,
    ),
    Row(
        "HMC",
        _with(pk.HMC, draws=600, warmup=300, leapfrog=5),
        ("leapfrogs", "leapfrog"),
        (
            *_MCMC,
            ({"leapfrog": 0}, ValueError, "leapfrog"),
            ({"jitter": 1.5}, ValueError, "jitter"),
        ),
        nonlinear=True,
    ),
    Row(
        "Thin",
        lambda every=2, **options: pk.Thin(
            pk.HMC(**{"draws": 800, "warmup": 300, "leapfrog": 3, "metric": "diag", **options}),
            every=every,
        ),
        ("leapfrgo", "leapfrog"),
        (
            ({"every": 0}, ValueError, "every"),
            ({"every": 7}, ValueError, "multiples"),
        ),
        nonlinear=True,
    ),
    Row(
        "SGLD",
        _with(pk.SGLD, draws=800, warmup=50, step_size=_SGLD_STEP, thin=10),
        ("stepsize", "step_size"),
        (*_MCMC, ({"step_size": 0.0}, ValueError, "step_size"), ({"thin": 0}, ValueError, "thin")),
        covariance=_sgld_covariance,
    ),
    Row(
        "SGLD-batches",
        _with(pk.SGLD, draws=600, warmup=50, step_size=0.005, thin=20, batch_size=8),
        ("batchsize", "batch_size"),
        (({"batch_size": 0}, ValueError, "batch"), ({"decay": 1.5}, ValueError, "decay")),
        # The mini-batches' noise adds e/4 times the variance of their gradients: a few per cent.
        slack=(0.05, 0.1),
    ),
    Row(
        "Laplace",
        _with(pk.Laplace, draws=4000),
        ("max_step", "max_steps"),
        (
            *_COUNTS,
            ({"starts": 0}, ValueError, "starts"),
            ({"tolerance": -1.0}, ValueError, "tolerance"),
        ),
        draws=False,
        chains=1,
    ),
    Row(
        "VI",
        _with(pk.VI, family="fullrank"),
        ("familly", "family"),
        (
            *_COUNTS,
            ({"family": "fulrank"}, ValueError, "fullrank"),
            ({"objective": "iwelbow"}, ValueError, "iwelbo"),
            ({"gradient": "dreg"}, ValueError, "dreg"),
            ({"scale": "log"}, ValueError, "softplus"),
            ({"particles": 1}, ValueError, "particles"),
            ({"tolerance": 0.0}, ValueError, "tolerance"),
            ({"alpha": 1.0}, ValueError, "alpha"),
            ({"family": "mixture", "objective": "renyi"}, ValueError, "mixture"),
        ),
        # The stop ends within a few hundredths of a nat of the optimum, not at it.
        slack=(0.03, 0.03),
        draws=False,
        chains=1,
        slow_eager=True,
    ),
    Row(
        "Pathfinder",
        _with(pk.Pathfinder, draws=4000),
        ("path", "paths"),
        (*_COUNTS, ({"paths": 0}, ValueError, "paths")),
        # L-BFGS's inverse Hessian is an approximation even of a Gaussian's.
        slack=(0.2, 0.3),
        draws=False,
        chains=1,
        slow_eager=True,
    ),
    Row(
        "ExactGaussian",
        _with(pk.ExactGaussian, draws=4000),
        ("drawz", "draws"),
        _COUNTS,
        draws=False,
        chains=1,
    ),
)


# -- methods for Gaussian processes ----------------------------------------------------------------

POINTS, NOISE = 20, 0.3
PROCESS_COORDS = {"row": [f"r{i}" for i in range(POINTS)]}


@functools.cache
def process(shares: tuple[float, ...] = (1.0,), **options: Any) -> pk.Model:
    """A regression on a process, or on two with shares of its variance and its mean."""

    def part(share: float) -> Any:
        kernel = lambda: pk.kernels.Matern32(1.0, share)  # noqa: E731
        return pk.gp(kernel, at="x", mean=0.5 * share, dims="row", **options)

    if len(shares) == 1:
        return pk.Model(f=part(1.0), y=pk.rv(lambda f: dist.Normal(f, NOISE), dims="row"))
    y = pk.rv(lambda f, g: dist.Normal(f + g, NOISE), dims="row")
    return pk.Model(f=part(shares[0]), g=part(shares[1]), y=y)


@dataclass(frozen=True, eq=False)
class Curve:
    """Data of a regression on a process, and its posterior in closed form."""

    x: np.ndarray
    y: np.ndarray

    @property
    def data(self) -> dict[str, np.ndarray]:
        return {"x": self.x, "y": self.y}

    @property
    def covariance(self) -> np.ndarray:
        u = np.sqrt(3.0) * np.abs(self.x[:, None] - self.x)
        return (1.0 + u) * np.exp(-u)

    @property
    def noisy(self) -> np.ndarray:
        return self.covariance + NOISE**2 * np.eye(len(self.x))

    @property
    def mean(self) -> np.ndarray:
        return 0.5 + self.covariance @ np.linalg.solve(self.noisy, self.y - 0.5)

    def sd(self, share: float = 1.0) -> np.ndarray:
        """Of a process with that share of the variance."""
        part = share * self.covariance
        return np.sqrt(np.diag(part - part @ np.linalg.solve(self.noisy, part)))

    @property
    def log_evidence(self) -> float:
        gap, log_det = self.y - 0.5, np.linalg.slogdet(self.noisy)[1]
        square = gap @ np.linalg.solve(self.noisy, gap)
        return float(-0.5 * (square + log_det + len(self.x) * np.log(2 * np.pi)))


def curve(seed: int = 0) -> Curve:
    """Places in no order, none very close to another."""
    rng = np.random.default_rng(seed)
    x = rng.permutation(np.linspace(-3, 3, POINTS)) + 0.05 * rng.normal(size=POINTS)
    return Curve(x, np.sin(2.0 * x) + NOISE * rng.normal(size=POINTS))


_ORDER = np.random.default_rng(1).permutation(POINTS)
#: The order of the rows, and the place of the inputs, change nothing.
CURVES: dict[str, Callable[[Curve], Curve]] = {
    "identity": lambda c: c,
    "permute": lambda c: Curve(c.x[_ORDER], c.y[_ORDER]),
    "shift": lambda c: Curve(c.x + 7.0, c.y),
}


@dataclass(frozen=True, eq=False)
class ProcessRow:
    """A method for Gaussian processes; `make` takes a `Curve` besides options.

    Attributes:
        name: the row's name.
        make: the method with small settings, exact for normal noise; keywords override them.
        misspelt: an option that does not exist, and the one that the error must name.
        bad: keywords, the exception and words of its message, for options out of range.
        tolerance: of log evidence, means and sds.
        site: what its draws are of.
        quick: whether its fits are in the normal tests (the others take the same road).
        groups: whether its ArviZ groups are too.
        shares: of the processes that the problem is one of.
        eager: whether a step without jit takes seconds (nested nodes take minutes).
    """

    name: str
    make: Callable[..., Any]
    misspelt: tuple[str, str]
    bad: tuple[tuple[dict[str, Any], type[Exception], str], ...]
    tolerance: float = 1e-8
    site: str = "f"
    quick: bool = True
    groups: bool = False
    shares: tuple[float, ...] = (1.0,)
    eager: bool = True


def _dense(method: type) -> Callable[..., Any]:
    return lambda curve, **options: method(**{"draws": 300, "starts": 1, "screen": 1, **options})


def _sparse(method: type) -> Callable[..., Any]:
    # All rows are inducing points: the exact process again.
    return lambda curve, **options: method(
        **{"draws": 300, "inducing": curve.x, "screen": 1, **options}
    )


_SEARCH = (
    *_COUNTS,
    ({"objective": "mle"}, ValueError, "objective"),
    ({"max_steps": 0}, ValueError, "max_steps"),
)
_STARTS = (*_SEARCH, ({"starts": 0}, ValueError, "starts"))
_SPARSE = (
    *_SEARCH,
    ({"inducing": 0}, ValueError, "inducing.*at least 1"),
    ({"batch_size": 0}, ValueError, "batch_size"),
    ({"choose": "greddy"}, ValueError, "greedy"),
    ({"step": 1.5}, ValueError, "step"),
)

PROCESSES: tuple[ProcessRow, ...] = (
    ProcessRow("GPExact", _dense(pk.GPExact), ("start", "starts"), _STARTS, groups=True),
    ProcessRow("GPLaplace", _dense(pk.GPLaplace), ("start", "starts"), _STARTS, quick=False),
    ProcessRow(
        "EP",
        _dense(pk.EP),
        ("dampin", "damping"),
        (*_STARTS, ({"power": 0.0}, ValueError, "power")),
    ),
    ProcessRow(
        "CVI",
        _dense(pk.CVI),
        ("steps", "step"),
        (*_STARTS, ({"step": 1.5}, ValueError, "step")),
        quick=False,
    ),
    ProcessRow("HybridEP", _dense(pk.HybridEP), ("max_step", "max_steps"), _STARTS, quick=False),
    *(
        ProcessRow(
            f"{method.__name__}-pair",
            _dense(method),
            ("start", "starts"),
            _STARTS,
            quick=False,
            shares=(0.8, 0.2),
            eager=method not in (pk.EP, pk.HybridEP),
        )
        for method in (pk.EP, pk.CVI, pk.HybridEP, pk.GPLaplace)
    ),
    ProcessRow(
        "SVGP",
        _sparse(pk.SVGP),
        ("induing", "inducing"),
        _SPARSE,
        tolerance=1e-4,
        site="f_inducing",
        groups=True,
    ),
    ProcessRow(
        "TSVGP",
        _sparse(pk.TSVGP),
        ("batchsize", "batch_size"),
        _SPARSE,
        tolerance=1e-4,
        site="f_inducing",
    ),
    ProcessRow(
        "SparseHybridEP",
        _sparse(pk.SparseHybridEP),
        ("chose", "choose"),
        _SPARSE,
        tolerance=1e-4,
        site="f_inducing",
    ),
)
