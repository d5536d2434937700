"""The contract that every inference method keeps, and the two kinds of result.

A method is an immutable configuration with four pure functions::

    init(key, target) -> state
    step(key, target, state, batch, t) -> (state, info)
    terminate(state, info) -> (done, status)
    finish(key, target, state, history) -> Draws | Approximation

``init``, ``step`` and ``terminate`` are written for one chain and traced; `run` vmaps them over
chains and owns the step number ``t``, which is never batched. ``info`` is a dictionary of arrays
of fixed shapes and is what `run` stacks into ``history``; ``finish`` runs on the host, on all
chains at once, with host arrays of shape ``(chain, step, ...)``. A direct solve has
``num_steps = 0`` and does its work in ``init``.

Work that is due after a few known steps only (a metric at the end of a window) may stand in
``settle``, with the numbers of those steps in ``settling``: the steps in between can then run as
one kernel (`probkit.core._one_kernel`), if the method says that they are ``elementary``.

Fields that change the compiled program are ``eqx.field(static=True)``; all others (tuning targets,
step sizes) are leaves, and traced, so that changing them compiles nothing.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from probkit.core._check import Check
from probkit.core._status import Status
from probkit.core._target import Batch, Target
from probkit.core._weights import Weights

#: ``info`` entries that are points of the unconstrained space, not statistics.
POSITION = "position"


def _is_option(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return value.ndim == 0 and not isinstance(value, Tracer)
    return isinstance(value, (str, int, float, Inference)) or value is None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (np.ndarray, np.generic, jax.Array)) else value


class Inference(eqx.Module):
    """Abstract base of all methods. See the module's text for the contract.

    Final classes define the four functions and the properties below. Wrappers (`Thin`, ...) hold
    another method and keep the same contract.
    """

    def __repr__(self) -> str:
        # The options that are numbers or names; schedules and other derived fields are left out.
        options = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        shown = [f"{k}={_plain(v)!r}" for k, v in options.items() if _is_option(v)]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    @abc.abstractmethod
    def chains(self) -> int:
        """Number of independent copies that `run` makes of the state."""

    @property
    @abc.abstractmethod
    def num_steps(self) -> int:
        """Number of steps at the most; 0 for a direct solve."""

    @property
    def requires(self) -> tuple[str, ...]:
        """Capabilities of the Target that the method cannot do without."""
        return ("latents",)

    @property
    def batches(self) -> Batches | None:
        """Mini-batches that each step is given, or None for the whole data."""
        return None

    @property
    def density_only(self) -> bool:
        """Whether traced code reaches the Target through its log density (and mini-batches) only.

        Then compiled programs can be kept on disk by the density's fingerprint; see
        `probkit.core._programs`. False is always safe.
        """
        return False

    @property
    def num_warmup(self) -> int:
        """Number of leading steps that are adaptation, not draws."""
        return 0

    @property
    def elementary(self) -> bool:
        """Whether a step, the log density aside, is arithmetic, loops and branches alone.

        No matrix decompositions, sorts or callbacks, for they cannot stand in one kernel. False is
        always safe.
        """
        return False

    @property
    def init_on_host(self) -> bool:
        """Whether `init` is NumPy code: a few zeros need no compiler.

        Then it is called as it is, with a `numpy.random.Generator` (of the run's key and the
        chain's number) in the place of a key, and returns NumPy arrays.
        """
        return False

    @property
    def settling(self) -> Array | np.ndarray | None:
        """Numbers of the steps after which `settle` is due (integers, shape ``(k,)``), or None."""
        return None

    def settle(self, target: Target, state: PyTree) -> PyTree:
        """What is done to a chain's state after the steps in `settling` (traced)."""
        return state

    @abc.abstractmethod
    def init(self, key: Any, target: Target) -> PyTree:
        """The state of one chain before its first step (traced, or see `init_on_host`)."""

    @abc.abstractmethod
    def step(
        self, key: Array, target: Target, state: PyTree, batch: Batch | None, t: Array
    ) -> tuple[PyTree, dict[str, Array]]:
        """One step of one chain (traced); ``t`` counts from 0 and is not batched."""

    @abc.abstractmethod
    def terminate(self, state: PyTree, info: dict[str, Array]) -> tuple[Array, Array]:
        """Whether this chain is done, and with which `Status` code (traced)."""

    @abc.abstractmethod
    def finish(
        self, key: np.ndarray, target: Target, state: PyTree, history: dict[str, np.ndarray]
    ) -> Draws | Approximation:
        """Turn the last state and the stacked infos into a result (on the host)."""


def whole_step(
    method: Inference, key: Array, target: Target, state: PyTree, batch: Batch | None, t: Array
) -> tuple[PyTree, dict[str, Array]]:
    """A step of another method and, where it is due, its `settle`: what wrappers call."""
    state, info = method.step(key, target, state, batch, t)
    if method.settling is None:
        return state, info
    due = jnp.any(jnp.asarray(method.settling) == t)
    return jax.lax.cond(due, lambda s: method.settle(target, s), lambda s: s, state), info


class Batches(eqx.Module):
    """Mini-batches without replacement along one dim: a fresh permutation every epoch.

    Attributes:
        size: rows a batch; the last incomplete batch of an epoch is dropped.
        dim: the dim whose rows are drawn; None takes the dim of the observed variable.
        per_step: batches that one step is given, one after the other in one index array of
            ``per_step * size`` rows; for methods that take several small steps a draw.

    Example:
        >>> Batches(size=32).size
        32
    """

    size: int = eqx.field(static=True)
    dim: str | None = eqx.field(static=True, default=None)
    per_step: int = eqx.field(static=True, default=1)


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws in the unconstrained space, shape ``(chain, draw, d)``, with statistics by name."""

    unconstrained: np.ndarray
    stats: dict[str, np.ndarray] = field(default_factory=dict)
    warmup: np.ndarray | None = None
    warmup_stats: dict[str, np.ndarray] = field(default_factory=dict)
    status: Status = Status.OK


@dataclass(frozen=True, eq=False)
class Approximation:
    """A distribution over the unconstrained space that can be sampled.

    Attributes:
        sample: ``(key, n) -> (n, d)`` unconstrained draws (traceable; ``n`` static).
        log_density: ``(d,) -> scalar``, or None where only draws can be had.
        draws: number of draws that stand for it in the posterior.
        log_evidence: the method's own estimate of the log evidence, or None.
        stats: figures of the fit by name.
        key: what a compiled sampler may be shared by (hashable), together with ``params``.
        params: arrays that ``sample`` and ``log_density`` take first.
        weights: importance weights, where the method needed them itself; otherwise they are
            computed when the verdict is asked for.
        checks: what the method judged itself; part of the verdict.
        examine: further judges, called when the verdict is asked for:
            ``(target, approximation, key data, weights) -> checks``.
        target: whose points the draws are, where they are not those of the Target that was fitted
            (a form of the model with fewer coordinates, say); the Posterior's target then.
        source: the Target that was fitted, where ``target`` is given.
        ahead: log predictive densities of other rows by the method's own integral, ``(n*,)``:
            ``(source, approximation, the model bound to these rows) -> densities``. Asked only
            where one variable is observed, each of its entries at the row it depends on.
    """

    sample: Callable[..., Array]
    log_density: Callable[..., Array] | None
    params: PyTree
    draws: int
    key: Any
    log_evidence: float | None = None
    stats: dict[str, Any] = field(default_factory=dict)
    status: Status = Status.OK
    weights: Weights | None = None
    checks: tuple[Check, ...] = ()
    examine: tuple[Callable[..., list[Check]], ...] = ()
    target: Target | None = None
    source: Target | None = None
    ahead: Callable[..., np.ndarray] | None = None
