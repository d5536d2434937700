"""Gaussian processes at new rows, against dense linear algebra in numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import probkit as pk
from probkit import dist

X = np.array([0.0, 0.4, 1.1, 1.9, 2.5, 2.7])
Y = np.array([0.3, 0.5, 1.4, 0.9, 1.0, 1.6])
NEW = np.array([0.2, 1.1, 1.5, 2.6, 4.0])
NOISE = 0.3
METHOD = pk.ExactGaussian(draws=4000)


def squared(a, b, scale=0.8):
    return np.exp(-0.5 * ((a[:, None] - b) / scale) ** 2)


MODEL = pk.Model(
    f=pk.gp(pk.kernels.RBF(0.8), at="x", mean=lambda x: 0.5 * x),
    twice=pk.deterministic(lambda f: 2 * f, dims="row"),
    y=pk.rv(lambda f: dist.Normal(f, NOISE), dims="row"),
)


@pytest.fixture(scope="module")
def posterior():
    return pk.fit(MODEL, {"x": X, "y": Y}, method=METHOD, progress=False)


@pytest.fixture(scope="module")
def predicted(posterior):
    return posterior.predict({"x": NEW}).predictions


def conditional(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the function at NEW given its values at X, shape (..., 6)."""
    solved = np.linalg.solve(squared(X, X), squared(X, NEW))
    return 0.5 * NEW + (f - 0.5 * X) @ solved, squared(NEW, NEW) - squared(NEW, X) @ solved


@pytest.mark.slow
def test_an_engine_predicts_as_the_exact_solve_does():
    """The same posterior by another road: what it leaves goes through the same prediction."""
    engine = pk.GPExact(draws=4000, starts=1)
    posterior = pk.fit(MODEL, {"x": X, "y": Y}, method=engine, progress=False)
    check_regression(posterior.predict({"x": NEW}).predictions)


def test_the_predictive_is_that_of_gaussian_process_regression(predicted):
    check_regression(predicted)


def check_regression(predicted):
    solved = np.linalg.solve(squared(X, X) + NOISE**2 * np.eye(6), squared(X, NEW))
    mean = 0.5 * NEW + (Y - 0.5 * X) @ solved
    cov = squared(NEW, NEW) - squared(NEW, X) @ solved
    f, y = (predicted[k].values.reshape(-1, 5) for k in ("f", "y"))
    sd = np.sqrt(np.diagonal(cov))
    # 4000 independent draws: five standard errors.
    assert (np.abs(f.mean(0) - mean) < 5 * sd / np.sqrt(4000)).all()
    assert (np.abs(np.cov(f.T) - cov) < 5 * np.sqrt(2 / 4000) * np.outer(sd, sd)).all()
    total = cov + NOISE**2 * np.eye(5)
    assert (np.abs(y.var(0) / np.diagonal(total) - 1) < 5 * np.sqrt(2 / 4000)).all()
    np.testing.assert_allclose(predicted["twice"], 2 * predicted["f"])
    assert predicted["f"].dims == ("chain", "draw", "row")


def test_each_draw_is_from_the_conditional_given_the_function(posterior, predicted):
    mean, cov = conditional(posterior.values["f"][0])
    gap = predicted["f"].values[0] - mean
    white = np.linalg.solve(np.linalg.cholesky(cov + 1e-9 * np.eye(5)), gap.T)
    # The second new point is an old one: nothing is left to draw there.
    assert np.abs(gap[:, 1]).max() < 1e-5
    rest = white[[0, 2, 3, 4]]
    assert np.abs(np.cov(rest) - np.eye(4)).max() < 5 * np.sqrt(2 / 4000)


def test_log_predictive_integrates_over_the_function(posterior):
    y = np.array([0.1, 0.9, 1.4, 1.2, 2.0])
    got = posterior.log_predictive({"x": NEW, "y": y})
    mean, cov = conditional(posterior.values["f"][0])
    sd = np.sqrt(np.maximum(np.diagonal(cov), 0) + NOISE**2)
    want = np.log(np.mean(stats.norm.pdf(y, mean, sd), axis=0))
    np.testing.assert_allclose(got, want, atol=1e-7)
    assert got.dims == ("row",)


