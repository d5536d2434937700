"""Laplace's approximation: exact on Gaussians, honest elsewhere."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Status, Target, run
from tests.inference.cases import (
    CENTRE,
    COVARIANCE,
    LOG_NORMALISER,
    SCHOOLS,
    correlated,
    schools,
    scores,
)


@functools.cache
def _gaussian():
    return pk.fit(correlated(), method=pk.Laplace(), progress=False)


def test_exact_on_a_gaussian():
    posterior = _gaussian()
    assert posterior.status is Status.OK
    params = posterior.approximation.params
    np.testing.assert_allclose(params["mean"], CENTRE, atol=2e-3)
    precision = params["tril"] @ params["tril"].T
    np.testing.assert_allclose(
        np.linalg.inv(precision.astype(float)), COVARIANCE, rtol=1e-3, atol=1e-4
    )
    assert posterior.approximation.log_evidence == pytest.approx(LOG_NORMALISER, abs=1e-3)
    assert posterior.log_evidence.value == pytest.approx(LOG_NORMALISER, abs=1e-3)
    verdict = posterior.check()
    assert verdict.ok and verdict["k_hat"].value < 0.5
    stats = posterior.approximation.stats
    assert stats["starts_at_best_mode"] == stats["starts"] == 4
    assert stats["distance_to_mode"] < 1e-2


def test_its_draws_are_its_distribution():
    """8 scores; one of them beyond 5 by chance: 5e-6 (the draws are independent)."""
    assert np.max(scores(_gaussian().values["x"], CENTRE, COVARIANCE)) < 5.0


def test_eight_schools_is_not_gaussian():
    for reparam in ("auto", "off"):
        posterior = pk.fit(schools, SCHOOLS, method=pk.Laplace(), reparam=reparam, progress=False)
        if reparam == "auto":
            assert posterior.status is Status.OK
            khat = posterior.check()["k_hat"]
            assert khat.value > 0.7 and khat.ok is False
        assert not posterior.check().ok


def _one(fn, start=1, **options):
    target = Target.from_log_density(fn, {"x": np.zeros(start)})
    return run(target, pk.Laplace(**{"draws": 10, **options}), 0)


def test_the_best_of_several_modes():
    """Modes at -1.5 and 1.5 with heights 0 and 3: the starts find both, the higher is kept."""

    def log_density(z):
        x = z["x"][0]
        return jnp.logaddexp(-8 * (x + 1.5) ** 2, 3.0 - 8 * (x - 1.5) ** 2)

    out = _one(log_density, starts=16).output
    assert float(out.params["mean"][0]) == pytest.approx(1.5, abs=1e-2)
    assert 0 < out.stats["starts_at_best_mode"] < 16


def test_a_budget_too_small():
    def valley(z):  # Rosenbrock's
        x, y = z["x"]
        return -((1 - x) ** 2) - 100 * (y - x**2) ** 2

    short, long = _one(valley, 2, max_steps=2), _one(valley, 2, max_steps=200)
    assert short.status is Status.MAX_STEPS and short.output.stats["distance_to_mode"] > 0.05
    assert long.status is Status.OK
    np.testing.assert_allclose(long.output.params["mean"], [1.0, 1.0], atol=1e-2)


def test_damping_is_not_taken_for_a_mode():
    """The density rises to the edge of its support and has no mode: steps across it are refused
    and the damping grows until they are tiny, which is not convergence."""

    def edge(z):
        x = z["x"][0]
        return jnp.where(x > -3.0, -jnp.exp(8.0 * x) - 0.01 * x**2 - 0.5 * x, -jnp.inf)

    found = _one(edge, starts=8)
    assert found.status is Status.MAX_STEPS
    assert found.output.stats["distance_to_mode"] > 1.0
    assert float(found.output.params["mean"][0]) == pytest.approx(-3.0, abs=0.01)


def test_a_flat_direction_is_a_status():
    out = _one(lambda z: -0.5 * z["x"][0] ** 2, 2)
    assert out.status is Status.NOT_POSITIVE_DEFINITE
    assert np.all(np.isfinite(out.output.params["tril"]))
    (check,) = [c for c in out.output.checks if c.name == "curvature"]
    assert check.ok is False and check.where == "'x[1]'"


def test_a_flat_combination_names_its_coordinates():
    """Only the sum of a and b[1] is known: the verdict names the two, and not the others."""

    def fn(z):
        known = jnp.sum(z["b"] ** 2) - z["b"][1] ** 2
        return -0.5 * (known + (z["a"] + z["b"][1] - 1.0) ** 2)

    target = Target.from_log_density(fn, {"a": np.zeros(()), "b": np.zeros(3)})
    posterior = pk.fit(target, method=pk.Laplace(), progress=False)
    verdict = posterior.check()
    assert not verdict.ok and "proper" in verdict["curvature"].advice
    assert sorted(verdict["curvature"].where.replace("'", "").split(", ")) == ["a", "b[1]"]
