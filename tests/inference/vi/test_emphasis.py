"""The data-emphasised objective: closed forms, and a linear Gaussian model worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit import dist
from probkit.inference.vi._emphasis import DataEmphasis, divergence, prior_variance

SIZE, ROWS, NOISE = 12, 6, 0.3


def test_prior_variance_is_the_best_one():
    """tau* zeroes the derivative of the divergence, and is a minimum."""
    rng = np.random.default_rng(0)
    mean, sd = jnp.asarray(rng.normal(size=9)), jnp.asarray(0.4)
    best = prior_variance(mean, sd, 0.2)
    assert float(best) == pytest.approx(float(np.mean((np.asarray(mean) - 0.2) ** 2) + 0.16))
    slope = jax.grad(lambda t: divergence(mean, sd, t, 0.2))(best)
    assert abs(float(slope)) < 1e-4
    low = float(divergence(mean, sd, None, 0.2))
    for other in (0.5, 0.9, 1.1, 2.0):
        assert float(divergence(mean, sd, other * best, 0.2)) > low
    exact = dist.kl_divergence(dist.Normal(mean, sd), dist.Normal(0.2, jnp.sqrt(best))).sum()
    assert low == pytest.approx(float(exact), rel=1e-4)


def _fixed_point(X, y, kappa):
    """m, s^2 and tau of the optimum: each in closed form given the others, to convergence."""
    tau, noise = 1.0, NOISE**2
    for _ in range(5000):
        bend = kappa * X.T @ X / noise + np.eye(SIZE) / tau
        mean = np.linalg.solve(bend, kappa * X.T @ y / noise)
        variance = SIZE / np.trace(bend)
        tau = np.mean(mean**2) + variance
    return mean, variance, tau


@pytest.mark.parametrize("kappa", [None, 1.0])
def test_linear_gaussian(kappa):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(ROWS, SIZE))
    y = X @ rng.normal(size=SIZE) + NOISE * rng.normal(size=ROWS)
    model = pk.Model(
        w=dist.Normal(0, 1).expand([SIZE]),
        y=pk.rv(lambda w, X: dist.Normal(X @ w, NOISE), dims="row"),
    )
    method = DataEmphasis("w", kappa=kappa, steps=8000, step_size=0.03, particles=8, start="zero")
    posterior = pk.fit(model, {"X": X, "y": y}, method=method, progress=False)
    stats = posterior.approximation.stats
    assert stats["kappa"] == (SIZE / ROWS if kappa is None else 1.0)
    mean, variance, tau = _fixed_point(X, y, stats["kappa"])
    found = posterior.approximation.params["mean"]
    np.testing.assert_allclose(found, mean, atol=0.05 * np.abs(mean).max())
    assert stats["weight_sd"] ** 2 == pytest.approx(variance, rel=0.1)
    assert stats["prior_sd"] ** 2 == pytest.approx(tau, rel=0.1)
    verdict = posterior.check()
    assert verdict["settled"].ok and "k_hat" not in verdict


def test_bad_input():
    with pytest.raises(TypeError, match="kappa"):
        DataEmphasis("w", kapa=1.0)
    with pytest.raises(ValueError, match="start"):
        DataEmphasis("w", start="pior")
    model = pk.Model(
        w=dist.Normal(0, 1).expand([3]),
        s=dist.HalfNormal(1),
        y=pk.rv(lambda w, s: dist.Normal(w, s), dims="row"),
    )
    data = {"y": np.zeros(3)}
    with pytest.raises(ValueError, match="no such site"):
        pk.fit(model, data, method=DataEmphasis("v"), progress=False)
    with pytest.raises(ValueError, match="real line"):
        pk.fit(model, data, method=DataEmphasis("s"), progress=False)
