r"""Hamiltonian Monte Carlo with trajectories whose length does not depend on the state.

(Neal 2011, section 2.) Along a direction of frequency w a trajectory of length T turns the position
by w T: where that is near a multiple of 2 pi the chain comes back to where it was, whatever its
acceptance rate (section 3.2 there). So the number of leapfrog steps varies from transition to
transition,

    L_t = round(L (1 + j (2 u_t - 1))),    u_t = frac((t + 1) (sqrt 5 - 1) / 2),

a sequence that fills (0, 1) evenly and depends on nothing but ``t``: each kernel leaves the target
invariant, and chains that step together take equally many steps. The warm-up is that of `NUTS`. A
step costs ``leapfrog`` gradients on average.
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

_OPTIONS = ("draws", "warmup", "chains", "leapfrog", "jitter", "target_accept", "metric")
#: The golden section of the unsigned integers: their product with it, modulo 2^32, is exact.
_GOLDEN = 2654435769


class HMC(Inference):
    """Hamiltonian Monte Carlo with trajectories of a given number of leapfrog steps.

    Args:
        draws: draws a chain that are kept.
        warmup: adaptation steps a chain before them.
        chains: independent chains (in turns on a CPU, vectorised elsewhere).
        leapfrog: leapfrog steps a trajectory, on average. On a GPU, where chains wait for the
            longest trajectory, a number that is the same for all can beat `NUTS`.
        jitter: how far the number of steps varies, as a share of it: between
            ``leapfrog (1 - jitter)`` and ``leapfrog (1 + jitter)``. A half covers half a period or
            more wherever a whole period was hit; 0 keeps all trajectories equal, which can
            resonate.
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
    jitter: float
    _chains: int = eqx.field(static=True)
    metric: str = eqx.field(static=True)

    def __init__(
        self,
        draws: int = 1000,
        warmup: int = 1000,
        chains: int = 4,
        leapfrog: int = 16,
        jitter: float = 0.5,
        target_accept: float = 0.8,
        metric: str = "auto",
        **unknown: Any,
    ):
        check_options("HMC", unknown, _OPTIONS)
        self.draws = check_count("HMC(draws)", draws)
        self.schedule = Schedule(check_count("HMC(warmup)", warmup, least=0), metric)
        self._chains = check_count("HMC(chains)", chains)
        self.leapfrog = check_count("HMC(leapfrog)", leapfrog)
        self.jitter = check_between("HMC(jitter)", jitter, -1e-12, 1.0)
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

        def kernel(key, chain, log_density, step_size, metric):
            from probkit.inference.mcmc import _blackjax as bj

            steps = self._leapfrogs(t, target.dtype)
            return bj.hmc_step(key, chain, log_density, step_size, metric, steps)

        return adapted_step(
            key, target, state, t, kernel, self.metric, self.target_accept, self.schedule
        )

    def _leapfrogs(self, t: Array, dtype: Any) -> Array:
        """The number of leapfrog steps of transition ``t``."""
        turned = (jnp.asarray(t, jnp.uint32) + 1) * jnp.uint32(_GOLDEN)
        u = turned.astype(dtype) / 2.0**32
        steps = self.leapfrog * (1.0 + self.jitter * (2.0 * u - 1.0))
        return jnp.maximum(jnp.floor(steps + 0.5), 1.0).astype(jnp.int32)

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        lost = ~jnp.isfinite(state["lp"])
        return lost, jnp.where(lost, int(Status.NONFINITE), int(Status.OK)).astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: dict[str, Any], history: dict[str, np.ndarray]
    ) -> Draws:
        return split_history(self, state, history)
