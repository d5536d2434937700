r"""A starting point near a mode and a step size for Langevin dynamics, from curvature and noise.

Along a direction in which the log density has curvature ``-a`` and the mini-batch gradient variance
``v``, Langevin dynamics with steps ``e`` has the stationary variance

    (1 / a) (1 + e v / 4) / (1 - e a / 4)

in place of ``1 / a`` (equate the variances before and after one step of the linear recursion), and
diverges from ``e a = 4`` on. So ``e = 0.2 / (a + v)``, with the largest ``a`` and ``v``, keeps the
variance within about five per cent of the right one in every direction.

The mode comes from 400 steps of Adam on mini-batch gradients, averaged over the last quarter; the
largest curvature from 32 power iterations on Hessian-vector products there, each with a batch of
its own, whose gradients also tell their variance. Cost: 464 gradients of a mini-batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

_CLIMB, _RATE, _PROBES = 400, 0.1, 32
_SHARE, _FALLBACK = 0.2, 1e-3

#: Log density and gradient (each unbiased) at a point, from a random mini-batch of its own.
Estimate = Callable[[Array, Array], tuple[Array, Array]]


def tuned_start(key: Array, estimate: Estimate, position: Array) -> tuple[Array, Array]:
    """A point near a mode and the step size there.

    Args:
        key: of the mini-batches.
        estimate: ``(key, z) -> value, gradient``.
        position: where the climb starts, shape ``(d,)``.

    Returns:
        The point and the size. Where the climb ends at a point that is not finite, they are
        ``position`` and 0.001.
    """
    key_climb, key_probe = jax.random.split(key)
    top = _climb(key_climb, lambda k, z: estimate(k, z)[1], position)
    curvature, noise, fine = _stiffness(key_probe, estimate, top)
    size = _SHARE / (curvature + noise)
    fine = fine & jnp.isfinite(size) & (size > 0)
    return jnp.where(fine, top, position), jnp.where(fine, size, _FALLBACK).astype(position.dtype)


def _climb(key: Array, slope: Callable[[Array, Array], Array], z: Array) -> Array:
    def step(i: Array, carry: tuple) -> tuple:
        x, m, v, late = carry
        g = slope(jax.random.fold_in(key, i), x)
        g = jnp.clip(jnp.nan_to_num(g, nan=0.0, posinf=1e18, neginf=-1e18), -1e18, 1e18)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        t = i.astype(z.dtype) + 1
        # From 0.1 to 0.001: far at first, and steady at the end.
        rate = _RATE * 0.01 ** (t / _CLIMB)
        x = x + rate * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.99**t)) + 1e-30)
        return x, m, v, late + jnp.where(i >= 3 * _CLIMB // 4, x, 0.0) * (4.0 / _CLIMB)

    zero = jnp.zeros_like(z)
    return jax.lax.fori_loop(0, _CLIMB, step, (z, zero, zero, zero))[3]


def _stiffness(key: Array, estimate: Estimate, z: Array) -> tuple[Array, Array, Array]:
    """Largest curvature, largest variance of the gradient, and whether all values were finite."""

    def probe(direction: Array, i: Array) -> tuple[Array, tuple]:
        one = lambda x: estimate(jax.random.fold_in(key, i), x)  # noqa: E731
        (value, g), (_, bend) = jax.jvp(one, (z,), (direction,))
        norm = jnp.linalg.norm(bend)
        return jnp.where(norm > 0, bend / norm, direction), (value, g, norm)

    first = jax.random.normal(jax.random.fold_in(key, _PROBES), z.shape, z.dtype)
    first = first / jnp.linalg.norm(first)
    top, (values, slopes, norms) = jax.lax.scan(probe, first, jnp.arange(_PROBES))
    curvature = jnp.mean(norms[_PROBES // 2 :])
    along = jnp.var(slopes @ top)
    noise = jnp.maximum(along, jnp.max(jnp.var(slopes, axis=0)))
    return curvature, noise, jnp.all(jnp.isfinite(values)) & jnp.all(jnp.isfinite(slopes))
