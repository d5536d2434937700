"""The whole road once, on whichever ArviZ is installed: all supported versions pass it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import probkit as pk
from probkit import dist

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    group = np.repeat(["a", "b", "c", "d"], 15)
    x = rng.normal(size=group.size)
    level = np.repeat([-1.0, 0.0, 0.5, 2.0], 15)
    y = level + 1.5 * x + 0.3 * rng.normal(size=group.size)
    y[7] = np.nan
    return pd.DataFrame({"group": group, "x": x, "y": y})


@pytest.fixture(scope="module")
def posterior(frame: pd.DataFrame) -> pk.Posterior:
    model = pk.Model(
        mean=dist.Normal(0, 2),
        spread=dist.HalfNormal(2),
        level=pk.rv(lambda mean, spread: dist.Normal(mean, spread), dims="group"),
        slope=dist.Normal(0, 2),
        noise=dist.HalfNormal(1),
        y=pk.rv(
            lambda level, slope, noise, group, x: dist.Normal(level[group] + slope * x, noise),
            dims="row",
        ),
    )
    method = pk.NUTS(draws=500, warmup=500, target_accept=0.9)
    return pk.fit(model, frame, method=method, seed=0, progress=False)


def test_the_answer_is_right(posterior, frame):
    summary = posterior.summary()
    assert abs(summary.loc["slope", "mean"] - 1.5) < 5 * summary.loc["slope", "sd"]
    assert posterior["level"].coords["group"].values.tolist() == ["a", "b", "c", "d"]
    assert posterior["y_missing"].shape == (4, 500, 1)
    assert "r_hat" in str(posterior.check())


def test_arviz_and_back(posterior, tmp_path):
    import arviz as az

    made = posterior.to_arviz()
    for group in ("posterior", "sample_stats", "log_likelihood", "observed_data"):
        assert group in list(made.groups()) if callable(made.groups) else group in made.children
    path = posterior.save(tmp_path / "p.nc")
    read = az.from_netcdf(path)
    np.testing.assert_array_equal(read["posterior"]["slope"], posterior["slope"])
    again = pk.Posterior.load(path)
    np.testing.assert_array_equal(again["level"], posterior["level"])
    pd.testing.assert_frame_equal(again.summary("level"), posterior.summary("level"))


def test_predict_and_compare(posterior, frame):
    new = pd.DataFrame({"group": ["d", "a"], "x": [0.0, 0.0]})
    predicted = posterior.predict(new, seed=1)["predictions"]["y"]
    assert predicted.shape == (4, 500, 2)
    # The groups' levels are 3 apart; the error of a mean of 2000 draws is below 0.1.
    difference = predicted.mean(("chain", "draw")).values @ [1.0, -1.0]
    assert 2.0 < difference < 4.0
    assert np.isfinite(posterior.loo().elpd)


def test_report(posterior, tmp_path):
    page = posterior.report(tmp_path / "r.html").read_text()
    assert "<svg" in page and "slope" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_formula_is_a_model(frame):
    pytest.importorskip("formulaic")
    target = pk.formula("y ~ x + (1 | group)", frame).bind(frame)
    assert np.isfinite(target.log_density(target.example))
    assert "x" in target.coords["term"]


def test_another_method_is_one_argument(frame):
    model = pk.Model(
        intercept=dist.Normal(0, 5),
        slope=dist.Normal(0, 5),
        y=pk.rv(lambda intercept, slope, x: dist.Normal(intercept + slope * x, 1.0), dims="row"),
    )
    kept = frame.dropna()
    posterior = pk.fit(model, kept, method=pk.Laplace(), seed=0, progress=False)
    x = np.column_stack([np.ones(len(kept)), kept["x"]])
    precision = x.T @ x + np.eye(2) / 25
    expected = np.linalg.solve(precision, x.T @ kept["y"].to_numpy())
    means = posterior.summary()["mean"]
    # Linear and Gaussian: Laplace is exact but for the error of its draws (six standard errors).
    error = 6 * np.sqrt(np.diag(np.linalg.inv(precision)) / 1000)
    assert (abs(means[["intercept", "slope"]].to_numpy() - expected) < error).all()
