"""Engines against closed forms, dense twins and finite differences, on a vector made by hand."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probkit.inference.gaussian import _cvi, _ep, _gp_exact, _gp_laplace
from probkit.inference.gaussian._conditioning import (
    Prior,
    Sites,
    factored_inverse,
    factorise,
    jittered_cholesky,
    lower_gram,
    lower_inverse,
    precision,
    safe_cholesky,
    variances,
)
from tests.inference.gaussian.toy import THETA, toy

SOLVERS: dict[str, Any] = {
    "ep": _ep.solve,
    "power": functools.partial(_ep.solve, power=0.5),
    "cvi": _cvi.solve,
    "laplace": _gp_laplace.solve,
    "hybrid": _cvi.solve,
}
VALUES: dict[str, Any] = {
    "ep": _ep.value,
    "power": functools.partial(_ep.value, power=0.5),
    "cvi": _cvi.value,
    "laplace": _gp_laplace.value,
    "hybrid": functools.partial(_ep.value, exact=False),
}


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@functools.cache
def programs(likelihood: str, engine: str, closed: bool = True):
    """Compiled: sites at theta, and value with gradient at theta and sites."""
    problem = toy(likelihood, closed=closed)

    def solve(theta, tolerance):
        prior = problem.prior(theta)
        start = problem.start(theta, prior)
        return SOLVERS[engine](problem, theta, prior, start, tolerance=tolerance)

    value = jax.value_and_grad(functools.partial(VALUES[engine], problem))
    return problem, jax.jit(solve), jax.jit(value)


def exact_log_evidence(problem) -> float:
    K = np.asarray(problem.prior(jnp.asarray(THETA)).K) + np.exp(2 * THETA[2]) * np.eye(30)
    gap = np.asarray(problem.arrays["y"] - problem.prior(jnp.asarray(THETA)).m)
    log_det = np.linalg.slogdet(K)[1]
    return float(-0.5 * (gap @ np.linalg.solve(K, gap) + log_det + 30 * np.log(2 * np.pi)))


@pytest.mark.parametrize("engine", SOLVERS)
def test_gaussian_terms_are_exact(engine):
    problem, solve, value = programs("gaussian", engine)
    found = solve(THETA, 1e-10)
    assert int(found.steps) <= 1 and int(found.reason) == 0
    assert abs(float(value(THETA, found.sites)[0]) - exact_log_evidence(problem)) < 1e-8


def test_exact_value_and_gradient():
    problem = toy("gaussian")
    value = jax.jit(jax.value_and_grad(functools.partial(_gp_exact.value, problem)))
    assert abs(float(value(THETA)[0]) - exact_log_evidence(problem)) < 1e-9
    for i in range(3):
        step = 1e-5 * np.eye(3)[i]
        rise = (value(THETA + step)[0] - value(THETA - step)[0]) / 2e-5
        assert abs(float(rise - value(THETA)[1][i])) < 1e-6


@pytest.mark.parametrize(
    ("likelihood", "engine"),
    [("probit", e) for e in SOLVERS] + [("negative_binomial", "ep"), ("poisson", "cvi")],
)
def test_gradients_are_those_of_finite_differences(likelihood, engine):
    _, solve, value = programs(likelihood, engine)
    sites = solve(THETA, 1e-12).sites
    slope = value(THETA, sites)[1]
    for i in range(3):
        step = 1e-4 * np.eye(3)[i]
        ends = []
        for theta in (THETA + step, THETA - step):
            # The hybrid's derivative is meant at frozen sites; the others' are total.
            here = sites if engine == "hybrid" else solve(theta, 1e-12).sites
            ends.append(float(value(theta, here)[0]))
        assert abs((ends[0] - ends[1]) / 2e-4 - float(slope[i])) < 1e-5


def test_hybrid_energy_is_eps_at_eps_sites():
    problem, solve, _ = programs("probit", "ep")
    sites = solve(THETA, 1e-12).sites
    prior = problem.prior(jnp.asarray(THETA))
    hybrid = _ep.energy(problem, jnp.asarray(THETA), prior, sites).value
    # Written independently, with the covariance inverted densely and the moments of the tilted
    # terms by a fine grid: sum_i [log Z_i - log N(cavity mean; site, cavity + site var)] + log N.
    K, m = np.asarray(prior.K), np.asarray(prior.m)
    l1, l2 = np.asarray(sites.l1), np.asarray(sites.l2)
    cov = K - K @ np.linalg.solve(K + np.diag(1 / l2), K)
    mean = m + K @ np.linalg.solve(K + np.diag(1 / l2), l1 / l2 - m)
    v = np.diag(cov)
    cv = 1 / (1 / v - l2)
    cm = cv * (mean / v - l1)
    from scipy.stats import multivariate_normal, norm

    sign = 2 * np.asarray(problem.arrays["y"]) - 1
    log_z = norm.logcdf(sign * cm / np.sqrt(1 + cv))
    pseudo = norm.logpdf(l1 / l2, cm, np.sqrt(cv + 1 / l2))
    joint = multivariate_normal.logpdf(l1 / l2, m, K + np.diag(1 / l2))
    assert abs(float(hybrid) - (np.sum(log_z - pseudo) + joint)) < 1e-10


def test_quadrature_agrees_with_closed_forms():
    closed, open_ = programs("probit", "ep")[0], toy("probit", closed=False)
    m = jnp.linspace(-30.0, 30.0, 30)
    for v in (1e-4, 1.0, 100.0, 22500.0):
        a = closed.tilted(jnp.asarray(THETA), m, jnp.full(30, v))
        b = open_.tilted(jnp.asarray(THETA), m, jnp.full(30, v))
        np.testing.assert_allclose(a.value, b.value, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a.d1, b.d1, rtol=1e-4, atol=1e-6)


def test_expectations_of_a_probit_term_at_any_width():
    problem = toy("probit")
    z = np.linspace(-14, 14, 400001)
    weight = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    from scipy.special import log_ndtr

    sign = 2 * np.asarray(problem.arrays["y"][0]) - 1
    for s in (0.01, 1.0, 5.0, 150.0):
        for k in (0.0, -2.0, 5.0):
            found = problem.expected(jnp.asarray(THETA), jnp.full(30, k * s), jnp.full(30, s**2))
            truth = np.sum(weight * log_ndtr(sign * (k * s + s * z)))
            assert abs(float(found.value[0]) - truth) < 2e-7 * (abs(truth) + 1e-3)


@pytest.mark.parametrize("engine", ["ep", "cvi", "laplace"])
def test_sites_settle_at_extreme_hyperparameters(engine):
    _, solve, value = programs("probit", engine)
    for log_sd in (-4.0, 3.0):
        for log_length in (-5.0, 0.0, 5.0):
            theta = np.array([log_sd, log_length, 0.0])
            found = solve(theta, 1e-7)
            assert int(found.reason) == 0, (log_sd, log_length, found)
            assert np.isfinite(value(theta, found.sites)[0])


def test_student_outliers_do_not_break_ep():
    problem, solve, value = programs("student", "ep")
    found = solve(THETA, 1e-7)
    assert np.isfinite(value(THETA, found.sites)[0]) and np.all(found.sites.l2 >= 0)
    assert int(found.reason) == 0


def test_linear_algebra_against_dense_inverses():
    rng = np.random.default_rng(1)
    half = rng.normal(size=(150, 150))
    prior = Prior(jnp.asarray(half @ half.T / 150), jnp.asarray(rng.normal(size=150)))
    sites = Sites(jnp.asarray(rng.normal(size=150)), jnp.asarray(rng.gamma(1.0, size=150)))
    for l2 in (sites.l2, sites.l2.at[:5].set(0.0)):
        at = factorise(prior, Sites(sites.l1, l2))
        cov = np.linalg.inv(np.linalg.inv(prior.K) + np.diag(l2))
        mean = cov @ (sites.l1 + np.linalg.solve(prior.K, prior.m))
        np.testing.assert_allclose(at.mu, mean, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(variances(prior, at), np.diag(cov), rtol=1e-8)
        np.testing.assert_allclose(
            precision(at), np.diag(l2) - np.diag(l2) @ cov @ np.diag(l2), atol=1e-8
        )
    tril = np.linalg.cholesky(np.asarray(prior.K) + np.eye(150))
    np.testing.assert_allclose(lower_inverse(jnp.asarray(tril)) @ tril, np.eye(150), atol=1e-12)


def test_jitter_is_added_only_where_needed():
    whole = jnp.ones((4, 4))
    assert bool(jnp.all(jnp.isfinite(safe_cholesky(whole))))
    assert float(jnp.max(jnp.abs(safe_cholesky(whole)[:, 0] - 1.0))) < 1e-6
    assert not bool(jnp.all(jnp.isfinite(safe_cholesky(-whole))))
    np.testing.assert_array_equal(safe_cholesky(jnp.eye(3)), np.eye(3))


def test_halves_of_inverses_and_grams():
    rng = np.random.default_rng(8)
    for n in (5, 130, 257):
        tril = np.tril(rng.normal(size=(n, n))) / n + np.eye(n)
        found = lower_inverse(jnp.asarray(tril), 64)
        np.testing.assert_allclose(found @ tril, np.eye(n), atol=1e-10)
        np.testing.assert_allclose(lower_gram(jnp.asarray(tril), 64), tril.T @ tril, atol=1e-10)
        inverse = factored_inverse(jnp.asarray(tril))
        np.testing.assert_allclose(inverse @ tril @ tril.T, np.eye(n), atol=1e-10)
        np.testing.assert_allclose(inverse, inverse.T, atol=1e-14)


@pytest.mark.parametrize("noise", [1e-1, 1e-3, 1e-5])
def test_precise_sites_lose_no_digits(noise):
    """Sites of tiny noise, beside some that say nothing, against a dense solve with the noise."""
    rng = np.random.default_rng(9)
    x, n = np.sort(rng.uniform(-3, 3, size=25)), 25
    K = np.exp(-np.abs(x[:, None] - x))  # rough: well-conditioned
    mean, y = 0.3 * np.ones(n), np.sin(x)
    seen = np.arange(n) % 3 != 0
    l2 = np.where(seen, noise**-2, 0.0)
    at = factorise(Prior(jnp.asarray(K), jnp.asarray(mean)), Sites(jnp.asarray(l2 * y), l2))
    gram = K[np.ix_(seen, seen)] + noise**2 * np.eye(seen.sum())
    weights = np.linalg.solve(gram, (y - mean)[seen])
    np.testing.assert_allclose(np.asarray(at.alpha)[seen], weights, rtol=1e-7)
    np.testing.assert_allclose(at.mu, mean + K[:, seen] @ weights, atol=1e-9)
    exact = -0.5 * (y - mean)[seen] @ weights - 0.5 * np.linalg.slogdet(gram)[1]
    ours = at.log_g - 0.5 * np.sum(l2 * y**2) + 0.5 * np.sum(np.log(l2[seen]))
    # log G holds sum(y^2 / noise^2) / 2, which the terms' own constants take away again.
    assert abs(ours - exact) < 1e-7 + 1e-14 * np.sum(l2 * y**2)


def test_factor_of_a_matrix_that_needs_help_and_of_one_beyond_it():
    ones = jnp.ones((6, 6))
    tril, share = jittered_cholesky(ones)
    assert 0.0 < share < 1e-8 and np.all(np.isfinite(tril))
    np.testing.assert_allclose(tril @ tril.T, ones, atol=1e-7)
    tril, share = jittered_cholesky(jnp.diag(jnp.array([1.0, -1.0])))
    assert np.isinf(share) and np.all(np.isnan(np.diag(tril))[-1:])
    assert jittered_cholesky(jnp.eye(3))[1] == 0.0
