"""How Laplace's method sees the curvature: as a dense matrix, or with a structure.

A structure measures ``P = -H``, minus the Hessian of the log density, in its own parts; solves
with it, made positive and damped; and makes the normal distribution whose precision it is.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Approximation, Check, Target
from probkit.inference.gaussian._normal import Mode, normal_approximation

#: Curvatures below this share of the largest count as it when distances are judged.
FLAT = 1e-6


class Curvature(abc.ABC):
    """Abstract base of the structures; final classes are frozen dataclasses (hashable)."""

    @abc.abstractmethod
    def measure(self, target: Target, z: Array, old: Any) -> Any:
        """The parts of P at a point (traced); ``old`` are those of the last point, or None."""

    @abc.abstractmethod
    def solve(self, parts: Any, slope: Array, damping: Array) -> tuple[Array, Array]:
        """``(|P| + l)^{-1} g`` and half of ``g' |P|^{-1} g`` (traced).

        ``|P|`` has absolute curvatures: a saddle is left along its negative directions, not
        entered. The second is Newton's decrement, half the squared distance to the mode in
        posterior sds; it is that of the undamped step, for damping alone makes any step short.
        """

    @abc.abstractmethod
    def normal(self, parts: Any, mode: Mode) -> Approximation:
        """The normal at this mode with this precision (on the host); see `normal_approximation`."""

    def checks(self, parts: Any) -> list[Check]:
        """Whether P has the structure."""
        return []


@dataclass(frozen=True)
class Dense(Curvature):
    """The whole matrix: d gradients and O(d^3)."""

    def measure(self, target: Target, z: Array, old: Any) -> Array:
        return -jax.hessian(target.flat_log_density)(z)

    def solve(self, parts: Array, slope: Array, damping: Array) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(parts)
        curvature, along = jnp.abs(values), vectors.T @ slope
        least = FLAT * jnp.max(curvature) + jnp.finfo(slope.dtype).tiny
        decrement = 0.5 * jnp.sum(along**2 / jnp.maximum(curvature, least))
        return vectors @ (along / (curvature + damping)), decrement

    def normal(self, parts: Any, mode: Mode) -> Approximation:
        return normal_approximation(parts, mode)
