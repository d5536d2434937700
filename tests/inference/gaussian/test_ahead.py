"""Densities of rows that were not fitted, and of rows left out: by the engines' own integrals."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import probkit as pk
from probkit.core import Approximation
from probkit.core._trees import in_precision
from probkit.results import _predict

RNG = np.random.default_rng(0)
X = RNG.uniform(-3, 3, size=40)
Y = np.sin(2 * X) + 0.3 * RNG.normal(size=40)
NEW = np.linspace(-3.5, 3.5, 9)

regression = pk.Model(
    sd=pk.dist.LogNormal(0, 1),
    length=pk.dist.LogNormal(0, 1),
    noise=pk.dist.LogNormal(-1, 1),
    f=pk.gp(lambda sd, length: sd**2 * pk.kernels.RBF(length), at="x"),
    y=pk.rv(lambda f, noise: pk.dist.Normal(f, noise), dims="row"),
)


def fit(model: pk.Model, y: np.ndarray, method, **more) -> pk.Posterior:
    return pk.fit(model, {"x": X, "y": y}, method=method, progress=False, **more)


@pytest.fixture(scope="module")
def exact() -> pk.Posterior:
    return fit(regression, Y, pk.GPExact(starts=1))


def moments(posterior: pk.Posterior, new: np.ndarray, noise: float | None = None):
    """Predictive means and sds of outcomes, by numpy."""
    sd, length, fitted = np.exp(posterior.approximation.stats["theta"])
    k = lambda a, b: sd**2 * np.exp(-0.5 * ((a[:, None] - b) / length) ** 2)  # noqa: E731
    weights = np.linalg.solve(k(X, X) + fitted**2 * np.eye(len(X)), k(X, new))
    var = sd**2 - np.sum(k(X, new) * weights, axis=0)
    return weights.T @ Y, np.sqrt(var + (fitted if noise is None else noise) ** 2)


def test_new_outcomes_far_out_have_the_normals_density(exact):
    mean, sd = moments(exact, NEW)
    for away in (0.0, 2.0, 8.0):  # in sds: by draws the last would be off by nats
        y = mean + away * sd
        found = exact.log_predictive({"x": NEW, "y": y})
        assert found.dims == ("row",)
        np.testing.assert_allclose(found, scipy.stats.norm.logpdf(y, mean, sd), atol=1e-7)


def test_what_the_fit_does_not_know_is_left_to_the_draws(exact):
    held = exact.log_predictive({"x": NEW, "y": np.zeros(9), "noise": 0.5})
    mean, sd = moments(exact, NEW, 0.5)
    # 500 draws of the function: 5 standard errors of what is some hundredths.
    np.testing.assert_allclose(held, scipy.stats.norm.logpdf(0.0, mean, sd), atol=0.15)
    some = exact.log_predictive({"x": NEW, "y": np.where(NEW > 0, np.nan, 0.0)})
    assert np.array_equal(np.isnan(some), NEW > 0)


def test_many_rows_are_taken_in_blocks(exact):
    many = np.resize(NEW, 5000)
    found = np.asarray(exact.log_predictive({"x": many, "y": np.zeros(5000)}))
    few = np.asarray(exact.log_predictive({"x": NEW, "y": np.zeros(9)}))
    np.testing.assert_allclose(found, np.resize(few, 5000), atol=1e-12)


def test_counts_are_integrated_over_the_function():
    counts = pk.Model(
        f=pk.gp(pk.kernels.RBF(1.0), at="x"),
        y=pk.rv(lambda f: pk.dist.Poisson(jnp.exp(f)), dims="row"),
    )
    seen = np.random.default_rng(1).poisson(np.exp(np.sin(X)))
    found = pk.fit(counts, {"x": X, "y": seen}, method=pk.GPLaplace(starts=1), progress=False)
    new = {"x": NEW, "y": np.array([0, 1, 2, 3, 5, 8, 13, 21, 40])}
    got = np.asarray(found.log_predictive(new))
    draws = found.predict({"x": NEW}, seed=3).predictions["f"]
    mean, sd = (
        np.asarray(v) for v in (draws.mean(("chain", "draw")), draws.std(("chain", "draw")))
    )
    f = mean + sd * np.linspace(-12, 12, 4001)[:, None]
    terms = scipy.stats.poisson.pmf(new["y"], np.exp(f)) * scipy.stats.norm.pdf(f, mean, sd)
    near = np.log(np.trapezoid(terms, f, axis=0))
    # (The moments are those of 500 draws.)
    np.testing.assert_allclose(got[:5], near[:5], atol=0.1)
    assert np.all(np.abs(got - near) < 0.1 + 0.15 * np.abs(near))


def test_rows_of_several_processes_are_left_out_by_cavities():
    model = pk.Model(
        f=pk.gp(pk.kernels.RBF(1.0), at="x"),
        g=pk.gp(pk.kernels.RBF(2.0, 0.25), at="x", mean=-1.0),
        y=pk.rv(lambda f, g: pk.dist.Normal(f, jnp.exp(g)), dims="row"),
    )
    found = fit(model, Y, pk.GPLaplace(starts=1, draws=50))
    assert isinstance(found.approximation, Approximation)
    rows = found.approximation.stats["loo_i"]
    np.testing.assert_allclose(found.loo().pointwise, rows, atol=1e-10)
    assert found.check(loo=True)["loo_k"].ok


def test_a_shared_entry_is_not_one_row():
    """Where observations share entries, an entry's density is not an observation's."""
    owner = np.repeat(np.arange(20), 2)
    model = pk.Model(
        f=pk.gp(pk.kernels.RBF(1.0), at="x", dims="place"),
        g=pk.gp(pk.kernels.RBF(2.0, 0.25), at="x", mean=-1.0, dims="place"),
        y=pk.rv(lambda f, g, at: pk.dist.Normal(f[at], jnp.exp(g[at])), dims="row"),
    )
    target = model.bind({"x": X[:20], "at": owner, "y": Y})
    assert not target.gaussian_latents.rows_apart(target.arrays)


@pytest.mark.slow
def test_sparse_methods_know_rows_too(exact):
    found = fit(regression, Y, pk.SVGP(inducing=30, draws=50), seed=1)
    np.testing.assert_allclose(found.loo().pointwise, found.approximation.stats["loo_i"])
    mean, sd = moments(found, NEW)
    y = mean + 6.0 * sd
    got = found.log_predictive({"x": NEW, "y": y})
    np.testing.assert_allclose(got, scipy.stats.norm.logpdf(y, mean, sd), atol=0.05)


def test_a_target_to_score_has_the_latent(exact):
    rebind = exact.target.labels.rebind
    data = {"x": NEW, "y": np.zeros(9)}
    with pytest.raises(ValueError, match="bound for prediction"):
        rebind(data, coords=None, like=exact.target).gaussian_latent  # noqa: B018
    new = rebind(data, coords=None, like=exact.target, scored=True)
    with in_precision(new.dtype):
        assert new.gaussian_latent.rows_apart(new.arrays)


def test_draws_at_new_rows_share_one_factor():
    """Hyperparameters at a point: the joint normal of new rows, far fewer factors than draws."""
    posterior = fit(regression, Y, pk.GPExact(draws=4000, starts=1))
    new = np.array([-1.0, -0.9, 0.7, 3.4])
    held = _predict.held_values(posterior, _predict.rebound(posterior, {"x": new}, None))
    alike = _predict._alike(posterior, _predict.rebound(posterior, {"x": new}, None), held)
    assert set(alike) == {"sd", "length", "noise"}
    f = posterior.predict({"x": new})["predictions"]["f"].values[0]
    sd, length, noise = np.exp(posterior.approximation.stats["theta"])
    k = lambda a, b: sd**2 * np.exp(-0.5 * ((a[:, None] - b) / length) ** 2)  # noqa: E731
    gain = np.linalg.solve(k(X, X) + noise**2 * np.eye(40), k(X, new)).T
    cov = k(new, new) - gain @ k(X, new)
    sds = np.sqrt(np.diag(cov))
    assert np.all(np.abs(f.mean(0) - gain @ Y) < 5 * sds / np.sqrt(4000))
    # An entry of a sample covariance has a standard error below sqrt(2 / n) in units of the sds.
    assert np.all(np.abs(np.cov(f.T) - cov) < 5 * np.outer(sds, sds) * np.sqrt(2 / 4000))


def test_draws_of_hyperparameters_have_factors_of_their_own():
    posterior = fit(regression, Y, pk.NUTS(50, warmup=50, chains=1))
    target = _predict.rebound(posterior, {"x": NEW}, None)
    assert _predict._alike(posterior, target, _predict.held_values(posterior, target)) is None
