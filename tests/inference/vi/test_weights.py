"""Importance weights of an approximation: figures, checks, and what the posterior makes of them."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Target, Weights, importance_checks, weigh
from probkit.core._weights import k_error


def _gaussian(mean, sd, n=20_000, seed=0, dims=1):
    """Draws of N(mean, sd^2) weighed against N(0, 1), in ``dims`` dimensions."""
    z = mean + sd * np.random.default_rng(seed).normal(size=(n, dims))
    log_p = -0.5 * np.sum(z**2, axis=1)
    log_q = np.sum(-0.5 * ((z - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi), axis=1)
    return Weights(z, log_p, log_q)


def test_figures_of_a_gaussian():
    """KL(N(m, s^2) || N(0, 1)) and the evidence are known; 4 standard errors, 6e-5 each."""
    found = _gaussian(0.05, 0.9)
    exact = 0.5 * np.log(2 * np.pi)
    gap = 0.5 * (0.9**2 + 0.05**2 - 1) - np.log(0.9)
    assert abs(found.log_evidence.value - exact) < 4 * found.log_evidence.se
    assert abs(found.elbo.value - (exact - gap)) < 4 * found.elbo.se
    assert found.ok and found.ess_ratio > 0.9
    assert 0.04 < found.khat_se < 0.08
    corrected = found.moments
    np.testing.assert_allclose([corrected["mean"][0], corrected["sd"][0]], [0, 1], atol=0.02)
    assert found.smoothed.shape == (20_000,) and np.exp(found.smoothed).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("mean", "sd", "failed"),
    [
        (0.0, 1.0, set()),
        (0.15, 1.0, {"mean_shift"}),
        (0.0, 0.78, {"sd_ratio"}),
        (0.0, 1.3, {"sd_ratio"}),
        (0.0, 0.3, {"k_hat"}),
        (0.0, 20.0, {"ess_ratio", "sd_ratio"}),
    ],
)
def test_what_is_flagged(mean, sd, failed):
    checks = {c.name: c for c in _gaussian(mean, sd).checks(lambda i: f"theta[{i}]")}
    found = {name for name, c in checks.items() if c.ok is False}
    assert failed <= found and (found == failed or "k_hat" in failed)
    assert all(c.advice for name, c in checks.items() if name in failed)
    if "k_hat" in failed:
        assert checks["mean_shift"].ok is None and "k-hat" in checks["mean_shift"].advice
    if "mean_shift" in failed:
        assert (
            checks["mean_shift"].where
            == f"theta[0], {checks['mean_shift'].value:+.2f} posterior sds"
        )


def test_many_coordinates_raise_no_alarm():
    assert _gaussian(0.01, 0.97, dims=60).ok


def test_constant_weights():
    z = np.random.default_rng(0).normal(size=(5000, 2))
    log_q = np.sum(z, axis=1)
    for noise in (0.0, 1e-6):
        found = Weights(z, log_q - 7.0 + noise * np.round(np.sin(1e3 * log_q)), log_q)
        assert found.khat == 0.0 and found.ok
        assert found.log_evidence.value == pytest.approx(-7.0)
        assert found.elbo.value == pytest.approx(-7.0)


def test_weights_that_are_none():
    z = np.zeros((100, 1))
    for bad in (np.full(100, np.nan), np.full(100, -np.inf)):
        checks = Weights(z, bad, np.zeros(100)).checks()
        assert checks[0].ok is False and checks[2].ok is None
    assert importance_checks(np.zeros(0))[0].ok is None


def test_error_of_k_hat():
    """The sd of k-hat over 40 repetitions is within a third of the formula (chance: 1 in 500)."""
    rng = np.random.default_rng(1)
    for k in (0.2, 0.7):
        hats = [
            Weights(np.zeros((4000, 1)), -k * np.log(rng.random(4000)), np.zeros(4000)).khat
            for _ in range(40)
        ]
        assert np.std(hats) == pytest.approx(k_error(k, 4000), rel=0.33)


@functools.cache
def _laplace():
    """A skewed posterior: z ~ N(0, 1) seen through exp, so that Laplace is off but not lost."""

    def log_density(z):
        x = z["x"]
        return jnp.sum(-0.5 * x**2 - 0.5 * jnp.square(x + 0.25 * x**2 - 0.3))

    target = Target.from_log_density(log_density, {"x": np.zeros(2)})
    return pk.fit(target, method=pk.Laplace(draws=2000), progress=False)


def _truth():
    x = np.linspace(-9, 9, 40_001)
    p = np.exp(-0.5 * x**2 - 0.5 * (x + 0.25 * x**2 - 0.3) ** 2)
    z = p.sum() * (x[1] - x[0])
    mean = np.sum(x * p) / p.sum()
    return 2 * np.log(z), mean, np.sqrt(np.sum((x - mean) ** 2 * p) / p.sum())


def test_posterior_shows_them():
    posterior = _laplace()
    evidence, mean, sd = _truth()
    found = posterior.log_evidence
    assert found.method == "importance" and abs(found.value - evidence) < 4 * found.se
    assert posterior.elbo.value < evidence
    assert len(posterior.weights.points) == 20_000
    np.testing.assert_array_equal(
        posterior.weights.points[:2000], posterior._drawn.unconstrained[0]
    )
    verdict = posterior.check()
    assert [c.name for c in verdict.checks] == [
        *("status", "k_hat", "ess_ratio", "mean_shift", "sd_ratio", "modes")
    ]
    text = str(verdict)
    assert "ELBO" in text and "log evidence" in text and "KL divergence" in text
    assert {"lp", "log_q", "log_weight", "log_psis_weight"} <= set(posterior.stats)
    stats = posterior.groups("sample_stats")["sample_stats"]
    assert float(np.exp(stats["log_psis_weight"]).sum()) == pytest.approx(1.0)


def test_importance_resample():
    posterior = _laplace()
    _, mean, sd = _truth()
    again = posterior.importance_resample(8000, seed=1)
    x = again.values["x"][0]
    assert x.shape == (8000, 2) and again.draws.sizes["draw"] == 8000
    # 20,000 weighted draws: an error of about 1 % of a standard deviation.
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.05 * sd)
    np.testing.assert_allclose(x.std(axis=0), sd, rtol=0.05)
    assert "k_hat" in again.check() and "r_hat" in again.check()
    np.testing.assert_array_equal(
        again.values["x"], posterior.importance_resample(8000, seed=1).values["x"]
    )


def test_methods_that_draw_have_none():
    target = Target.from_log_density(lambda z: -0.5 * jnp.sum(z["x"] ** 2), {"x": np.zeros(1)})
    posterior = pk.fit(target, method=pk.NUTS(draws=20, warmup=20, chains=1), progress=False)
    assert posterior.weights is None
    for ask in (lambda: posterior.elbo, posterior.importance_resample):
        with pytest.raises(ValueError, match="approximation with a density"):
            ask()


def test_no_density():
    posterior = _laplace()
    from dataclasses import replace

    blank = replace(posterior.approximation, log_density=None)
    with pytest.raises(ValueError, match="density"):
        weigh(posterior.target, blank, np.zeros(2, np.uint32))
