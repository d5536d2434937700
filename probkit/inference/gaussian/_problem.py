"""What an engine sees of a model: prior, terms and their moments at given hyperparameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Target
from probkit.core._latent import GaussianLatent
from probkit.inference.gaussian._conditioning import Prior, Sites
from probkit.inference.gaussian._panels import panel_rule
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

#: Hyperparameters of scale are kept within exp(+-this) of where the prior has them by a quadratic
#: wall: separable data send variances along a flat ridge to infinity.
WALL = 11.5
_NODES_ANY = 96


class Peaks(NamedTuple):
    """Gaussian terms ``c_i + b_i f - a_i f^2 / 2``, ``(n,)`` each.

    With little noise ``b f`` and ``a f^2 / 2`` are large and nearly equal, so the terms are told by
    where and how high their peaks are: ``height_i + slope_i f - a_i (f - at_i)^2 / 2``, with a
    ``slope`` of zero but where ``a`` is.
    """

    a: Array
    b: Array
    c: Array
    at: Array
    height: Array
    slope: Array

    def value(self, m: Array, curvature: Array) -> Array:
        """The terms at ``m``, with another curvature in the place of ``a``."""
        return self.height + self.slope * m - 0.5 * curvature * (m - self.at) ** 2

    def left_out(self, alpha: Array, each: Array) -> Array:
        """Leave-one-out log densities, of ``alpha`` and ``diag R`` in `_conditioning`'s notation.

        ``height + (log(R_ii / a_i) - alpha_i^2 / R_ii) / 2`` (Rasmussen and Williams 2006, eq.
        5.12): no difference of large numbers, as a cavity's ``1 / v - a`` is with little noise.
        """
        seen = self.a > 0.0
        a, r = jnp.where(seen, self.a, 1.0), jnp.where(seen, each, 1.0)
        return self.height + jnp.where(seen, 0.5 * (jnp.log(r / a) - alpha**2 / r), 0.0)


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

    def peaks(self, theta: Array) -> Peaks:
        """The terms of a problem whose ``kind`` is ``"gaussian"``."""
        a, b, c = self.latent.gaussian_terms(theta, self.arrays)
        some = a > 0.0
        at = jnp.where(some, b / jnp.where(some, a, 1.0), 0.0)
        # A peak is flat: where it is does not move how high it is.
        top = self.terms(theta)(jax.lax.stop_gradient(at))
        return Peaks(a, b, c, at, jnp.where(some, top, c), jnp.where(some, 0.0, b))

    def rule(self, theta: Array, m: Array, v: Array, power: float | Array | None = None) -> Rule:
        """Quadrature nodes that resolve each term under ``N(m, v)``; constants to derivatives.

        For expectations, or, given a ``power``, for tilted integrals.
        """
        theta, m, v = jax.lax.stop_gradient((theta, m, v))
        kinked = self.latent.kinks(self.arrays)
        if kinked:
            return panel_rule(self.terms(theta), m, v, kinked, power)
        reach = 9.0 if power is None else 30.0
        if self.kind == "probit":
            slope, offset = self.latent.probit_terms(theta, self.arrays)
            flat = jnp.abs(slope) < 1e-12
            slope = jnp.where(flat, 1.0, slope)
            return rule(m, v, -offset / slope, 1.0 / jnp.abs(slope), reach=reach)
        return rule(m, v, *bend(self.terms(theta), m, v), nodes=_NODES_ANY, reach=reach)

    def expected(self, theta: Array, m: Array, v: Array) -> Moments:
        """``E[log t_i]`` under ``N(m, v)`` and its derivatives."""
        if self.kind == "gaussian":
            p = self.peaks(theta)
            value = p.value(m, p.a) - 0.5 * p.a * v
            return Moments(value, p.slope - p.a * (m - p.at), -p.a)
        if self.kind == "probit":
            slope, offset = self.latent.probit_terms(theta, self.arrays)
            return probit_expected(slope, offset, m, v)
        return expected(self.terms(theta), m, v, self.rule(theta, m, v))

    def tilted(self, theta: Array, m: Array, v: Array, power: float | Array = 1.0) -> Moments:
        """``log E[t_i^power]`` under ``N(m, v)`` and its derivatives."""
        if self.kind == "gaussian":
            p = self.peaks(theta)
            a, slope = power * p.a, power * p.slope
            # int N(f; m, v) exp(power log t(f)) df
            scale = 1.0 / (1.0 + a * v)
            value = power * p.value(m, p.a * scale) + 0.5 * (jnp.log(scale) + slope**2 * v)
            return Moments(value, slope - a * scale * (m - p.at), -a * scale)
        if self.kind == "probit" and isinstance(power, float) and power == 1.0:
            slope, offset = self.latent.probit_terms(theta, self.arrays)
            return probit_tilted(slope, offset, m, v)
        return tilted(self.terms(theta), m, v, self.rule(theta, m, v, power), power)

    def penalty(self, theta: Array) -> Array:
        """The wall around the hyperparameters: zero inside."""
        return wall(aside_of(self.latent, theta))

    def blank(self, dtype: Any) -> Sites:
        """Sites that say nothing."""
        none: Any = np.zeros(self.latent.size, dtype)
        return Sites(none, none)


def placed(problem: Any, aside: Any) -> Any:
    """Hyperparameters that are told from where the prior has them, as they are."""
    centre, spread = problem.latent.centre, problem.latent.spread
    wide = aside * spread.astype(aside.dtype) if np.any(spread != 1.0) else aside
    return wide + centre.astype(aside.dtype) if np.any(centre) else wide


def aside_of(latent: Any, theta: Any) -> Any:
    """The inverse of `placed`: how far out the prior has ``theta``."""
    moved = theta - latent.centre if np.any(latent.centre) else theta
    return moved / latent.spread if np.any(latent.spread != 1.0) else moved


def wall(aside: Array) -> Array:
    """What hyperparameters cost that are further than `WALL` from where the prior has them."""
    return 0.5 * jnp.sum(jnp.maximum(jnp.abs(aside) - WALL, 0.0) ** 2)
