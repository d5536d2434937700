r"""Curvature as a diagonal and a few directions: for many dimensions and few that the data inform.

    P = R (I + V diag(k) V') R,    R = diag(r),   V of rank columns, orthonormal

where ``r^2`` is the prior's curvature (its Hessian times a vector of ones: the diagonal, where
priors are independent) and ``k, V`` are the largest eigenvalues and vectors of the rest in units of
the prior, ``R^{-1} P R^{-1} - I``. What is left out is of little moment where its eigenvalues are
below 1: there the prior, not the data, decides. This is the low-rank Laplace approximation of
Bui-Thanh, Ghattas, Martin and Stadler (2013), section 5. Eigenvectors come from subspace
iterations with 8 more columns than are kept (Halko, Martinsson and Tropp 2011, algorithm 4.4),
which go on from one Newton step to the next. A step costs 3 (rank + 8) Hessian-vector products
and O(d rank^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Check, Status, Target
from probkit.inference.gaussian._curvature import Curvature
from probkit.inference.gaussian._normal import Mode

_MORE, _ITERATIONS, _LEFT_OUT = 8, 2, 1.0
Parts = dict[str, Any]


@dataclass(frozen=True)
class LowRank(Curvature):
    """A diagonal and ``rank`` directions."""

    rank: int = 20

    def measure(self, target: Target, z: Array, old: Any) -> Parts:
        size = z.shape[0]
        columns = min(self.rank + _MORE, size)
        prior = lambda x: target.log_prior(target.program.flat.unravel(x))  # noqa: E731
        ones = jnp.ones_like(z)
        curved = jnp.abs(jax.jvp(jax.grad(prior), (z,), (ones,))[1])
        # Where a prior says nothing (or is coupled so that its rows cancel) the unit is 1.
        root = jnp.sqrt(jnp.where(curved > 1e-6 * jnp.max(curved), curved, 1.0))
        slope = jax.grad(target.flat_log_density)

        def rest(v: Array) -> Array:
            return -jax.jvp(slope, (z,), (v / root,))[1] / root - v

        if old is None:
            V = jax.random.normal(jax.random.key(0), (size, columns), z.dtype)
        else:
            V = old["V"]
        many = jax.vmap(rest, in_axes=1, out_axes=1)
        V = jnp.linalg.qr(V)[0]
        for _ in range(_ITERATIONS):
            V = jnp.linalg.qr(many(V))[0]
        values, turn = jnp.linalg.eigh(V.T @ many(V))
        order = jnp.argsort(-jnp.abs(values))
        return {"root": root, "values": values[order], "V": V @ turn[:, order]}

    def solve(self, parts: Parts, slope: Array, damping: Array) -> tuple[Array, Array]:
        root, values, V = parts["root"], parts["values"], parts["V"]
        white = slope / root
        along = V.T @ white
        # Columns that are not kept help the step all the same.
        curvature = jnp.maximum(jnp.abs(1.0 + values), 1e-6)

        def solved(l: Array) -> Array:  # noqa: E741
            inner = along / (curvature + l) - along / (1.0 + l)
            return (white / (1.0 + l) + V @ inner) / root

        return solved(damping), 0.5 * jnp.dot(slope, solved(jnp.zeros_like(damping)))

    def _kept(self, size: int) -> int:
        return size if size <= self.rank + _MORE else self.rank

    def normal(self, parts: Any, mode: Mode) -> Approximation:
        mean, top, draws, status, stats, _ = mode
        size = mean.shape[0]
        kept = self._kept(size)
        values = np.asarray(parts["values"], np.float64)[:kept]
        if np.any(values <= -1.0):
            values = np.where(values > -1.0, values, 0.0)
            status = Status.NOT_POSITIVE_DEFINITE if status.ok else status
        root = np.asarray(parts["root"], np.float64)
        half_log_det = float(np.sum(np.log(root)) + 0.5 * np.sum(np.log1p(values)))
        params = {
            "mean": mean,
            "root": parts["root"],
            "values": values.astype(mean.dtype),
            "V": np.asarray(parts["V"])[:, :kept],
        }
        return Approximation(
            sample=sample,
            log_density=log_density,
            params=params,
            draws=draws,
            key="normal of low rank",
            log_evidence=top + 0.5 * size * math.log(2 * math.pi) - half_log_det,
            stats={**stats, "rank": kept, "left_out": self._left_out(parts)},
            status=status,
        )

    def _left_out(self, parts: Any) -> float:
        values = np.asarray(parts["values"], float)
        kept = self._kept(len(parts["root"]))
        return float(np.max(np.abs(values[kept:]), initial=0.0))

    def checks(self, parts: Any) -> list[Check]:
        left = self._left_out(parts)
        good = left < _LEFT_OUT
        advice = f"the data inform more directions: rank={2 * self.rank}, or structure='dense'"
        where = "largest eigenvalue left out, in units of the prior's curvature"
        return [Check("structure", good, left, _LEFT_OUT, where, "" if good else advice)]


def sample(params: dict[str, Array], key: Array, n: int) -> Array:
    """``n`` draws, shape ``(n, d)``."""
    mean, V = params["mean"], params["V"]
    noise = jax.random.normal(key, (n, mean.shape[0]), mean.dtype)
    shrunk = 1.0 / jnp.sqrt(1.0 + params["values"]) - 1.0
    return mean + (noise + ((noise @ V) * shrunk) @ V.T) / params["root"]


def log_density(params: dict[str, Array], x: Array) -> Array:
    """Log density at one point, shape ``(d,)``."""
    unit, V = params["root"] * (x - params["mean"]), params["V"]
    white = unit + V @ ((jnp.sqrt(1.0 + params["values"]) - 1.0) * (V.T @ unit))
    half = jnp.sum(jnp.log(params["root"])) + 0.5 * jnp.sum(jnp.log1p(params["values"]))
    return half - 0.5 * x.shape[0] * math.log(2 * math.pi) - 0.5 * jnp.dot(white, white)
