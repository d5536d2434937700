"""A Bernoulli variable whose probability is ``Phi(eta)``, exact in both tails."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr, ndtr
from jaxtyping import Array, ArrayLike
from numpyro.distributions import Distribution, constraints


class BernoulliProbit(Distribution):
    """``y = 1`` with probability ``Phi(eta)``; Phi is the standard normal distribution function.

    ``Bernoulli(probs=Phi(eta))`` is the same distribution, but its log density stops falling once
    Phi(eta) rounds to 0 or 1 (at ``eta = 5.4`` in single precision); this one's is
    ``log Phi((2 y - 1) eta)`` throughout.

    Args:
        eta: the linear predictor, any shape.

    Example:
        >>> import probkit as pk
        >>> round(float(pk.BernoulliProbit(-30.0).log_prob(1)), 2)
        -454.32
    """

    arg_constraints = {"eta": constraints.real}
    support = constraints.boolean  # type: ignore[assignment]
    has_enumerate_support = True

    def __init__(self, eta: ArrayLike = 0.0, *, validate_args: bool | None = None):
        self.eta = jnp.asarray(eta, jnp.result_type(float))
        super().__init__(batch_shape=self.eta.shape, validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = sample_shape + self.batch_shape
        return jax.random.bernoulli(key, ndtr(self.eta), shape).astype(jnp.result_type(int))

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        sign = 2.0 * jnp.asarray(value, self.eta.dtype) - 1.0
        return log_ndtr(sign * self.eta)

    @property
    def mean(self) -> Array:
        return ndtr(self.eta)

    @property
    def variance(self) -> Array:
        return ndtr(self.eta) * ndtr(-self.eta)

    def enumerate_support(self, expand: bool = True) -> Array:
        values = jnp.arange(2).reshape((-1, *(1,) * len(self.batch_shape)))
        return jnp.broadcast_to(values, (2, *self.batch_shape)) if expand else values

    def cdf(self, value: ArrayLike) -> Array:
        v = jnp.asarray(value)
        return jnp.where(v < 0, 0.0, jnp.where(v < 1, ndtr(-self.eta), 1.0))
