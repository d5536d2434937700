r"""A Gaussian whose precision has the sparsity of the model's graph.

Two latent entries that share no factor are independent given the rest: that entry of the
posterior's Hessian is zero at every point. The family's precision is ``C C'`` with ``C`` lower
triangular and zero wherever Cholesky factorisation cannot fill it in, entries taken in the reverse
order of the graph (children before parents: local effects hang on their parents and on nothing
else, so that nothing fills in). ``w = m + C^{-T} e``; a draw costs O(d^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.vi._family import (
    Family,
    Params,
    Pushed,
    draw_by_push,
    normal_log_density,
)
from probkit.inference.vi._scale_maps import free_of, scale_of, settle_scale

_LARGEST = 256


@dataclass(frozen=True)
class Structured(Family):
    """A Gaussian with the sparse precision of the model's graph.

    Example:
        >>> Structured().dense
        False
    """

    scale: str = "linear"
    dense: bool = False

    def check_size(self, size: int) -> None:
        if size > _LARGEST:
            raise ValueError(
                f"VI(family='structured'): expected at most {_LARGEST} unconstrained entries (it "
                f"reads the model's structure off the Hessian), found {size}; use "
                "family='meanfield' or 'lowrank'"
            )

    def init(self, key: Array, start: Params) -> Params:
        w = start["w"]
        size = w.shape[0]
        eye = jnp.eye(size, dtype=w.dtype)
        pattern = start.get("pattern", jnp.ones((size, size), bool))[::-1, ::-1]
        # Diagonally dominant, so that the factorisation succeeds; no term cancels another.
        dominant = jnp.where(pattern, 1.0 / (2.0 * size), 0.0).astype(w.dtype) + eye
        mask = (jnp.abs(jnp.linalg.cholesky(dominant)) > 0).astype(w.dtype)
        precision = start.get("precision", eye)[::-1, ::-1]
        tril = jnp.linalg.cholesky(jnp.where(pattern, precision, 0.0))
        # Leaving out entries of a precision can spoil it; its diagonal never is.
        tril = jnp.where(jnp.all(jnp.isfinite(tril)), tril, jnp.diag(jnp.sqrt(jnp.diag(precision))))
        return {
            "loc": w,
            "scale": free_of(self.scale, jnp.diag(tril)),
            "lower": mask * jnp.tril(tril, -1),
            "mask": mask,
        }

    def noise(self, key: Array, n: int, size: int, dtype: Any) -> Array:
        return jax.random.normal(key, (n, size), dtype)

    def _factor(self, params: Params) -> Array:
        lower = jax.lax.stop_gradient(params["mask"]) * jnp.tril(params["lower"], -1)
        return lower + jnp.diag(scale_of(self.scale, params["scale"]))

    def _log_det(self, params: Params) -> Array:
        return jnp.sum(jnp.log(scale_of(self.scale, params["scale"])))

    def push(self, params: Params, noise: Array) -> Pushed:
        factor = self._factor(params)
        moved = jax.scipy.linalg.solve_triangular(factor, noise, trans=1, lower=True)[::-1]
        log_q = normal_log_density(noise) + self._log_det(params)
        score = -(jax.lax.stop_gradient(factor) @ noise)[::-1]
        return Pushed(params["loc"] + moved, log_q, jnp.ones((), noise.dtype), score)

    def log_density(self, params: Params, w: Array) -> Array:
        noise = self._factor(params).T @ (w - params["loc"])[::-1]
        return normal_log_density(noise) + self._log_det(params)

    def draw(self, params: Params, key: Array, n: int, size: int) -> Array:
        return draw_by_push(self, params, key, n, size)

    def settle(self, new: Params, old: Params, step: Params, prox: bool) -> Params:
        scale = settle_scale(self.scale, new["scale"], old["scale"], step["scale"], False)
        return {**new, "scale": scale, "mask": old["mask"]}
