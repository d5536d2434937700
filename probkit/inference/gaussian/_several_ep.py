r"""Expectation propagation and power EP for several Gaussian vectors, with sites of whole rows.

Sites ``t_i(f) = exp(lambda1_i' f - f' Lambda_i f / 2)`` of all C functions at a row, marginals
``N(mu_i, V_i)``, power ``a``. The cavity of a row is its marginal without a share ``a`` of its own
site; with ``r_i = lambda1_i - Lambda_i mu_i``,

    V_c = (V^-1 - a Lambda)^-1 = T (I - a T' Lambda T)^-1 T',   T T' = V,     m_c = mu - a V_c r,
    log Z_i = log E_N(m_c, V_c)[t_i(f)^a],

and the site that matches the tilted moments ``m_c + T_c e``, ``T_c S T_c'`` (`_several_tilted`) is

    Lambda* = T_c^-T (S^-1 - I) T_c^-1 / a,     lambda1* = T_c^-T e / a + Lambda* (m_c + T_c e).

All rows move at once, damped. Terms that are not log-concave can ask for blocks with negative
eigenvalues, which the fixed point has: where noise varies, means without them are up to four times
as far from the truth, and sds up to twice. A step after which the posterior or a cavity is not a
distribution is undone and halved. Where no step is left, blocks lose their negative part in units
of the prior's sds, as the engine for one vector has it, with the shift that still matches the
means; then every cavity is a distribution, and the search nearly always ends.

The energy, every term of which is small where sites are what they should be (``s_i`` the log of a
site, ``log G`` the log integral of the prior times the sites),

    log Z = log G + (1/a) sum_i [log Z_i - log E_cavity(exp(a s_i))]
          = (1/a) sum_i [log Z_i + a^2 r_i' V_c r_i / 2 - log|I - a V_i Lambda_i| / 2]
            - alpha'(mu - m) / 2 - log|I + K Lambda| / 2,

is stationary in the sites at the fixed point, where its derivative by the kernels is that at frozen
sites, ``sum_c tr[(alpha_c alpha_c' - R_cc) dK_c] / 2``. Sources: Minka (2001, 2004); Seeger (2005);
Seeger and Jordan (2004) and Riihimaki, Jylanki and Vehtari (2013) for sites of whole rows. Cost a
step: a Cholesky factor of ``C n`` rows and its inverse, and ``n`` times the nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian._conditioning import Adjoint, Prior, Sites, attach
from probkit.inference.gaussian._fixed_point import Found, fixed_point, up_to_two
from probkit.inference.gaussian._several_algebra import (
    Blocks,
    by_process,
    by_row,
    condition_blocks,
    positive,
    prior_sds,
    rooted,
    site_units,
    times,
)
from probkit.inference.gaussian._several_cavities import Cavity, cavities, proper
from probkit.inference.gaussian._several_problem import Several
from probkit.inference.gaussian._several_tilted import Match, Placed, inverses


def solve(
    problem: Several,
    theta: Array,
    prior: Prior,
    start: Sites,
    *,
    power: float = 1.0,
    damping: float | Array = 0.8,
    tolerance: float | Array = 1e-7,
    max_steps: int = 300,
) -> Found:
    """EP's fixed point at ``theta``, from ``start``; ``max_steps`` for either of two searches."""
    roots, _ = rooted(prior)
    sds = prior_sds(prior)

    def search(turn: Array, before: Sites) -> Found:
        def allowed(blocks: Array) -> Array:
            return jnp.where(turn > 0, positive(blocks, sds), blocks)

        def update(sites: Sites) -> tuple[Sites, Array]:
            at = condition_blocks(prior, roots, sites)
            out = cavities(at, sites.l1, power)
            match = problem.weigh(theta, problem.place(theta, out.mean, out.cov, power), power)
            blocks = allowed(match.block / power)
            mean = out.mean + times(out.cov, match.d1)
            shift = match.d1 / power + times(blocks, mean)
            # Not finite: the search returns to where cavities were distributions.
            shift = jnp.where(jnp.all(out.least > 0.0), shift, jnp.nan)
            return Sites(shift, blocks), jnp.einsum("aan->an", at.blocks())

        first = Sites(before.l1, allowed(before.l2))
        return fixed_point(update, first, damping, tolerance, max_steps, site_units)

    # (Sites from other hyperparameters need not be proper here.)
    return up_to_two(search, Sites(start.l1, proper(prior, roots, start.l2, power)))


