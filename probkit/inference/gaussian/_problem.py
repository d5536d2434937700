"""What an engine sees of a model: prior, terms and their moments at given hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Target
from probkit.core._latent import GaussianLatent
from probkit.inference.gaussian._conditioning import Prior, Sites
from probkit.inference.gaussian._tilted import (
    Moments,
    Pointwise,
    Rule,
    bend,
    expected,
    probit_expected,
    probit_tilted,
    rule,
    tilted,
)

#: Hyperparameters of scale are kept within exp(+-this) by a quadratic wall: separable data send
#: variances along a flat ridge to infinity.
WALL = 11.5
_NODES_ANY = 96


@dataclass(frozen=True, eq=False)
class Problem:
    """A Gaussian vector with its data.

    Attributes:
        latent: the capability of the Target's Program.
        arrays: the Target's arrays.
        kind: the terms' closed form: ``"gaussian"``, ``"probit"`` or None.
    """

    latent: GaussianLatent
    arrays: dict
    kind: str | None

    @staticmethod
    def of(target: Target) -> Problem:
        """The problem of a Target that has the capability."""
        latent = target.program.gaussian_latent(target.arrays)
        return Problem(latent, target.arrays, latent.family(target.arrays))

    def prior(self, theta: Array) -> Prior:
        """Covariance and mean of the Gaussian vector."""
        latent = self.latent
        return Prior(latent.covariance(theta, self.arrays), latent.mean(theta, self.arrays))

    def terms(self, theta: Array) -> Pointwise:
        """The pointwise log likelihood at ``theta``."""
        return lambda f: self.latent.log_likelihood(theta, f, self.arrays)

    def start(self, theta: Array, prior: Prior) -> Sites:
        """Sites to start from: the terms themselves where they are Gaussian, else almost flat."""
        if self.kind == "gaussian":
            precision, shift, _ = self.latent.gaussian_terms(theta, self.arrays)
            return Sites(shift, precision)
        return Sites(1e-6 * prior.m, jnp.full_like(prior.m, 1e-6))

    def rule(self, theta: Array, m: Array, v: Array, reach: float) -> Rule:
        """Quadrature nodes that resolve each term under ``N(m, v)``; constants to derivatives."""
        theta, m, v = jax.lax.stop_gradient((theta, m, v))
        if self.kind == "probit":
            slope, offset = self.latent.probit_terms(theta, self.arrays)
            flat = jnp.abs(slope) < 1e-12
            slope = jnp.where(flat, 1.0, slope)
            return rule(m, v, -offset / slope, 1.0 / jnp.abs(slope), reach=reach)
        return rule(m, v, *bend(self.terms(theta), m, v), nodes=_NODES_ANY, reach=reach)

    def expected(self, theta: Array, m: Array, v: Array) -> Moments:
        """``E[log t_i]`` under ``N(m, v)`` and its derivatives."""
        if self.kind == "gaussian":
            a, b, c = self.latent.gaussian_terms(theta, self.arrays)
            return Moments(c + b * m - 0.5 * a * (m**2 + v), b - a * m, -a)
        if self.kind == "probit":
            slope, offset = self.latent.probit_terms(theta, self.arrays)
            return probit_expected(slope, offset, m, v)
        return expected(self.terms(theta), m, v, self.rule(theta, m, v, 9.0))

    def tilted(self, theta: Array, m: Array, v: Array, power: float | Array = 1.0) -> Moments:
        """``log E[t_i^power]`` under ``N(m, v)`` and its derivatives."""
        if self.kind == "gaussian":
            a, b, c = (power * x for x in self.latent.gaussian_terms(theta, self.arrays))
            # int N(f; m, v) exp(c + b f - a f^2 / 2)
            scale = 1.0 / (1.0 + a * v)
            value = c + 0.5 * jnp.log(scale) + scale * (b * m + 0.5 * b**2 * v - 0.5 * a * m**2)
            return Moments(value, scale * (b - a * m), -a * scale)
        if self.kind == "probit" and isinstance(power, float) and power == 1.0:
            slope, offset = self.latent.probit_terms(theta, self.arrays)
            return probit_tilted(slope, offset, m, v)
        return tilted(self.terms(theta), m, v, self.rule(theta, m, v, 30.0), power)

    def penalty(self, theta: Array) -> Array:
        """The wall around the hyperparameters: zero inside."""
        return 0.5 * jnp.sum(jnp.maximum(jnp.abs(theta) - WALL, 0.0) ** 2)
