"""The Gaussian-process methods: engines with a search for hyperparameters, as `Inference`s."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import (
    Approximation,
    Batch,
    Inference,
    Status,
    Target,
    check_between,
    check_options,
)
from probkit.inference.gaussian import (
    _cvi,
    _ep,
    _gp_exact,
    _gp_laplace,
    _learning,
    _learnt,
    _several_cvi,
    _several_ep,
    _several_laplace,
)
from probkit.inference.gaussian._conditioning import Prior, Sites
from probkit.inference.gaussian._fixed_point import Found
from probkit.inference.gaussian._learning import Engine, Options
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._several_cavities import proper


def ep_engine(power: float, damping: Array | float) -> Engine:
    """EP with its own energy."""
    return Engine(
        lambda p, theta, prior, start, tolerance: _ep.solve(
            p, theta, prior, start, power=power, damping=damping, tolerance=tolerance
        ),
        lambda p, theta, sites: _ep.value(p, theta, sites, power=power),
        several=several_ep_engine(power, damping),
    )


def several_ep_engine(power: float, damping: Array | float) -> Engine:
    """EP of several processes with its own energy."""
    return Engine(
        lambda p, theta, prior, start, tolerance: _several_ep.solve(
            p, theta, prior, start, power=power, damping=damping, tolerance=tolerance
        ),
        lambda p, theta, sites: _several_ep.value(p, theta, sites, power=power),
    )


def cvi_engine(step: Array | float) -> Engine:
    """CVI with the ELBO."""
    return Engine(
        lambda p, theta, prior, start, tolerance: _cvi.solve(
            p, theta, prior, start, step=step, tolerance=tolerance
        ),
        _cvi.value,
        scout=ep_engine(1.0, 0.8),
        several=_several_cvi_engine(step),
    )


def _several_cvi_engine(step: Array | float) -> Engine:
    """CVI of several processes; Laplace's method goes ahead of it."""
    return Engine(
        lambda p, theta, prior, start, tolerance: _several_cvi.solve(
            p, theta, prior, start, step=step, tolerance=tolerance
        ),
        _several_cvi.value,
        scout=several_laplace_engine(),
    )


def several_laplace_engine(closed: bool = False) -> Engine:
    """Laplace's approximation of several processes."""
    return Engine(
        lambda p, theta, prior, start, tolerance: _several_laplace.solve(
            p, theta, prior, start, tolerance=tolerance
        ),
        _several_laplace.value,
        closed=closed,
        tight=0.05,
    )


def hybrid_engine(step: Array | float) -> Engine:
    """CVI's sites under EP's energy, differentiated at frozen sites."""
    return Engine(
        cvi_engine(step).solve,
        lambda p, theta, sites: _ep.value(p, theta, sites, exact=False),
        root=True,
        scout=ep_engine(1.0, 0.8),
        several=_several_hybrid_engine(step),
    )


def _several_hybrid_engine(step: Array | float) -> Engine:
    """CVI's sites of several processes, with proper cavities, under EP's energy."""
    return Engine(
        lambda p, theta, prior, start, tolerance: _several_cvi.solve(
            p, theta, prior, start, step=step, tolerance=tolerance, allowed=proper
        ),
        lambda p, theta, sites: _several_ep.value(p, theta, sites, exact=False),
        root=True,
        scout=several_ep_engine(1.0, 0.8),
    )


def laplace_engine() -> Engine:
    """Laplace's approximation with its total derivative."""
    return Engine(
        lambda p, theta, prior, start, tolerance: _gp_laplace.solve(
            p, theta, prior, start, tolerance=tolerance
        ),
        _gp_laplace.value,
        several=several_laplace_engine(closed=True),
    )


def exact_engine() -> Engine:
    """Gaussian terms are their own sites."""

    def solve(
        problem: Problem, theta: Array, prior: Prior, start: Sites, tolerance: Array
    ) -> Found:
        zero = jnp.zeros((), prior.m.dtype)
        return Found(start, zero, jnp.int32(0), jnp.int32(0))

    def check(problem: Problem) -> None:
        if problem.kind != "gaussian":
            raise ValueError(
                "GPExact: the terms of this model are not Gaussian in the latent function with a "
                "scale that does not depend on it; use pk.EP(), pk.CVI(), pk.HybridEP() or "
                "pk.GPLaplace()"
            )

    return Engine(
        solve,
        lambda problem, theta, sites: _gp_exact.value(problem, theta),
        check=check,
        told=_gp_exact.evidence,
    )


