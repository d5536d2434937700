"""Fixed draws and L-BFGS: Sobol's points, exact answers, statuses, options."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

import probkit as pk
from probkit.core import Status, Target, run
from probkit.inference.vi._sobol import directions, sobol_normal
from tests.inference.cases import COVARIANCE, LOG_NORMALISER, SCHOOLS, correlated, schools


def _points(shift, n):
    return np.asarray(jax.jit(sobol_normal, static_argnums=(1, 2))(shift, n, jnp.float32))


def test_direction_numbers_are_scipys_but_for_the_scramble():
    """Scrambled points keep the net property: each dyadic interval holds its share of points."""
    table = directions(5, 6)
    points = np.zeros((64, 5), np.uint32)
    for n in range(64):
        for b in range(6):
            if n >> b & 1:
                points[n] ^= table[b]
    for column in points.T:
        assert sorted(column >> 24) == list(range(64))
    unit = points / 2.0**30
    rough = qmc.discrepancy(np.random.default_rng(0).random((64, 5)))
    assert qmc.discrepancy(unit) < 0.3 * rough


def test_draws_are_standardised_pairs():
    shift = jax.random.bits(jax.random.key(0), (6,), jnp.uint32)
    draws = _points(shift, 256)
    np.testing.assert_allclose(draws[:128], -draws[128:], atol=1e-6)
    np.testing.assert_allclose(draws.T @ draws / 256, np.eye(6), atol=1e-5)
    assert abs(np.mean(draws**4) - 3.0) < 0.3 and np.all(np.isfinite(draws))


def test_few_draws_of_many_dimensions_are_left_as_they_are():
    draws = _points(jnp.zeros(200, jnp.uint32), 64)
    assert draws.shape == (64, 200) and np.all(np.isfinite(draws))


def test_exact_on_a_gaussian_whatever_the_draws():
    """Standardised draws make the objective exact where the log density is quadratic."""
    fit = run(correlated(), pk.VI(family="fullrank", optimizer="saa", particles=32), 0)
    stats = fit.output.stats
    assert fit.status is Status.OK and stats["fixed_draws"] == 32
    assert stats["elbo"] == pytest.approx(LOG_NORMALISER, abs=2e-3)
    assert stats["objective_of_fixed_draws"] == pytest.approx(LOG_NORMALISER, abs=2e-3)


def test_the_best_mean_field_fit():
    fit = run(correlated(), pk.VI(family="meanfield", optimizer="saa"), 0)
    precision = np.linalg.inv(COVARIANCE)
    best = 0.5 * (4 * np.log(2 * np.pi) - np.sum(np.log(np.diag(precision))))
    assert fit.status is Status.OK and fit.output.stats["steps"] < 100
    assert fit.output.stats["objective_of_fixed_draws"] == pytest.approx(best, abs=2e-3)
    params = jax.tree.map(np.asarray, fit.output.params)
    sd = params["frame"]["scale"] * np.exp(params["family"]["scale"])
    np.testing.assert_allclose(sd, np.diag(precision) ** -0.5, rtol=1e-2)


def test_eight_schools_with_correlations():
    """No full-rank Gaussian is above -31.53, and the best one is near it."""
    fit = run(schools.bind(SCHOOLS), pk.VI(family="fullrank", optimizer="saa"), 0)
    stats = fit.output.stats
    assert fit.status is Status.OK
    assert stats["objective_of_fixed_draws"] == pytest.approx(-31.53, abs=0.03)
    assert stats["elbo"] == pytest.approx(-31.53, abs=0.06)  # 3 standard errors
    assert all(c.ok for c in fit.output.checks)


@functools.cache
def _funnel() -> Target:
    def log_density(z):
        scale = jnp.sum(z["x"] ** 2) * jnp.exp(-2.0 * z["v"])
        return -0.5 * z["v"] ** 2 - 0.5 * scale - 6.0 * z["v"]

    return Target.from_log_density(log_density, {"v": np.zeros(()), "x": np.zeros(6)})


def test_too_few_draws_are_told():
    """What eight draws of a funnel say of the fit is not what fresh ones say."""
    fit = run(_funnel(), pk.VI(family="fullrank", optimizer="saa", particles=8), 0)
    (check,) = [c for c in fit.output.checks if c.name == "fixed_draws"]
    assert not check.ok and "particles=32" in check.advice


def test_a_budget_too_small_is_a_status():
    method = pk.VI(family="fullrank", optimizer="saa", particles=8, max_steps=10)
    fit = run(_funnel(), method, 0)
    assert fit.status is Status.MAX_STEPS and fit.steps == 1
    assert np.isfinite(fit.output.stats["elbo"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"family": "flow"}, "Gaussian families"),
        ({"family": "meanfield", "objective": "iwelbo"}, "objective"),
        ({"family": "meanfield", "gradient": "score"}, "gradient"),
        ({"family": "meanfield", "batch_size": 8}, "batch_size"),
        ({"family": "meanfield", "step_size": 0.1}, "step_size"),
        ({"family": "meanfield", "tempering": 9}, "tempering"),
    ],
    ids=lambda x: str(x),
)
def test_options_that_do_not_go_together(options, words):
    with pytest.raises(ValueError, match=words):
        pk.VI(optimizer="saa", **options)


def test_an_unknown_optimizer():
    with pytest.raises(ValueError, match="optimizer"):
        pk.VI(optimizer="sgd")