class Energy(NamedTuple):
    """EP's log evidence at given sites, and what its derivatives need."""

    value: Array
    cavity: Cavity
    placed: Placed
    match: Match
    at: Blocks


def energy(
    problem: Several, theta: Array, prior: Prior, sites: Sites, power: float = 1.0
) -> Energy:
    """The energy at any sites: EP's log evidence at EP's fixed point, the hybrid's at CVI's."""
    at = condition_blocks(prior, rooted(prior)[0], sites)
    out = cavities(at, sites.l1, power)
    placed = problem.place(theta, out.mean, out.cov, power)
    match = problem.weigh(theta, placed, power)
    each = match.value + 0.5 * out.square - 0.5 * out.log_det
    return Energy(jnp.sum(each) / power - 0.5 * at.square - at.half_log_det, out, placed, match, at)


def frozen(found: Energy, power: float) -> Adjoint:
    """The energy's derivatives at frozen sites, wherever the sites are (not only at EP's).

    The marginals move with K, and away from EP's fixed point the cavities feel it: with ``g`` the
    tilted less the marginal mean and ``D`` the tilted less the marginal covariance of a row,

        dF = a'dmu + tr[B dV],   a = V^-1 g / power,   B = V^-1 (D + g g') V^-1 / 2 power,
        dmu = W (dm + dK alpha),   dSigma = W dK W',   W = I - Sigma Lambda.
    """
    at, out, match = found.at, found.cavity, found.match
    v = by_row(at.blocks())
    cov = by_row(out.cov)
    gap = (out.mean + times(out.cov, match.d1) - at.mu).T
    apart = cov + cov @ by_row(match.d2) @ cov - v + gap[:, :, None] * gap[:, None, :]
    up = inverses(jnp.linalg.cholesky(v))
    inverse = jnp.swapaxes(up, 1, 2) @ up
    first = (inverse @ gap[..., None])[..., 0].T / power
    second = by_process(0.5 * inverse @ apart @ inverse) / power
    sigma = jnp.einsum("xai,xbj->aibj", at.half, at.half)
    count, n = at.mu.shape
    eye = jnp.eye(count * n, dtype=v.dtype).reshape(sigma.shape)
    w = eye - jnp.einsum("aibj,bcj->aicj", sigma, at.precisions)
    pull = jnp.einsum("aicj,ai->cj", w, first)
    seen = jnp.einsum("abi,bicj->aicj", second, w)
    plain = at.adjoint()
    outer = pull[:, :, None] * at.alpha[:, None, :]
    whole = plain.K + 0.5 * (outer + jnp.swapaxes(outer, 1, 2))
    return Adjoint(whole + jnp.einsum("aicj,aick->cjk", w, seen), plain.m + pull)


def value(
    problem: Several,
    theta: Array,
    sites: Sites,
    *,
    power: float = 1.0,
    exact: bool = True,
) -> Array:
    """The energy with its derivative with respect to ``theta``.

    Args:
        problem: the model.
        theta: hyperparameters.
        sites: the sites; constants.
        power: EP's power.
        exact: whether the sites are EP's fixed point, where the derivative is simpler.
    """
    sites = jax.lax.stop_gradient(sites)
    theta0 = jax.lax.stop_gradient(theta)
    moved = problem.prior(theta)
    found = energy(problem, theta0, jax.lax.stop_gradient(moved), sites, power)
    slope = found.at.adjoint() if exact else frozen(found, power)

    terms = jnp.sum(problem.log_mass(theta, found.placed, power)) / power
    return attach(found.value, slope, moved, terms)
