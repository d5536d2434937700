"""The wider sample that judges a fit whose own importance weights are not good."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import probkit as pk
from probkit.core import Approximation, Target, weigh
from probkit.core._psis import unseen_share
from probkit.core._weights import Weights

SIZE = 3


def _log_normal(p, x):
    return jnp.sum(jax.scipy.stats.norm.logpdf(x, p["mean"], p["sd"]))


def _draw(p, key, n):
    return p["mean"] + p["sd"] * jax.random.normal(key, (n, SIZE))


def _fitted(mean=0.0, sd=1.0):
    params = {k: np.broadcast_to(np.float32(v), SIZE) for k, v in (("mean", mean), ("sd", sd))}
    return Approximation(_draw, _log_normal, params, 1000, "normal")


@functools.cache
def _heavy():
    """Independent t with 5 degrees of freedom: variance 5/3, and tails heavier than a normal's."""
    return Target.from_log_density(
        lambda z: jnp.sum(jax.scipy.stats.t.logpdf(z["x"], 5.0)), {"x": np.zeros(SIZE)}
    )


def _key(number=0):
    return np.array([7, number], np.uint32)


def test_right_moments_with_light_tails_are_noted():
    """k-hat above 0.7 and all moments right: told, and not held against the fit."""
    found = weigh(_heavy(), _fitted(sd=np.sqrt(1.5)), _key(1))
    checks = {c.name: c for c in found.checks()}
    assert found.khat > 0.7 and found.wider is not None and found.wider.khat < 0.7
    assert checks["k_hat"].ok is None and checks["k_hat"].value == found.khat
    assert "noted" in checks["k_hat"].advice
    assert checks["mean_shift"].ok and checks["sd_ratio"].ok and found.ok
    np.testing.assert_allclose(found.moments["mean"], 0.0, atol=0.05)
    np.testing.assert_allclose(found.moments["sd"], np.sqrt(5 / 3), rtol=0.03)
    assert abs(found.log_evidence.value) < max(4 * found.log_evidence.se, 0.01)


def test_wrong_moments_are_flagged_whatever_k_hat_says():
    """A mean off by 0.2 sd, or sds of 0.7; 10 keys each."""
    for number in range(10):
        shifted = weigh(_heavy(), _fitted(mean=0.26, sd=np.sqrt(1.5)), _key(number))
        narrow = weigh(_heavy(), _fitted(sd=0.9), _key(number))
        assert {c.name for c in shifted.checks() if c.ok is False} >= {"mean_shift"}
        assert {c.name for c in narrow.checks() if c.ok is False} >= {"sd_ratio"}
        assert not shifted.ok and not narrow.ok


def test_mean_field_on_a_correlation_of_0_99():
    """The sds are a seventh of the right ones: flagged in 20 of 20 draws, with 500 draws each.

    k-hat alone misses it in a quarter of all cases.
    """
    precision = np.linalg.inv(np.array([[1.0, 0.99], [0.99, 1.0]]))

    def log_density(z):
        return -0.5 * z["x"] @ jnp.asarray(precision, z["x"].dtype) @ z["x"]

    target = Target.from_log_density(log_density, {"x": np.zeros(2)})
    params = {"mean": np.zeros(2, np.float32), "sd": np.float32(np.diag(precision) ** -0.5)}
    draw = lambda p, key, n: p["sd"] * jax.random.normal(key, (n, 2))  # noqa: E731
    fitted = Approximation(draw, _log_normal, params, 1000, "mean field")
    for number in range(20):
        assert not weigh(target, fitted, _key(number), 500).ok


def test_density_of_the_wider_sample():
    """log g against the mixture written out, and log p; the first rows are q's own draws."""
    fitted = _fitted(mean=0.5, sd=0.6)
    found = weigh(_heavy(), fitted, _key(), 2000)
    wider = found.wider
    assert wider is not None and len(wider.points) == 4000
    np.testing.assert_array_equal(wider.points[:2000], found.points)
    z, centre = wider.points.astype(float), found.points.mean(axis=0, dtype=float)
    factors = 1 + np.array([0.2, 0.5, 1, 2, 4]) * (2 / SIZE) ** 0.25

    def log_q(x):
        return np.sum(-0.5 * ((x - 0.5) / 0.6) ** 2 - np.log(0.6) - 0.5 * np.log(2 * np.pi), axis=1)

    parts = [log_q(z) + np.log(0.5)]
    parts += [log_q(centre + (z - centre) / f) - SIZE * np.log(f) + np.log(0.1) for f in factors]
    np.testing.assert_allclose(wider.log_q, logsumexp(parts, axis=0), rtol=1e-4, atol=1e-3)
    # Draws moved by each factor in turn: their spread is that of the mixture.
    spread = np.sqrt(np.mean(factors**2)) * 0.6
    assert z[2000:].std() == pytest.approx(spread, rel=0.1)


def test_good_weights_need_no_wider_sample():
    target = Target.from_log_density(lambda z: -0.5 * jnp.sum(z["x"] ** 2), {"x": np.zeros(SIZE)})
    found = weigh(target, _fitted(), _key(), 2000)
    assert found.wider is None and found.best is found and found.khat == 0.0


def test_weights_that_cannot_be_trusted():
    """Where the wider sample is no better, the moments are not judged and k-hat fails."""
    rng = np.random.default_rng(0)
    tail = -1.3 * np.log(rng.random(4000))
    bad = Weights(np.zeros((4000, 1)), tail, np.zeros(4000))
    good = Weights(np.zeros((4000, 1)), 0.1 * tail, np.zeros(4000), wider=bad)
    assert not bad.trusted and np.isinf(unseen_share(tail))
    checks = {c.name: c for c in good.checks()}
    assert good.khat < 0.7 and checks["k_hat"].ok is False
    assert checks["k_hat"].value == bad.khat and "around" in checks["k_hat"].where
    assert checks["mean_shift"].ok is None and not good.ok


def test_weights_that_overflow():
    """A k-hat in the hundreds: the smoothed tail is cut at the largest weight; no warning."""
    found = Weights(np.zeros((4000, 1)), np.linspace(0.0, 1.0, 4000) ** 300 * 1e5, np.zeros(4000))
    assert found.khat > 0.7 and not found.trusted and np.isfinite(found.smoothed).all()


def test_a_heavy_tail_with_little_in_it_is_trusted():
    rng = np.random.default_rng(0)
    tail = -0.85 * np.log(rng.random(20_000))
    z = np.zeros((20_000, 1))
    assert not Weights(z, tail, np.zeros(20_000)).trusted
    small = Weights(z, np.logaddexp(8.0, tail), np.zeros(20_000))
    assert small.khat > 0.7 and small.trusted and unseen_share(small.log_weights) < 0.02


def test_posterior_corrects_with_it():
    """Resampling and evidence come from the wider sample."""
    target = Target.from_log_density(
        lambda z: jnp.sum(jax.scipy.stats.t.logpdf(z["x"], 5.0)), {"x": np.zeros(SIZE, np.float32)}
    )
    posterior = pk.fit(target, method=pk.Laplace(draws=1000), progress=False, seed=1)
    found = posterior.weights
    assert found.wider is not None and found.wider.trusted
    again = posterior.importance_resample(20_000, seed=0)
    np.testing.assert_allclose(again.values["x"][0].std(axis=0), np.sqrt(5 / 3), rtol=0.06)
    assert again.check()["k_hat"].ok
    assert abs(posterior.log_evidence.value) < max(4 * posterior.log_evidence.se, 0.02)