class GPMethod(Inference):
    """A Gaussian process by one of five engines, hyperparameters at the optimum of its evidence.

    Abstract: the final classes `EP`, `CVI`, `HybridEP`, `GPLaplace` and `GPExact` say which
    engine it is, and which options of its own it has (``own``: shares, with their defaults). They
    inherit the one constructor by name, because type checkers take it for that of a dataclass
    otherwise.

    Attributes:
        power: EP's power (other engines: 1).
        damping: the step of EP's and CVI's updates at the most (other engines: 1).
        objective: what the hyperparameters maximise, ``"map"`` or ``"ml2"``.
    """

    own: ClassVar[Mapping[str, float]] = {}

    draws: int
    damping: float
    tolerance: float
    objective: str = eqx.field(static=True)
    power: float = eqx.field(static=True)
    starts: int = eqx.field(static=True)
    screen: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        draws: int = 500,
        *,
        objective: str = "map",
        starts: int = 2,
        screen: int = 4,
        max_steps: int = 100,
        tolerance: float = 1e-5,
        **own: Any,
    ):
        name = type(self).__name__
        unknown = {k: v for k, v in own.items() if k not in self.own}
        check_options(name, unknown, (*self.own, *_learning.OPTIONS))
        shared = Options.checked(name, draws, objective, starts, screen, max_steps, tolerance)
        self.draws, self.objective, self.starts = shared.draws, shared.objective, shared.starts
        self.screen, self.max_steps = shared.screen, shared.max_steps
        self.tolerance = shared.tolerance
        shares = {
            key: check_between(f"{name}({key})", value, 0.0, 1.0 + 1e-12)
            for key, value in {**self.own, **own}.items()
        }
        self.power = shares.get("power", 1.0)
        # CVI calls its damping a step.
        self.damping = shares.get("damping", shares.get("step", 1.0))

    @property
    def init_on_host(self) -> bool:
        return True

    @property
    @abc.abstractmethod
    def engine(self) -> Engine:
        """The engine's functions."""

    @property
    def chains(self) -> int:
        return self.starts

    @property
    def num_steps(self) -> int:
        return self.max_steps + self.screen

    @property
    def requires(self) -> tuple[str, ...]:
        return ("gaussian_latent",) if self.engine.several is None else ("gaussian_latents",)

    def init(self, key: Any, target: Target) -> dict[str, Any]:
        return _learning.init(key, target, self.engine.fitting(target), self.screen)

    def step(
        self, key: Array, target: Target, state: dict[str, Array], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        engine = self.engine.fitting(target)
        return _learning.step(target, state, engine, self.objective, self.tolerance)

    def terminate(self, state: dict[str, Array], info: dict[str, Array]) -> tuple[Array, Array]:
        # (A lost search is none of the result's business where another one ended.)
        return state["done"], jnp.int32(int(Status.OK))

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        name, engine = type(self).__name__, self.engine.fitting(target)
        return _learnt.finish(target, state, history, int(self.draws), name, engine)


class EP(GPMethod):
    """Expectation propagation for a Gaussian process, with its hyperparameters.

    Args:
        draws: draws that stand for the result (all other options by name only).
        power: 1 is EP; smaller powers lie between EP and variational inference.
        damping: share of an update that is taken; it is halved by itself where sites oscillate.
        objective: ``"map"`` maximises log evidence plus log prior of the hyperparameters (in the
            unconstrained space), ``"ml2"`` the log evidence alone.
        starts: searches for hyperparameters; the best is kept.
        screen: scattered points that each search chooses its start from.
        max_steps: evaluations of the evidence at the most, a search.
        tolerance: a search ends when less than this is to be gained, in nats.

    Takes several processes along the same rows too, where every observation depends on one row of
    them (softmax classes, a mean and a log scale). Sites are then of whole rows, with precisions
    that couple the processes of a row, and a step costs a Cholesky factor of ``C n`` rows and its
    inverse. Tilted moments are by nodes put where each row's integrand is: for softmax terms, and
    for two processes of any kind, to 1e-7 and better where functions' sds are 3 or less; of Sobol
    points for five classes and more, to 1e-3.

    Raises:
        TypeError, ValueError: a misspelt option or one out of range; at fitting, more rows than
            memory holds (the message says how many would fit).

    Example:
        >>> import probkit as pk
        >>> pk.EP(damping=0.5).chains
        2
    """

    own = {"power": 1.0, "damping": 0.8}
    __init__ = GPMethod.__init__

    @property
    def engine(self) -> Engine:
        return ep_engine(self.power, self.damping)


class CVI(GPMethod):
    """Variational inference for a Gaussian process by natural gradients (dual parameters).

    The Gaussian with the largest evidence lower bound; for Gaussian terms it is exact after one
    step. The search for hyperparameters begins at EP's optimum. Options as for `EP`; ``step`` is
    the natural gradient's, halved where sites oscillate.

    Takes several processes along the same rows too, where every observation depends on one row of
    them (softmax classes, a mean and a log scale). Expectations are then by fixed nodes, a product
    rule of 40 and 20 a dimension for two and three processes and 4,096 quasi-random points for
    more (softmax terms of C classes count as C - 1 processes); a step costs a Cholesky factor of
    ``C n`` rows.

    Raises:
        TypeError, ValueError: a misspelt option or one out of range; at fitting, more rows than
            memory holds (the message says how many would fit).

    Example:
        >>> import probkit as pk
        >>> pk.CVI(objective="ml2").objective
        'ml2'
    """

    own = {"step": 1.0}
    __init__ = GPMethod.__init__

    @property
    def engine(self) -> Engine:
        return cvi_engine(self.damping)


class HybridEP(GPMethod):
    """Variational inference for the function, EP's log evidence for the hyperparameters.

    The sites are CVI's; the hyperparameters end where EP's energy at those sites, differentiated
    with the sites frozen, has no slope. The search begins at EP's own optimum. Options as for
    `CVI`, and several processes as for `EP` and `CVI`.

    Raises:
        TypeError, ValueError: a misspelt option or one out of range; at fitting, more rows than
            memory holds (the message says how many would fit).

    Example:
        >>> import probkit as pk
        >>> pk.HybridEP(step=0.5).requires
        ('gaussian_latents',)
    """

    own = {"step": 1.0}
    __init__ = GPMethod.__init__

    @property
    def engine(self) -> Engine:
        return hybrid_engine(self.damping)


class GPLaplace(GPMethod):
    """Laplace's approximation in the function, at the optimum of its evidence for the rest.

    Unlike `Laplace`, which is a normal over everything at the joint mode, hyperparameters are
    chosen by a log evidence in which the function is integrated out. Options as for `EP`.

    Takes several processes along the same rows too, where every observation depends on one row of
    them: ``C + 1`` Cholesky factors of ``n`` rows a step for softmax terms of one label a row
    (Rasmussen and Williams 2006, section 3.5), else one of ``C n`` rows. The joint mode of a mean
    and its log scale can be far from where the mass is: take `CVI` there.

    Raises:
        TypeError, ValueError: a misspelt option or one out of range; at fitting, more rows than
            memory holds (the message says how many would fit).

    Example:
        >>> import probkit as pk
        >>> pk.GPLaplace(starts=4).chains
        4
    """

    __init__ = GPMethod.__init__

    @property
    def engine(self) -> Engine:
        return laplace_engine()


class GPExact(GPMethod):
    """A Gaussian process with Gaussian noise: exact in the function, an optimum in the rest.

    Options as for `EP`.

    Raises:
        TypeError, ValueError: a misspelt option or one out of range; at fitting, terms that are
            not Gaussian in the latent function.

    Example:
        >>> import probkit as pk
        >>> pk.GPExact().requires
        ('gaussian_latent',)
    """

    __init__ = GPMethod.__init__

    @property
    def engine(self) -> Engine:
        return exact_engine()
