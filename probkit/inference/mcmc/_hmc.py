"""Hamiltonian Monte Carlo with trajectories of a fixed number of leapfrog steps.

(Neal 2011, section 2.) The warm-up is that of `NUTS`. A step costs ``leapfrog`` gradients.
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
from probkit.inference.mcmc._nuts import METRICS
from probkit.inference.mcmc._schedule import Schedule

_OPTIONS = ("draws", "warmup", "chains", "leapfrog", "target_accept", "metric")


class HMC(Inference):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps.

    Args:
        draws: draws a chain that are kept.
        warmup: adaptation steps a chain before them.
        chains: independent chains (in turns on a CPU, vectorised elsewhere).
        leapfrog: leapfrog steps a trajectory. On a GPU, where chains wait for the longest
            trajectory, a fixed number can beat `NUTS`.
        target_accept: acceptance rate that the step size is tuned to (0.65 is optimal for HMC in
            high dimensions: Beskos et al. 2013; 0.8 is safer).
        metric: as for `NUTS`.

    Raises:
        TypeError, ValueError: as for `NUTS`.

    Example:
        >>> import probkit as pk
        >>> pk.HMC(leapfrog=20).num_steps
        2000
    """

    draws: int
    schedule: Schedule
    target_accept: float
    leapfrog: int
    _chains: int = eqx.field(static=True)
    metric: str = eqx.field(static=True)

    def __init__(
        self,
        draws: int = 1000,
        warmup: int = 1000,
        chains: int = 4,
        leapfrog: int = 16,
        target_accept: float = 0.8,
        metric: str = "auto",
        **unknown: Any,
    ):
        check_options("HMC", unknown, _OPTIONS)
        self.draws = check_count("HMC(draws)", draws)
        self.schedule = Schedule(check_count("HMC(warmup)", warmup, least=0))
        self._chains = check_count("HMC(chains)", chains)
        self.leapfrog = check_count("HMC(leapfrog)", leapfrog)
        self.target_accept = check_between("HMC(target_accept)", target_accept, 0.0, 1.0)
        check_choice("HMC(metric)", metric, METRICS)
        self.metric = metric

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
        return True

    @property
    def settling(self) -> Any:
        return self.schedule.ends

    def settle(self, target: Target, state: dict[str, Any]) -> dict[str, Any]:
        from probkit.inference.mcmc._warmup import close_window

        return close_window(target, state, self.metric, self.target_accept)

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        from probkit.inference.mcmc._warmup import init_state

        return init_state(key, target, self.metric, self.target_accept)

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        from probkit.inference.mcmc._warmup import adapted_step

        return adapted_step(
            key, target, state, t, self._kernel, self.metric, self.target_accept, self.schedule
        )

    def _kernel(self, key, chain, log_density, step_size, metric):
        from probkit.inference.mcmc import _blackjax as bj

        return bj.hmc_step(key, chain, log_density, step_size, metric, self.leapfrog)

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        lost = ~jnp.isfinite(state["lp"])
        return lost, jnp.where(lost, int(Status.NONFINITE), int(Status.OK)).astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: dict[str, Any], history: dict[str, np.ndarray]
    ) -> Draws:
        return split_history(self, state, history)
