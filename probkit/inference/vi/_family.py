r"""What a variational family is: a reparameterised distribution over whitened coordinates.

The engine works with ``w``, where ``z = centre + scale w`` is the flat unconstrained point and
``centre`` and ``scale`` (a vector, or a lower triangular matrix) are the frame that the start
found: near ``N(0, I)`` one step size suits every target. A family maps noise to ``w``, and tells
``log q`` and its gradient in ``w`` (the score). Families are frozen, hold static facts only, and
keep their parameters in dictionaries of arrays.
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

Params = dict[str, Any]

LOG_2PI = math.log(2.0 * math.pi)


class Pushed(NamedTuple):
    """A draw: ``w``, ``log q(w)``, its mass (1 unless draws are stratified), and the score.

    The score is the gradient of ``log q`` in ``w``, and a constant: it is not differentiated.
    """

    w: Array
    log_q: Array
    mass: Array
    score: Array


class Family(abc.ABC):
    """Abstract base of all families; final classes are frozen dataclasses (hashable)."""

    #: Whether the frame's scale is a full matrix (the family can use one) or a vector.
    dense: bool

    @abc.abstractmethod
    def init(self, key: Array, start: Params) -> Params:
        """Parameters of (nearly) the standard normal, which the frame makes the start.

        ``start`` has ``w``, a vector of the right length and dtype, and where the start knows them
        ``precision`` (in the frame's coordinates) and ``pattern`` (which entries of it can differ
        from zero).
        """

    @abc.abstractmethod
    def noise(self, key: Array, n: int, size: int, dtype: Any) -> Array:
        """Noise of ``n`` draws, shape ``(n, k)``; ``push`` takes one row."""

    @abc.abstractmethod
    def push(self, params: Params, noise: Array) -> Pushed:
        """The draw that one row of noise is pushed to."""

    @abc.abstractmethod
    def log_density(self, params: Params, w: Array) -> Array:
        """``log q(w)`` of one vector."""

    @abc.abstractmethod
    def draw(self, params: Params, key: Array, n: int, size: int) -> Array:
        """``n`` independent draws, shape ``(n, size)``."""

    @abc.abstractmethod
    def settle(self, new: Params, old: Params, step: Params, prox: bool) -> Params:
        """Parameters put back where they are valid after an optimiser's step.

        ``step`` has the step size of every entry; with ``prox`` the proximal step of the negative
        entropy is taken, which the gradient then leaves out.
        """

    def check_size(self, size: int) -> None:
        """Raise a ValueError where the family cannot have ``size`` dimensions."""
        return None


def draw_by_push(family: Family, params: Params, key: Array, n: int, size: int) -> Array:
    """`Family.draw` of families whose draws are not stratified."""
    dtype = params["loc"].dtype
    noise = family.noise(key, n, size, dtype)
    return jax.vmap(lambda e: family.push(params, e).w)(noise)


def normal_log_density(noise: Array) -> Array:
    """Log density of a standard normal vector."""
    return -0.5 * jnp.sum(noise**2) - 0.5 * noise.shape[0] * LOG_2PI


def pushed_by_density(
    family: Family, params: Params, w: Array, mass: Array | None = None
) -> Pushed:
    """A draw whose ``log q`` and score come from the density, for families without shortcuts."""
    held = jax.lax.stop_gradient((params, w))
    score = jax.grad(lambda x: family.log_density(held[0], x))(held[1])
    one = jnp.ones((), w.dtype) if mass is None else mass
    return Pushed(w, family.log_density(params, w), one, score)
