"""The data-emphasised objective: closed forms, and a linear Gaussian model worked out by hand."""

from __future__ import annotations

from typing import Any

import equinox as eqx
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
    mean, variance = np.zeros(SIZE), 1.0
    for _ in range(5000):
        bend = kappa * X.T @ X / noise + np.eye(SIZE) / tau
        mean = np.linalg.solve(bend, kappa * X.T @ y / noise)
        variance = SIZE / np.trace(bend)
        tau = np.mean(mean**2) + variance
    return mean, variance, tau


def _linear():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(ROWS, SIZE))
    return X, X @ rng.normal(size=SIZE) + NOISE * rng.normal(size=ROWS)


@pytest.mark.parametrize("kappa", [None, 1.0])
def test_linear_gaussian(kappa):
    X, y = _linear()
    model = pk.Model(
        w=dist.Normal(0, 1).expand([SIZE]),
        y=pk.rv(lambda w, X: dist.Normal(X @ w, NOISE), dims="row"),
    )
    method = DataEmphasis("w", kappa=kappa, steps=4000, step_size=0.03, particles=8, start="zero")
    posterior = pk.fit(model, {"X": X, "y": y}, method=method, progress=False)
    fitted: Any = posterior.approximation
    stats = fitted.stats
    assert stats["kappa"] == (SIZE / ROWS if kappa is None else 1.0)
    mean, variance, tau = _fixed_point(X, y, stats["kappa"])
    found = fitted.params["mean"]
    np.testing.assert_allclose(found, mean, atol=0.05 * np.abs(mean).max())
    assert stats["weight_sd"] ** 2 == pytest.approx(variance, rel=0.1)
    assert stats["prior_sd"] ** 2 == pytest.approx(tau, rel=0.1)
    verdict = posterior.check()
    assert verdict["settled"].ok and "k_hat" not in verdict


def test_module_through_the_public_option():
    """An equinox layer without bias is the linear model: the same closed form, two starts."""
    X, y = _linear()
    layer = eqx.nn.Linear(SIZE, "scalar", use_bias=False, key=jax.random.key(0))
    model = pk.Model(
        net=pk.module(layer, prior=dist.Normal(0, 1)),
        y=pk.rv(lambda net, X: dist.Normal(jax.vmap(net)(X), NOISE), dims="row"),
    )
    method = pk.VI(objective="data_emphasised", max_steps=4000, step_size=0.03, starts=2)
    assert (method.chains, method.num_steps, method.family) == (2, 4000, "isotropic")
    posterior = pk.fit(model, {"X": X, "y": y}, method=method, progress=False)
    fitted: Any = posterior.approximation
    stats = fitted.stats
    assert (stats["kappa"], stats["weights"], stats["starts"]) == (SIZE / ROWS, SIZE, 2)
    _, variance, tau = _fixed_point(X, y, SIZE / ROWS)
    assert stats["weight_sd"] ** 2 == pytest.approx(variance, rel=0.15)
    assert stats["prior_sd"] ** 2 == pytest.approx(tau, rel=0.15)
    assert posterior.status.name == "OK"


def test_a_run_that_is_cut_short_says_so():
    X, y = _linear()
    model = pk.Model(
        w=dist.Normal(0, 1).expand([SIZE]),
        noise=dist.LogNormal(0, 3),
        y=pk.rv(lambda w, noise, X: dist.Normal(X @ w, noise), dims="row"),
    )
    method = pk.VI(objective="data_emphasised", weights="w", max_steps=200)
    posterior = pk.fit(model, {"X": X, "y": y}, method=method, progress=False)
    verdict = posterior.check()
    assert posterior.status.name == "MAX_STEPS"
    assert not verdict["hyperparameters_still"].ok and "max_steps" in str(verdict)


def test_bad_input():
    with pytest.raises(TypeError, match="kappa"):
        pk.VI(objective="data_emphasised", kapa=1.0)
    with pytest.raises(ValueError, match="kappa"):
        pk.VI(objective="data_emphasised", kappa=-1.0)
    with pytest.raises(ValueError, match="only of use with objective='data_emphasised'"):
        pk.VI(kappa=2.0)
    with pytest.raises(ValueError, match="leave `family` out"):
        pk.VI(objective="data_emphasised", family="fullrank")
    with pytest.raises(ValueError, match="start"):
        DataEmphasis("w", start="pior")
    model = pk.Model(
        w=dist.Normal(0, 1).expand([3]),
        s=dist.HalfNormal(1),
        y=pk.rv(lambda w, s: dist.Normal(w, s), dims="row"),
    )
    data = {"y": np.zeros(3)}
    for weights, words in (("v", "no such site"), ("s", "real line"), (None, "found no module")):
        with pytest.raises(ValueError, match=words):
            method = pk.VI(objective="data_emphasised", weights=weights)
            pk.fit(model, data, method=method, progress=False)
