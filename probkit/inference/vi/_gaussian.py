r"""Gaussian and Student-t families: ``w = m + S e``.

    diag       S = diag(s)                    log q = log p(e) - sum log s
    tril       S lower triangular             the same, with its diagonal
    lowrank    w = m + s e_1 + U e_2          covariance diag(s^2) + U U', by Woodbury's identity

with ``s`` through a scale map. Noise is standard normal, or (``df``) independent t. A draw costs
O(d), O(d^2) and O(d r^2 + r^3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.vi._family import (
    LOG_2PI,
    Family,
    Params,
    Pushed,
    draw_by_push,
    normal_log_density,
    pushed_by_density,
)
from probkit.inference.vi._scale_maps import free_of, scale_of, settle_scale

# Of the rest beside a low-rank factor, in units of the start's scales.
_LEAST = 0.01


@dataclass(frozen=True)
class Affine(Family):
    """A location-scale family: ``w = m + S e`` with a diagonal or triangular ``S``.

    Attributes:
        dense: whether ``S`` is triangular (or diagonal).
        scale: the map of its diagonal.
        df: degrees of freedom of the noise, or None for normal noise.
    """

    dense: bool
    scale: str = "linear"
    df: float | None = None

    def init(self, key: Array, start: Params) -> Params:
        w = start["w"]
        one = free_of(self.scale, jnp.ones_like(w))
        params = {"loc": w, "scale": one}
        if self.dense:
            params["lower"] = jnp.zeros((w.shape[0], w.shape[0]), w.dtype)
        return params

    def noise(self, key: Array, n: int, size: int, dtype: Any) -> Array:
        if self.df is None:
            return jax.random.normal(key, (n, size), dtype)
        return jax.random.t(key, self.df, (n, size), dtype)

    def _factor(self, params: Params) -> Array:
        return jnp.tril(params["lower"], -1) + jnp.diag(scale_of(self.scale, params["scale"]))

    def _base(self, noise: Array) -> Array:
        if self.df is None:
            return normal_log_density(noise)
        half = 0.5 * (self.df + 1.0)
        constant = math.lgamma(half) - math.lgamma(0.5 * self.df)
        constant -= 0.5 * math.log(self.df * math.pi)
        return jnp.sum(constant - half * jnp.log1p(noise**2 / self.df))

    def _log_det(self, params: Params) -> Array:
        return jnp.sum(jnp.log(scale_of(self.scale, params["scale"])))

    def push(self, params: Params, noise: Array) -> Pushed:
        held = jax.lax.stop_gradient(params)
        slope = -noise
        if self.df is not None:
            slope = -(self.df + 1.0) * noise / (self.df + noise**2)
        if self.dense:
            moved = self._factor(params) @ noise
            solve = jax.scipy.linalg.solve_triangular
            score = solve(self._factor(held), slope, trans=1, lower=True)
        else:
            moved = scale_of(self.scale, params["scale"]) * noise
            score = slope / scale_of(self.scale, held["scale"])
        log_q = self._base(noise) - self._log_det(params)
        return Pushed(params["loc"] + moved, log_q, jnp.ones((), noise.dtype), score)

    def log_density(self, params: Params, w: Array) -> Array:
        gap = w - params["loc"]
        if self.dense:
            noise = jax.scipy.linalg.solve_triangular(self._factor(params), gap, lower=True)
        else:
            noise = gap / scale_of(self.scale, params["scale"])
        return self._base(noise) - self._log_det(params)

    def draw(self, params: Params, key: Array, n: int, size: int) -> Array:
        return draw_by_push(self, params, key, n, size)

    def settle(self, new: Params, old: Params, step: Params, prox: bool) -> Params:
        scale = settle_scale(self.scale, new["scale"], old["scale"], step["scale"], prox)
        return {**new, "scale": scale}


@dataclass(frozen=True)
class LowRank(Family):
    """A Gaussian with covariance ``diag(s^2) + U U'``, ``U`` of ``rank`` columns.

    Example:
        >>> LowRank(rank=3).rank
        3
    """

    rank: int
    scale: str = "linear"
    dense: bool = False

    def init(self, key: Array, start: Params) -> Params:
        w = start["w"]
        size, rank = w.shape[0], min(self.rank, w.shape[0])
        # A zero factor has a zero gradient on average: it needs a little noise to begin with.
        factor = 0.1 * jax.random.normal(key, (size, rank), w.dtype)
        precision = start.get("precision")
        if precision is not None:
            values, vectors = jnp.linalg.eigh(precision)
            # Directions in which the target is wider than the diagonal frame says.
            extra = jnp.sqrt(jnp.maximum(1.0 / jnp.maximum(values[:rank], 1e-6) - 1.0, 1e-3))
            factor = vectors[:, :rank] * extra
        rest = jnp.sqrt(jnp.maximum(1.0 - 0.9 * jnp.sum(factor**2, 1), 0.1))
        return {"loc": w, "scale": free_of(self.scale, rest), "factor": factor}

    def noise(self, key: Array, n: int, size: int, dtype: Any) -> Array:
        return jax.random.normal(key, (n, size + min(self.rank, size)), dtype)

    def push(self, params: Params, noise: Array) -> Pushed:
        size = params["loc"].shape[0]
        s = scale_of(self.scale, params["scale"])
        w = params["loc"] + s * noise[:size] + params["factor"] @ noise[size:]
        return pushed_by_density(self, params, w)

    def log_density(self, params: Params, w: Array) -> Array:
        s, gap = scale_of(self.scale, params["scale"]), w - params["loc"]
        factor, white = params["factor"] / s[:, None], gap / s
        inner = jnp.eye(factor.shape[1], dtype=w.dtype) + factor.T @ factor
        tril = jnp.linalg.cholesky(inner)
        part = jax.scipy.linalg.solve_triangular(tril, factor.T @ white, lower=True)
        log_det = jnp.sum(jnp.log(s)) + jnp.sum(jnp.log(jnp.diag(tril)))
        quadratic = jnp.dot(white, white) - jnp.dot(part, part)
        return -0.5 * quadratic - log_det - 0.5 * w.shape[0] * LOG_2PI

    def draw(self, params: Params, key: Array, n: int, size: int) -> Array:
        return draw_by_push(self, params, key, n, size)

    def settle(self, new: Params, old: Params, step: Params, prox: bool) -> Params:
        # The entropy of diag + low rank is no sum over entries of s: it has no cheap proximal step.
        scale = settle_scale(self.scale, new["scale"], old["scale"], step["scale"], False)
        if self.scale == "linear":
            # Where the factor explains a coordinate alone, s would fall until U / s overflows.
            scale = jnp.maximum(scale, _LEAST)
        return {**new, "scale": scale}
