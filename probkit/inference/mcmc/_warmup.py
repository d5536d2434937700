"""Warm-up of HMC kernels: dual averaging and a metric learnt in windows, inside the one loop.

Stan's schedule: a fast interval (step size alone), slow windows of doubling length, at whose ends
the metric is recomputed and dual averaging restarted, and a last fast interval. Warm-up and draws
run the same body with the same kernel; the schedule is a handful of numbers indexed by ``t``, so
that another number of warm-up steps compiles nothing. After warm-up the step size is the average
of dual averaging (Hoffman and Gelman 2014, section 3.2.1).

Metrics: ``diag`` and ``dense`` (Welford), ``low_rank`` (diagonal plus rank 10, minimising the
Fisher divergence between draws and scores: Seyboldt, Carlson and Carpenter 2026, Algorithm 1).
``auto`` is low-rank up to 1,000 dimensions and diagonal beyond; ``identity`` is a diagonal one
that is left as it begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Target
from probkit.inference.mcmc import _blackjax as bj
from probkit.inference.mcmc._schedule import Schedule
from probkit.inference.mcmc._start import find_start

_LOW_RANK_UP_TO = 1000
_FIRST_STEP = 0.5

State = dict[str, Any]
Kernel = Callable[[Array, Any, Callable, Array, Any], tuple[Any, dict[str, Array]]]


def metric_kind(metric: str, dimension: int) -> str:
    """The accumulator of a metric: what ``auto`` means for a target of this dimension."""
    if metric == "identity":
        return "diag"
    if metric != "auto":
        return metric
    return "low_rank" if 2 <= dimension <= _LOW_RANK_UP_TO else "diag"


def _packed(kind: str, dimension: int, dtype: Any) -> tuple[Any, bj.Packed]:
    core = bj.metric_core(kind, dimension, dtype)
    return core, bj.Packed(lambda: core.init(dimension))


def init_state(key: Array, target: Target, metric: str, target_accept: Any) -> State:
    """State of one chain: a starting point, dual averaging and the metric's accumulators."""
    position, value, gradient = find_start(key, target)
    size = position.shape[0]
    core, packed = _packed(metric_kind(metric, size), size, target.dtype)
    da_init, _ = bj.dual_averaging(target_accept)
    averaging = da_init(jnp.asarray(_FIRST_STEP, target.dtype))
    # Without any warm-up the average is what is used: it begins where the search does.
    averaging = averaging._replace(log_step_size_avg=averaging.log_step_size)
    return {
        "position": position,
        "lp": value,
        "gradient": gradient,
        "averaging": _floats(averaging, target),
        "metric": packed.pack(core.init(size)),
    }


def _floats(averaging: Any, target: Target) -> tuple[Array, ...]:
    return tuple(jnp.asarray(x, target.dtype) for x in averaging)


def adapted_step(
    key: Array,
    target: Target,
    state: State,
    t: Array,
    kernel: Kernel,
    metric: str,
    target_accept: Any,
    schedule: Schedule,
) -> tuple[State, dict[str, Array]]:
    """One transition with the current step size and metric, and what is learnt from each."""
    size = state["position"].shape[0]
    core, packed = _packed(metric_kind(metric, size), size, target.dtype)
    da_init, da_update = bj.dual_averaging(target_accept)
    pair = type(da_init(1.0))
    averaging = pair(*state["averaging"])
    matrix = packed.unpack(state["metric"])
    warming = t < schedule.warmup
    log_step = jnp.where(warming, averaging.log_step_size, averaging.log_step_size_avg)
    step_size = jnp.exp(log_step)
    chain = bj.chain_state(state["position"], state["lp"], state["gradient"])
    chain, info = kernel(key, chain, target.flat_log_density, step_size, matrix.inverse_mass_matrix)
    new = {"position": chain.position, "lp": chain.logdensity, "gradient": chain.logdensity_grad}
    # A NaN acceptance (an energy that overflowed) must shrink the step, not poison it.
    rate = jnp.nan_to_num(info["acceptance_rate"], nan=0.0)

    def learn(carry: tuple) -> tuple:
        pairs, leaves = carry
        pairs = _floats(da_update(pair(*pairs), rate), target)
        slow = (t >= schedule.begin) & (t < schedule.end)
        return pairs, jax.lax.cond(
            slow, lambda m: _gather(core, packed, m, new), lambda m: m, leaves
        )

    carry = (state["averaging"], state["metric"])
    pairs, leaves = jax.lax.cond(warming, learn, lambda c: c, carry)
    info = {"position": chain.position, **info, "acceptance_rate": rate, "step_size": step_size}
    return {**new, "averaging": pairs, "metric": leaves}, info


def close_window(target: Target, state: State, metric: str, target_accept: Any) -> State:
    """The metric of a window that has ended; dual averaging starts again from its average."""
    size = state["position"].shape[0]
    core, packed = _packed(metric_kind(metric, size), size, target.dtype)
    da_init, _ = bj.dual_averaging(target_accept)
    average = jnp.exp(type(da_init(1.0))(*state["averaging"]).log_step_size_avg)
    return {
        **state,
        "averaging": _floats(da_init(average), target),
        "metric": packed.pack(core.final(packed.unpack(state["metric"]))),
    }


def _gather(core: Any, packed: bj.Packed, leaves: tuple, new: dict[str, Array]) -> tuple:
    return packed.pack(core.update(packed.unpack(leaves), new["position"], new["gradient"]))
