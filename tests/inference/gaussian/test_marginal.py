"""Hyperparameters drawn with the function integrated out: against a grid, and the mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.inference.gaussian import _marginal

RNG = np.random.default_rng(5)
X = RNG.uniform(-2, 2, size=20)
Y = np.sin(2 * X) + 0.3 * RNG.normal(size=20)

regression = pk.Model(
    log_length=pk.dist.Normal(0.0, 1.0),
    f=pk.gp(lambda log_length: pk.kernels.RBF(jnp.exp(log_length)), at="x"),
    y=pk.rv(lambda f: pk.dist.Normal(f, 0.3), dims="row"),
)


def log_posterior(target: pk.Target, engine: str, at: np.ndarray) -> np.ndarray:
    """Of the one hyperparameter, at points."""
    reduced = _marginal.reduced(target, engine)
    with jax.enable_x64(True):
        fn = jax.jit(jax.vmap(lambda v: reduced.flat_log_density(v[None])))
        return np.asarray(fn(jnp.asarray(at)))


@pytest.fixture(scope="module")
def fitted() -> pk.Posterior:
    method = pk.Marginal(pk.NUTS(draws=500, warmup=300, chains=2))
    return pk.fit(regression, {"x": X, "y": Y}, method=method, seed=1, progress=False)


def test_density_is_the_exact_evidence_times_the_prior() -> None:
    target = regression.bind({"x": X, "y": Y})
    at = np.array([-0.7, 0.2])
    found = log_posterior(target, "auto", at)
    from scipy.stats import multivariate_normal, norm

    for value, h in zip(found, at, strict=True):
        K = np.exp(-0.5 * ((X[:, None] - X) / np.exp(h)) ** 2) + 0.09 * np.eye(20)
        truth = multivariate_normal.logpdf(Y, np.zeros(20), K) + norm.logpdf(h)
        assert abs(value - truth) < 1e-8


def test_draws_follow_the_grid_and_the_function_follows_them(fitted: pk.Posterior) -> None:
    grid = np.linspace(-2.0, 1.5, 400)
    log_p = log_posterior(fitted.target, "auto", grid)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean, sd = p @ grid, np.sqrt(p @ grid**2 - (p @ grid) ** 2)
    draws = fitted.values["log_length"]
    size = float(fitted.summary(var_names=["log_length"])["ess_bulk"].iloc[0])
    # Five standard errors: false alarms below 1e-6.
    assert abs(draws.mean() - mean) < 5 * sd / np.sqrt(size)
    verdict = fitted.check()
    assert verdict["r_hat"].value < 1.03 and verdict["divergences"].ok
    # Means of f over the draws, against the mixture with the inner integrals done.
    theta = _marginal.hyperparameters(fitted.target, fitted._drawn.unconstrained).reshape(-1, 1)
    new = regression.bind({"x": X, "y": Y})
    mixed = _marginal.mixture(fitted.target, new, theta)
    f = fitted.values["f"].reshape(-1, 20)
    assert np.all(np.abs(f.mean(0) - mixed["mean"]) < 5 * np.sqrt(mixed["var"] / len(f)))
    assert np.all(np.abs(f.var(0) / mixed["var"] - 1) < 5 * np.sqrt(2 / len(f)))
    density = fitted.log_predictive({"x": X, "y": Y})
    np.testing.assert_allclose(np.asarray(density), mixed["log_density"], atol=0.05)


def test_approximations_come_back_from_the_whitened_coordinates(fitted: pk.Posterior) -> None:
    method = pk.Marginal(pk.Laplace(draws=2000))
    made = pk.fit(regression, {"x": X, "y": Y}, method=method, seed=1, progress=False)
    a, b = made.values["log_length"], fitted.values["log_length"]
    # A skewed posterior: the mode is not the mean.
    assert abs(a.mean() - b.mean()) < 0.7 * b.std() and 0.6 < a.std() / b.std() < 1.5
    grid = np.linspace(-3.0, 3.0, 600)
    log_p = log_posterior(fitted.target, "auto", grid)
    exact = log_p.max() + np.log(np.sum(np.exp(log_p - log_p.max())) * (grid[1] - grid[0]))
    assert abs(made.approximation.log_evidence - exact) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["laplace", "ep"])
def test_engines_integrate_labels_out(engine: str) -> None:
    classes = pk.Model(
        log_length=pk.dist.Normal(0.0, 1.0),
        f=pk.gp(lambda log_length: 4.0 * pk.kernels.RBF(jnp.exp(log_length)), at="x"),
        y=pk.rv(lambda f: pk.BernoulliProbit(f), dims="row"),
    )
    data = {"x": X, "y": (Y > 0).astype(int)}
    method = pk.Marginal(pk.NUTS(draws=300, warmup=200, chains=2), engine=engine)
    ours = pk.fit(classes, data, method=method, seed=1, progress=False)
    whole = pk.fit(classes, data, method=pk.NUTS(draws=1000, chains=2), seed=1, progress=False)
    a, b = ours.values["log_length"], whole.values["log_length"]
    # EP's evidence is good to a few hundredths of a nat here; Laplace's is not.
    room = 0.25 if engine == "ep" else 0.5
    assert abs(a.mean() - b.mean()) < room * b.std()


def test_mistakes() -> None:
    with pytest.raises(TypeError, match="Did you mean 'engine'"):
        pk.Marginal(engin="ep")
    with pytest.raises(ValueError, match="Did you mean 'laplace'"):
        pk.Marginal(engine="laplac")
    with pytest.raises(TypeError, match=r"pk\.NUTS\(\)"):
        pk.Marginal(pk.EP())
    fixed = regression.do(log_length=0.0)
    with pytest.raises(ValueError, match="no hyperparameters"):
        pk.fit(fixed, {"x": X, "y": Y}, method=pk.Marginal(), progress=False)


@pytest.mark.parametrize(
    "inner",
    [
        pk.Laplace(draws=500),
        pytest.param(pk.VI(family="fullrank", draws=500), marks=pytest.mark.slow),
    ],
    ids=["laplace", "vi"],
)
def test_an_approximation_of_the_hyperparameters_brings_its_evidence(inner) -> None:
    """Against a grid: evidence, and the moments of the hyperparameter."""
    method = pk.Marginal(inner)
    found = pk.fit(regression, {"x": X, "y": Y}, method=method, progress=False)
    at = np.linspace(-4.0, 4.0, 401)
    logs = log_posterior(found.target, "auto", at)
    share = np.exp(logs - logs.max())
    truth = np.log(share.sum() * 0.02) + logs.max()
    evidence = found.log_evidence
    assert 0.0 < evidence.se < 0.05 and evidence.khat < 0.7
    assert abs(evidence.value - truth) < 5 * evidence.se + 1e-3
    share /= share.sum()
    mean = share @ at
    draws = found.values["log_length"][0]
    # (Laplace sits at the mode.)
    sd = np.sqrt(share @ (at - mean) ** 2)
    assert abs(draws.mean() - mean) < 0.6 * sd and abs(draws.std() / sd - 1) < 0.3
    assert "k_hat" in str(found.check())
    assert found.values["f"].shape == (1, 500, 20)
