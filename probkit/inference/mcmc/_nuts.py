"""The No-U-Turn Sampler, through blackjax (default) or NumPyro.

Each step doubles a leapfrog trajectory until it turns back on itself and draws the next point from
it by multinomial sampling (Hoffman and Gelman 2014; Betancourt 2017, appendix A). A step costs up
to ``2**max_depth`` gradients, plus O(d k) for the low-rank metric.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import (
    Batch,
    Draws,
    Inference,
    Status,
    Target,
    check_between,
    check_choice,
    check_count,
    check_options,
)
from probkit.core._wrappers import split_history
from probkit.inference.mcmc._schedule import Schedule

METRICS = ("auto", "low_rank", "diag", "dense", "identity")
_OPTIONS = ("draws", "warmup", "chains", "target_accept", "max_depth", "metric", "engine")


class NUTS(Inference):
    """The No-U-Turn Sampler.

    Args:
        draws: draws a chain that are kept.
        warmup: adaptation steps a chain before them (kept apart, in the warm-up groups).
        chains: independent chains (in turns on a CPU, vectorised elsewhere).
        target_accept: acceptance rate that the step size is tuned to. 0.8 suits most models;
            raise it to 0.95 or 0.99 where there are divergences.
        max_depth: a trajectory has at most ``2**max_depth`` leapfrog steps.
        metric: ``"auto"``, ``"low_rank"``, ``"diag"`` or ``"dense"``: the mass matrix that is
            learnt. Low rank finds strong correlations at little cost. ``"identity"`` learns none:
            for densities whose coordinates have unit scale already, warm-up is the step size's.
        engine: ``"blackjax"`` or ``"numpyro"`` (diagonal or dense metric).

    Raises:
        TypeError: a misspelt option, or one of the wrong type.
        ValueError: a number out of range, an unknown metric or engine.

    Example:
        >>> import probkit as pk
        >>> pk.NUTS(draws=500, target_accept=0.9).num_steps
        1500
    """

    draws: int
    schedule: Schedule
    target_accept: float
    _chains: int = eqx.field(static=True)
    max_depth: int = eqx.field(static=True)
    metric: str = eqx.field(static=True)
    engine: str = eqx.field(static=True)
    static_warmup: int = eqx.field(static=True)

    def __init__(
        self,
        draws: int = 1000,
        warmup: int = 1000,
        chains: int = 4,
        target_accept: float = 0.8,
        max_depth: int = 10,
        metric: str = "auto",
        engine: str = "blackjax",
        **unknown: Any,
    ):
        check_options("NUTS", unknown, _OPTIONS)
        self.draws = check_count("NUTS(draws)", draws)
        self.schedule = Schedule(check_count("NUTS(warmup)", warmup, least=0), metric)
        self._chains = check_count("NUTS(chains)", chains)
        self.target_accept = check_between("NUTS(target_accept)", target_accept, 0.0, 1.0)
        self.max_depth = check_count("NUTS(max_depth)", max_depth)
        check_choice("NUTS(metric)", metric, METRICS)
        check_choice("NUTS(engine)", engine, ("blackjax", "numpyro"))
        if engine == "numpyro" and metric == "low_rank":
            raise ValueError(
                "NUTS: NumPyro's engine has no low-rank metric; use metric='dense' or 'diag', or "
                "engine='blackjax'"
            )
        self.metric = metric
        self.engine = engine
        # NumPyro builds its windows into the program.
        self.static_warmup = self.schedule.warmup if engine == "numpyro" else 0

    @property
    def warmup(self) -> int:
        """Adaptation steps a chain."""
        return self.schedule.warmup

    @property
    def chains(self) -> int:
        return self._chains

    @property
    def num_steps(self) -> int:
        return self.draws + self.schedule.warmup

    @property
    def num_warmup(self) -> int:
        return self.schedule.warmup

    @property
    def density_only(self) -> bool:
        return True

    @property
    def elementary(self) -> bool:
        return self.engine == "blackjax"

    @property
    def settling(self) -> Any:
        return self.schedule.ends if self.engine == "blackjax" else None

    def settle(self, target: Target, state: dict[str, Any]) -> dict[str, Any]:
        from probkit.inference.mcmc._warmup import close_window

        return close_window(target, state, self.metric, self.target_accept)

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        if self.engine == "numpyro":
            from probkit.inference.mcmc import _numpyro_engine as np_engine

            return np_engine.init_state(key, target, self)
        from probkit.inference.mcmc._warmup import init_state

        return init_state(key, target, self.metric, self.target_accept)

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.engine == "numpyro":
            from probkit.inference.mcmc import _numpyro_engine as np_engine

            return np_engine.step(key, target, state, self)
        from probkit.inference.mcmc._warmup import adapted_step

        return adapted_step(
            key, target, state, t, self._kernel, self.metric, self.target_accept, self.schedule
        )

    def _kernel(self, key, chain, log_density, step_size, metric):
        from probkit.inference.mcmc import _blackjax as bj

        return bj.nuts_step(key, chain, log_density, step_size, metric, self.max_depth)

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        lost = ~jnp.isfinite(state["lp"])
        return lost, jnp.where(lost, int(Status.NONFINITE), int(Status.OK)).astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: dict[str, Any], history: dict[str, np.ndarray]
    ) -> Draws:
        return split_history(self, state, history)
