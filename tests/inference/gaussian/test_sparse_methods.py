"""SVGP, TSVGP and the sparse hybrid on declared models: what a fit returns, and what it refuses."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Status
from probkit.core._trees import in_precision
from probkit.inference.gaussian._learning import _check_memory
from probkit.inference.gaussian._posterior import log_predictive, predict_latent
from probkit.inference.gaussian._sparse_posterior import predict_rows
from probkit.models import _gp
from tests.counting import Compiles
from tests.inference.gaussian.test_gp_methods import X, Y, classes, fit, regression

NEW = np.linspace(-4, 4, 7)


@pytest.fixture(scope="module")
def exact() -> pk.Posterior:
    return fit(regression, Y, pk.GPExact())


@pytest.fixture(scope="module")
def every() -> pk.Posterior:
    """All rows are inducing points: the exact process again."""
    return fit(regression, Y, pk.SVGP(inducing=X, draws=2000), seed=1)


def test_all_rows_as_points_are_the_exact_fit(exact, every):
    ours, truth = every.approximation, exact.approximation
    assert every.status is Status.OK and every.check().ok
    assert abs(ours.stats["elbo"] - truth.log_evidence) < 1e-3
    np.testing.assert_allclose(ours.stats["theta"], truth.stats["theta"], atol=1e-2)
    np.testing.assert_allclose(ours.stats["f_mean"], truth.stats["f_mean"], atol=1e-2)
    np.testing.assert_allclose(ours.stats["loo_i"], truth.stats["loo_i"], atol=1e-2)
    assert "lower bound" in str(every.log_evidence) and every.elbo.value == ours.log_evidence


def test_new_rows_are_predicted_from_the_points(exact, every):
    target = regression.bind({"x": NEW, "y": np.zeros(7)})
    mean, var = predict_latent(exact.target, exact.approximation, target)
    rows = predict_rows(exact.target, every.approximation, target)
    np.testing.assert_allclose(rows["mean"], mean, atol=1e-2)
    np.testing.assert_allclose(rows["var"], var, atol=1e-2)
    found = every.predict({"x": NEW}).predictions
    f, y = (np.asarray(found[k])[0] for k in ("f", "y"))
    noise = np.exp(every.approximation.stats["theta"][2])
    # 14 means and sds of 2000 draws, within 5 standard errors and the optimum's own slack.
    assert np.all(np.abs(f.mean(0) - mean) < 5 * np.sqrt(var / 2000) + 0.01)
    assert np.all(np.abs(y.var(0) / (var + noise**2) - 1) < 5 * np.sqrt(2 / 2000) + 0.02)
    density = every.log_predictive({"x": NEW, "y": np.zeros(7)})
    truth = log_predictive(exact.target, exact.approximation, target)
    np.testing.assert_allclose(np.asarray(density), truth, atol=0.05)


def test_result_has_the_points_in_place_of_the_rows(every):
    assert set(every.values) == {"sd", "length", "noise", "f_inducing"}
    assert every["f_inducing"].dims == ("chain", "draw", "inducing")
    groups = every.groups("posterior", "log_likelihood", "log_prior", "posterior_predictive")
    assert groups["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    assert np.isfinite(groups["log_prior"]["f_inducing"]).all()
    assert abs(every.loo().elpd - every.approximation.stats["elpd_loo"]) < 1.0
    with pytest.raises(KeyError, match="f_inducing"):
        every["f"]
    prior = every.groups("prior")["prior"]
    spread = (prior["f_inducing"] / prior["sd"]).std("draw").mean()
    assert abs(float(spread) - 1.0) < 0.2
    point = every.target.example
    assert every.target.unconstrain(every.target.constrain(point)).keys() == point.keys()
    assert np.isfinite(every.target.log_density(point))


def test_mini_batches_and_no_second_compilation(exact):
    method = pk.SVGP(inducing=10, batch_size=20, draws=20)
    first = fit(regression, Y, method)
    stats = first.approximation.stats
    assert first.status is Status.OK
    assert exact.approximation.log_evidence - 2.0 < stats["elbo"]
    assert stats["inducing_points"].shape == (10,) and set(stats["inducing_points"]) <= set(X)
    with Compiles() as seen:
        fit(regression, Y + 0.1, method, seed=3)
    assert seen.count == 0


def test_steps_that_run_out_and_points_that_are_too_few():
    rough = regression.do(length=0.1, noise=0.1, sd=1.0)
    found = fit(rough, Y, pk.SVGP(inducing=2, max_steps=3, draws=20))
    assert found.status is Status.MAX_STEPS
    verdict = found.check()
    assert not verdict["search"].ok and "max_steps" in verdict["search"].advice
    assert not verdict["inducing"].ok and "inducing=" in verdict["inducing"].advice


@pytest.mark.slow
@pytest.mark.parametrize("method", [pk.SVGP, pk.TSVGP, pk.SparseHybridEP])
@pytest.mark.parametrize("batch", [None, 20])
def test_labels(method, batch):
    y = (np.sin(2 * X) + 0.3 * np.random.default_rng(1).normal(size=40) > 0).astype(int)
    dense = fit(classes, y, pk.HybridEP() if method is pk.SparseHybridEP else pk.CVI())
    found = fit(classes, y, method(inducing=30, batch_size=batch, choose="greedy", draws=50))
    assert found.status is Status.OK and found.check().ok
    room = 0.02 if batch is None else 0.5
    assert abs(found.approximation.log_evidence - dense.approximation.log_evidence) < room


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svgp", "sparse_hybrid"])
def test_estimators(name):
    rows = X[:, None]
    ours = pk.estimators.GPRegressor("rbf", inference=name, random_state=0).fit(rows, Y)
    dense = pk.estimators.GPRegressor("rbf", random_state=0).fit(rows, Y)
    for a, b in zip(
        ours.predict(NEW[:, None], True), dense.predict(NEW[:, None], True), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=0.02)


def test_rows_without_a_label_contribute_nothing_to_a_mini_batch():
    y = np.ma.masked_array((Y > 0).astype(int), np.arange(40) % 5 == 0)
    target = classes.bind({"x": X, "y": y})
    latent = target.gaussian_latent
    assert latent.rows_apart(target.arrays)
    rows = np.array([0, 1, 5, 7])
    with in_precision(np.float64):
        theta, f = jnp.zeros(2), jnp.asarray(X)
        found = latent.log_likelihood_rows(theta, f[rows], jnp.asarray(rows), target.arrays)
        terms, whole = np.asarray(found), np.asarray(latent.log_likelihood(theta, f, target.arrays))
    np.testing.assert_allclose(terms, whole[rows], atol=1e-12)
    assert terms[0] == terms[2] == 0.0 and np.all(terms[[1, 3]] < 0.0)


@pytest.mark.slow
def test_mini_batches_with_missing_labels():
    labels, gone = (Y > 0).astype(int), np.arange(40) % 5 == 0
    method = pk.SVGP(inducing=X[~gone][:20], batch_size=16, draws=20)
    found = fit(classes, np.ma.masked_array(labels, gone), method)
    data = {"x": X[~gone], "y": labels[~gone]}
    dropped = pk.fit(classes, data, method=method, progress=False)
    assert found.status is Status.OK
    ours, theirs = found.approximation, dropped.approximation
    assert abs(ours.log_evidence - theirs.log_evidence) < 1e-3
    np.testing.assert_allclose(ours.stats["f_mean"][~gone], theirs.stats["f_mean"], atol=2e-2)


def test_mistakes():
    with pytest.raises(TypeError, match="Did you mean 'inducing'"):
        pk.SVGP(induing=10)
    with pytest.raises(ValueError, match="inducing.*at least 1"):
        pk.SVGP(inducing=0)
    with pytest.raises(ValueError, match="1 of 3 points repeat"):
        pk.SVGP(inducing=[0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        pk.TSVGP(inducing=[0.0, np.nan])
    with pytest.raises(ValueError, match="greedy"):
        pk.SVGP(choose="greddy")
    with pytest.raises(ValueError, match="step"):
        pk.SparseHybridEP(step=1.5)
    with pytest.raises(ValueError, match="at most 40 points"):
        fit(regression, Y, pk.SVGP(inducing=41))
    with pytest.raises(ValueError, match=r"expected \('m',\)"):
        fit(regression, Y, pk.SVGP(inducing=np.zeros((1, 2))))
    with pytest.raises(ValueError, match="batch size"):
        fit(regression, Y, pk.SVGP(batch_size=41))
    with pytest.raises(ValueError, match=r"pk\.SVGP\(batch_size=512\)"):
        _check_memory("f", 100_000, 1e8)


def test_observations_that_share_rows_take_no_mini_batches(monkeypatch):
    model = pk.Model(
        f=pk.gp(lambda: pk.kernels.RBF(), at="x"),
        y=pk.rv(lambda f, who: pk.dist.Normal(f[who], 0.3), dims="visit"),
    )
    data = {"x": X[:10], "who": np.arange(20) % 10, "y": Y[:20]}
    dims = {"x": ("row",), "who": ("visit",), "y": ("visit",)}
    with pytest.raises(ValueError, match="leave batch_size out"):
        method = pk.SVGP(inducing=5, batch_size=5)
        pk.fit(model, data, dims=dims, method=method, progress=False)
    # The matrix of all rows is nowhere made, nor looked for: not even its size would be allowed.
    with monkeypatch.context() as small:
        small.setattr(_gp, "memory", lambda: 1000.0)
        method = pk.SVGP(inducing=X[:10], draws=10)
        found = pk.fit(model, data, dims=dims, method=method, progress=False)
        with pytest.raises(ValueError, match=r"pk\.SVGP\(\)"):
            pk.fit(model, data, dims=dims, method=pk.NUTS(draws=5), progress=False)
    dense = pk.fit(model, data, dims=dims, method=pk.GPExact(draws=10), progress=False)
    assert abs(found.approximation.log_evidence - dense.approximation.log_evidence) < 1e-5
