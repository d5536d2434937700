"""The mode check on mixtures whose masses are known, and what it stands on."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit import dist
from probkit.core import Approximation, Target, Weights, weigh
from probkit.inference.vi._climb import climb
from probkit.inference.vi._mode_check import find_modes, mode_check

MEANS = np.array([[-5.0, 0.0], [5.0, 0.0], [0.0, 6.0], [0.0, -6.0]], np.float32)
MASS = np.array([0.4, 0.3, 0.2, 0.1], np.float32)


def _log_mixture(p, x):
    gaps = jnp.sum(jnp.square(x - MEANS), axis=1)
    return jax.nn.logsumexp(p["logits"] - 0.5 * gaps) - jnp.log(2 * jnp.pi)


def _draw(p, key, n):
    first, second = jax.random.split(key)
    which = jax.random.categorical(first, p["logits"], shape=(n,))
    return jnp.asarray(MEANS)[which] + jax.random.normal(second, (n, 2))


@functools.cache
def _model():
    # The prior's log density is taken off again: the posterior is the mixture.
    model = pk.Model(
        x=dist.Normal(0, 5).expand([2]),
        peaks=pk.factor(
            lambda x, logits: (
                _log_mixture({"logits": logits}, x) - jnp.sum(dist.Normal(0, 5).log_prob(x))
            )
        ),
    )
    return model.bind({"logits": np.log(MASS)})


def _fitted(mass):
    mass = np.asarray(mass, np.float32)
    logits = np.where(mass > 0, np.log(np.maximum(mass, 1e-30)), -60.0).astype(np.float32)
    logits = logits - jax.nn.logsumexp(logits)
    return Approximation(_draw, _log_mixture, {"logits": np.asarray(logits)}, 1000, "mixture")


@pytest.mark.parametrize(
    ("mass", "lost"),
    [
        (MASS, 0.0),
        ([0.3, 0.4, 0.2, 0.1], 0.0),
        ([0.4, 0.3, 0.2, 0.0], 0.1),
        ([1.0, 0.0, 0.0, 0.0], 0.6),
        ([0.0, 0.0, 0.5, 0.5], 0.7),
        ([0.4, 0.3, 0.2, 0.01], 0.1),
    ],
)
def test_lost_modes(mass, lost):
    fitted, key = _fitted(mass), np.array([0, 3], np.uint32)
    weights = weigh(_model(), fitted, key, 4000)
    assert weights.ess_ratio > 0.5  # which notices nothing
    found = find_modes(_model(), fitted, key, weights)
    assert found is not None and len(found.points) == 4
    assert found.lost == pytest.approx(lost, abs=0.03)
    assert found.target_mass.sum() == pytest.approx(1.0)
    (check,) = mode_check(_model(), fitted, key, weights)
    assert check.ok is (lost < 0.05)
    assert ("modes missed, one near x[0]" in check.where) is (lost > 0.05)
    assert ("mixture" in check.advice) is (lost > 0.05)


def test_a_bad_fit_of_one_mode():
    """A fit that is far too narrow has lost no mode: the draws around the maximum tell."""

    def narrow(p, x):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, 0.3))

    def draw(p, key, n):
        return 0.3 * jax.random.normal(key, (n, 2))

    target = Target.from_log_density(lambda z: -0.5 * jnp.sum(z["x"] ** 2), {"x": np.zeros(2)})
    fitted = Approximation(draw, narrow, {}, 1000, "narrow")
    key = np.zeros(2, np.uint32)
    weights = weigh(target, fitted, key, 4000)
    (check,) = mode_check(target, fitted, key, weights)
    assert weights.khat > 0.7 and check.ok and check.value == 0.0


def test_inconclusive_where_single_draws_tell_the_masses():
    """Around its maximum the funnel's density is nothing like its Laplace approximation."""

    def funnel(z):
        x = z["x"]
        return -0.5 * (x[0] / 3) ** 2 - 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 4.5 * x[0]

    def far(p, x):
        return jnp.sum(jax.scipy.stats.norm.logpdf(x, 3.0, 0.1))

    def draw(p, key, n):
        return 3.0 + 0.1 * jax.random.normal(key, (n, 10))

    target = Target.from_log_density(funnel, {"x": np.zeros(10)})
    fitted = Approximation(draw, far, {}, 1000, "far")
    key = np.zeros(2, np.uint32)
    (check,) = mode_check(target, fitted, key, weigh(target, fitted, key, 4000))
    assert check.ok is None and "inconclusive" in check.advice


