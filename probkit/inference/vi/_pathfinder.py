r"""Multi-path Pathfinder (Zhang, Carpenter, Gelman and Vehtari 2022), through BlackJAX.

Every path climbs by L-BFGS from a start of its own; each of its iterates gives a Gaussian with the
optimiser's inverse Hessian, and the one with the highest ELBO is kept. The paths' Gaussians make a
mixture with weights proportional to ``exp(ELBO_k)`` (a Gaussian's ELBO is nearly the log mass of
the mode that it covers). The paper's last step, importance resampling of the mixture's draws, is
``posterior.importance_resample()``. Departure: the paper gives all paths the same weight, so that
one that ended badly costs draws.

Cost: some hundred gradients a path, ``max_steps`` times ``elbo_draws`` densities, O(d^2) a draw.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import (
    Approximation,
    Batch,
    Inference,
    Status,
    Target,
    check_count,
    check_options,
)
from probkit.inference.mcmc._start import find_start
from probkit.inference.vi._family import LOG_2PI
from probkit.inference.vi._mode_check import mode_check


class Pathfinder(Inference):
    """A mixture of Gaussians found along optimisation paths: fast, and a start for better methods.

    Args:
        draws: draws that stand for the approximation in the posterior.
        paths: optimisation paths, each from a start of its own.
        max_steps: steps of L-BFGS a path at the most.
        elbo_draws: draws that judge each Gaussian along a path.

    Raises:
        TypeError, ValueError: a misspelt option or a number out of range.

    Example:
        >>> import probkit as pk
        >>> pk.Pathfinder(paths=8).chains
        8
    """

    draws: int
    paths: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    elbo_draws: int = eqx.field(static=True)

    def __init__(
        self,
        draws: int = 4000,
        paths: int = 4,
        max_steps: int = 60,
        elbo_draws: int = 100,
        **unknown: Any,
    ):
        check_options("Pathfinder", unknown, ("draws", "paths", "max_steps", "elbo_draws"))
        self.draws = check_count("Pathfinder(draws)", draws)
        self.paths = check_count("Pathfinder(paths)", paths)
        self.max_steps = check_count("Pathfinder(max_steps)", max_steps)
        self.elbo_draws = check_count("Pathfinder(elbo_draws)", elbo_draws, least=2)

    @property
    def chains(self) -> int:
        return self.paths

    @property
    def num_steps(self) -> int:
        return 0

    @property
    def density_only(self) -> bool:
        return True

    def init(self, key: Array, target: Target) -> dict[str, Array]:
        from probkit.inference.vi._blackjax_vi import paths

        first, second = jax.random.split(key)
        start, _, _ = find_start(first, target)
        fn = target.flat_log_density
        found = paths(second, fn, start[None], self.elbo_draws, self.max_steps)
        return jax.tree.map(lambda x: x[0], found)

    def step(
        self, key: Array, target: Target, state: Any, batch: Batch | None, t: Array
    ) -> tuple[Any, dict[str, Array]]:
        return state, {}

    def terminate(self, state: Any, info: dict[str, Array]) -> tuple[Array, Array]:
        return jnp.asarray(True), jnp.asarray(0, jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        elbo = np.asarray(state["elbo"], float)
        fine = np.isfinite(elbo) & np.all(np.isfinite(state["tril"]), axis=(1, 2))
        fine &= np.all(np.isfinite(state["mean"]), axis=1)
        if not fine.any():
            raise ValueError(
                "Pathfinder: no path found a Gaussian with a finite ELBO.\n"
                f"{target.check(np.asarray(key))}"
            )
        dtype = np.asarray(state["mean"]).dtype
        top = float(elbo[fine].max())
        # A path that failed keeps its place, so that the program does not depend on how many did.
        weight = np.where(fine, np.exp(np.where(fine, elbo, top) - top), 0.0)
        size = target.program.flat.size
        params = {
            "mean": np.where(fine[:, None], state["mean"], 0.0).astype(dtype),
            "tril": np.where(fine[:, None, None], state["tril"], np.eye(size)).astype(dtype),
            "log_weight": np.log(np.maximum(weight / weight.sum(), 1e-30)).astype(dtype),
        }
        stats = {"paths": len(elbo), "paths_failed": int(np.sum(~fine)), "best_path_elbo": top}
        return Approximation(
            sample=sample,
            log_density=log_density,
            params=params,
            draws=int(self.draws),
            key=("pathfinder", len(elbo)),
            stats=stats,
            status=Status.OK,
            examine=(mode_check,),
        )


def sample(params: dict[str, Any], key: Array, n: int) -> Array:
    """``n`` draws of the mixture, shape ``(n, d)``."""
    first, second = jax.random.split(key)
    which = jax.random.categorical(first, params["log_weight"], shape=(n,))
    noise = jax.random.normal(second, (n, params["mean"].shape[1]), params["mean"].dtype)
    return params["mean"][which] + jnp.einsum("nij,nj->ni", params["tril"][which], noise)


def log_density(params: dict[str, Any], x: Array) -> Array:
    """Log density of the mixture at one point, shape ``(d,)``."""

    def one(mean: Array, tril: Array) -> Array:
        white = jax.scipy.linalg.solve_triangular(tril, x - mean, lower=True)
        log_det = jnp.sum(jnp.log(jnp.diag(tril)))
        return -0.5 * jnp.dot(white, white) - log_det - 0.5 * x.shape[0] * LOG_2PI

    each = jax.vmap(one)(params["mean"], params["tril"])
    return jax.nn.logsumexp(each + params["log_weight"])
