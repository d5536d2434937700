"""Beta, gamma and negative binomial by their mean: against SciPy, in single precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from probkit.models._mean_families import Beta, Gamma, NegativeBinomial, stirling_remainder

SHAPES = (0.01, 0.3, 5.0, 50.0, 1e3, 1e5, 1e7)
ETAS = (-8.0, -1.0, 0.0, 2.5, 9.0)


def test_stirling_remainder_in_double_precision():
    x = np.array([1e-3, 0.5, 3.0, 9.99, 10.0, 11.0, 50.0])
    with jax.enable_x64(True):
        found = np.asarray(stirling_remainder(x))
    exact = special.gammaln(x) - (x - 0.5) * np.log(x) + x - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found, exact, atol=1e-13)


@jax.jit
@jax.grad
def _slope(log_alpha, eta, y):
    return NegativeBinomial(eta, jnp.exp(log_alpha)).log_prob(y).sum()


@pytest.mark.parametrize("alpha", SHAPES)
def test_negative_binomial_and_its_gradient(alpha):
    rng = np.random.default_rng(3)
    for eta in ETAS[:4]:
        mean, a = np.exp(float(np.float32(eta))), float(np.float32(alpha))
        y = rng.poisson(mean, 40)
        exact = special.gammaln(a + y) - special.gammaln(a) - special.gammaln(y + 1)
        exact += -(a + y) * np.log1p(mean / a) + y * np.log(mean) - y * np.log(a)
        found = NegativeBinomial(np.float32(eta), np.float32(a)).log_prob(y)
        if alpha < 1e6:  # beyond, the reference itself loses digits
            np.testing.assert_allclose(found, exact, atol=2e-5, rtol=2e-5)
        wanted = special.digamma(a + y) - special.digamma(a) - np.log1p(mean / a)
        wanted = a * (wanted + (mean - y) / (a + mean))
        if alpha < 1e6:
            gap = float(_slope(jnp.float32(np.log(alpha)), jnp.float32(eta), y)) - wanted.sum()
            assert abs(gap) < 2e-5 * (1.0 + mean) * y.size


def test_negative_binomial_ends_as_a_poisson():
    y = np.random.default_rng(0).poisson(50.0, 500)
    poisson = stats.poisson(np.exp(float(np.float32(np.log(50.0))))).logpmf(y).sum()
    for alpha in (1e6, 1e8):
        found = NegativeBinomial(np.float32(np.log(50.0)), np.float32(alpha)).log_prob(y)
        assert abs(float(np.asarray(found, float).sum()) - poisson) < 0.01


@pytest.mark.parametrize("alpha", SHAPES)
def test_gamma(alpha):
    rng = np.random.default_rng(4)
    for eta in ETAS[1:4]:
        mean, a = np.exp(float(np.float32(eta))), float(np.float32(alpha))
        y = np.maximum(mean * rng.gamma(alpha, 1.0 / alpha, 40), 1e-30).astype(np.float32)
        exact = stats.gamma.logpdf(y.astype(float), a, scale=mean / a)
        found = Gamma(np.float32(eta), np.float32(a)).log_prob(y)
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5 + 1e-7 * alpha**0.5)


@pytest.mark.parametrize("kappa", SHAPES[:-1])
def test_beta(kappa):
    rng = np.random.default_rng(5)
    for eta in ETAS:
        k, e = float(np.float32(kappa)), float(np.float32(eta))
        y = rng.beta(k * special.expit(e), k * special.expit(-e), 40).astype(np.float32)
        y = y[(y > 1e-30) & (y < 1.0)]
        exact = stats.beta.logpdf(y.astype(float), k * special.expit(e), k * special.expit(-e))
        found = Beta(np.float32(e), np.float32(k)).log_prob(y)
        np.testing.assert_allclose(found, exact, rtol=2e-5, atol=2e-5 + 3e-7 * kappa**0.5)


@pytest.mark.parametrize("make", [Beta, Gamma, NegativeBinomial])
def test_gradients_are_finite_and_draws_have_the_mean(make):
    d = make(jnp.asarray([-1.0, 0.5]), 7.0)
    draws = np.asarray(jax.jit(lambda k: d.sample(k, (4000,)))(jax.random.key(0)), float)
    assert draws.shape == (4000, 2)
    error = draws.std(axis=0) / np.sqrt(4000)
    # False alarm: 2 x 6e-5 a family.
    assert np.all(np.abs(draws.mean(axis=0) - np.asarray(d.mean)) < 4.0 * error)
    y = draws[0].astype(np.float32)
    slope = jax.jit(jax.grad(lambda p: make(p[0], p[1]).log_prob(y).sum()))
    slopes = slope((jnp.asarray([-1.0, 0.5]), jnp.float32(7.0)))
    assert all(np.all(np.isfinite(s)) for s in slopes)