def test_blocks_of_many_rows(posterior, monkeypatch):
    from probkit.models import _gp_conditional

    monkeypatch.setattr(_gp_conditional, "_JOINT", 2)
    x = np.append(NEW, 5.0) + 1e-3
    y = np.array([0.1, 0.9, 1.4, 1.2, 2.0, 0.0])
    got = posterior.log_predictive({"x": x, "y": y})
    in_blocks = posterior.predict({"x": x}).predictions["f"].values[0]
    monkeypatch.undo()
    whole = posterior.log_predictive({"x": x[:5], "y": y[:5]})
    np.testing.assert_allclose(got[:5], whole, atol=1e-9)
    solved = np.linalg.solve(squared(X, X), squared(X, x))
    gap = in_blocks - (0.5 * x + (posterior.values["f"][0] - 0.5 * X) @ solved)
    cov = squared(x, x) - squared(x, X) @ solved
    found = np.cov(gap.T)
    sd = np.sqrt(np.diagonal(cov))
    limit = 5 * np.sqrt(2 / 4000) * np.outer(sd, sd)
    block = np.kron(np.eye(3), np.ones((2, 2)))
    assert (np.abs(found - cov * block) < limit + 1e-12).all()


def test_labels_in_new_data_that_are_probit():
    model = pk.Model(
        f=pk.gp(pk.kernels.RBF(0.8), at="x"),
        y=pk.rv(lambda f: pk.BernoulliProbit(3 * f), dims="row"),
    )
    posterior = pk.fit(
        model,
        {"x": X, "y": (Y > 0.95).astype(int)},
        method=pk.Laplace(draws=300, starts=1),
        progress=False,
    )
    got = posterior.log_predictive({"x": NEW, "y": [1, 0, 1, 1, 0]})
    mean, cov = conditional(posterior.values["f"][0] + 0.5 * X)
    mean, v = mean - 0.5 * NEW, np.maximum(np.diagonal(cov), 0)
    sign = np.array([1, -1, 1, 1, -1])
    want = np.log(np.mean(stats.norm.cdf(sign * 3 * mean / np.sqrt(1 + 9 * v)), axis=0))
    np.testing.assert_allclose(got, want, atol=1e-6)
    drawn = posterior.predict({"x": NEW}).predictions["y"]
    assert set(np.unique(drawn)) <= {0, 1}


@pytest.fixture(scope="module")
def grouped():
    """Several observations of each place."""
    model = pk.Model(
        f=pk.gp(pk.kernels.RBF(0.8), at="x", dims="place"),
        y=pk.rv(lambda f, group: dist.Normal(f[group], NOISE), dims="obs"),
    )
    data = {"x": X, "y": np.append(Y, [0.2, 1.1]), "group": np.array([0, 1, 2, 3, 4, 5, 0, 3])}
    return pk.fit(model, data, method=METHOD, progress=False)


def test_a_process_along_groups_moves_with_its_points(grouped):
    f = grouped.values["f"][0]
    solved = np.linalg.solve(squared(X, X), squared(X, NEW))
    cov = squared(NEW, NEW) - squared(NEW, X) @ solved
    new = {"x": NEW, "group": np.array([4, 0, 0]), "y": np.array([0.1, 0.4, 0.5])}
    coords = {"place": list("abcde")}
    got = grouped.log_predictive(new, coords=coords)
    mean, sd = (f @ solved)[:, [4, 0, 0]], np.sqrt(np.diagonal(cov)[[4, 0, 0]] + NOISE**2)
    terms = stats.norm.pdf(new["y"], mean, sd)
    # Here the integral over f at the new places is by draws: six standard errors of these.
    wide = stats.norm.pdf(new["y"], f @ solved[:, [4, 0, 0]], NOISE).std(0) + terms.std(0)
    assert (np.abs(np.exp(got) - terms.mean(0)) < 6 * wide / np.sqrt(4000)).all()


def test_a_process_at_its_own_points_keeps_its_values(grouped):
    drawn = grouped.predict({"x": X, "group": np.array([2, 2])}).predictions
    f = grouped.values["f"][0][:, 2]
    gap = drawn["y"].values[0] - f[:, None]
    assert abs(gap.std() / NOISE - 1) < 5 / np.sqrt(2 * 8000)
    assert jnp.result_type(float) == jnp.float32  # the caller's own precision is untouched