def test_a_narrow_mode_far_away():
    """Ten dimensions, modes of sd 1 and 0.6: the narrow one's basin is a cone of a thousandth.

    (All directions from the wide one within arcsin 0.6.)
    """
    place = jnp.asarray(np.resize([-6.0, 7.0], 10), jnp.float32)

    def log_mixture(p, x):
        wide = -0.5 * jnp.sum(x**2)
        narrow = -0.5 * jnp.sum((x - place) ** 2) / 0.36 - 10 * jnp.log(0.6)
        return jnp.logaddexp(wide, p["logit"] + narrow) - 5 * jnp.log(2 * jnp.pi)

    prior = lambda x: jnp.sum(dist.Normal(0, 6).log_prob(x))  # noqa: E731
    model = pk.Model(
        x=dist.Normal(0, 6).expand([10]),
        peaks=pk.factor(lambda x: log_mixture({"logit": jnp.log(0.5)}, x) - prior(x)),
    )
    sample = lambda p, key, n: jax.random.normal(key, (n, 10))  # noqa: E731
    target, key = model.bind({}), np.array([0, 1], np.uint32)
    fitted = Approximation(sample, log_mixture, {"logit": np.float32(-60.0)}, 1000, "one")
    weights = weigh(target, fitted, key, 4000)
    (check,) = mode_check(target, fitted, key, weights)
    assert weights.khat < 0.7 and check.ok is False
    assert check.value == pytest.approx(1 / 3, abs=0.03)


def test_too_many_dimensions_are_said():
    target = Target.from_log_density(lambda z: -0.5 * jnp.sum(z["x"] ** 2), {"x": np.zeros(501)})
    fitted = Approximation(_draw, _log_mixture, {}, 1000, "wide")
    weights = Weights(np.zeros((1, 501)), np.zeros(1), np.zeros(1))
    (check,) = mode_check(target, fitted, np.zeros(2, np.uint32), weights)
    assert check.ok is None and "500" in check.advice


def test_laplace_is_checked_too():
    """Modes of mass 0.85 and 0.15 in one dimension: Laplace takes one of them."""

    def log_density(z):
        x = z["x"][0]
        return jnp.logaddexp(jnp.log(0.85) - 0.5 * (x + 4) ** 2, jnp.log(0.15) - 0.5 * (x - 4) ** 2)

    target = Target.from_log_density(log_density, {"x": np.zeros(1)})
    posterior = pk.fit(target, method=pk.Laplace(starts=8), progress=False)
    verdict = posterior.check()
    assert verdict["ess_ratio"].ok
    assert verdict["modes"].ok is False and not verdict.ok
    assert verdict["modes"].value == pytest.approx(0.15, abs=0.02)


def test_climb():
    """Rosenbrock's valley, a badly scaled bowl, and a start that has no log density."""

    def valley(x):
        return -((1 - x[0]) ** 2) - 100 * (x[1] - x[0] ** 2) ** 2

    starts = jnp.array([[-1.2, 1.0], [0.0, 0.0], [2.0, -2.0]])
    x, value, slope = jax.jit(lambda s: climb(valley, s, jnp.ones(2)))(starts)
    np.testing.assert_allclose(x, 1.0, atol=5e-3)
    scales = jnp.array([1e-3, 1.0, 1e3])
    x, _, _ = climb(lambda z: -0.5 * jnp.sum((z / scales - 2) ** 2), jnp.ones((2, 3)), scales)
    np.testing.assert_allclose(x / scales, 2.0, atol=5e-3)
    x, value, _ = climb(lambda z: jnp.sum(jnp.log(z)) - jnp.sum(z), -jnp.ones((1, 1)), jnp.ones(1))
    assert float(x[0, 0]) == -1.0 and np.isnan(value[0])
