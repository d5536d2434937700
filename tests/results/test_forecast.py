"""Prediction where new data or labels say more than "these rows": chains, given values, groups."""

from __future__ import annotations

import arviz as az
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpyro import distributions as dist

import probkit as pk

SHORT = pk.NUTS(draws=200, warmup=200, chains=2)


def _mean(posterior, *args, **options):
    found = posterior.predict(*args, **options)["predictions"]["y"]
    return np.asarray(found.mean(("chain", "draw"))), np.asarray(found.std(("chain", "draw")))


@pytest.fixture(scope="module")
def level():
    rng = np.random.default_rng(5)
    y = 20.0 + np.cumsum(0.3 * rng.normal(size=20))
    model = pk.Model(
        level=pk.markov(
            lambda level: dist.Normal(level, 0.3), init=lambda: dist.Normal(0, 20), dims="time"
        ),
        y=pk.rv(lambda level: dist.Normal(level, 0.1), dims="time"),
    )
    return y, pk.fit(model, {"y": y}, method=SHORT, progress=False)


def test_a_chain_goes_on_from_its_last_state(level):
    y, posterior = level
    mean, sd = _mean(posterior, coords={"time": [*range(20), 20, 21, 22]})
    assert np.all(np.abs(mean[:20] - y) < 0.25)
    # A random walk: the mean stays, the variance grows by .3^2 a step. (400 draws; 5 se.)
    assert np.all(np.abs(mean[20:] - mean[19]) < 0.13)
    last = 0.3**2 * 0.1**2 / (0.3**2 + 0.1**2)  # of the filtered state, about
    exact = np.sqrt(last + 0.1**2 + 0.3**2 * np.arange(1, 4))
    np.testing.assert_allclose(sd[20:], exact, rtol=0.2)


def test_labels_of_a_chain_that_were_fitted_are_held(level):
    y, posterior = level
    mean, _ = _mean(posterior, coords={"time": [3, 4]})
    assert np.all(np.abs(mean - y[3:5]) < 0.25)


def test_labels_that_a_chain_cannot_begin_with_are_refused(level):
    _, posterior = level
    for labels in ([20, 21], [25, 3]):
        with pytest.raises(ValueError, match="'level' is a chain along 'time'"):
            posterior.predict(coords={"time": labels})


def test_entries_of_a_vector_are_found_by_label():
    y = np.array([5.0, -5.0]) + np.random.default_rng(0).normal(size=(40, 2))
    model = pk.Model(
        u=pk.rv(
            lambda: dist.MultivariateNormal(jnp.zeros(2), 10.0 * jnp.eye(2)), event_dims="item"
        ),
        y=pk.rv(lambda u: dist.Normal(u[None, :], 1.0), dims=("row", "item")),
    )
    posterior = pk.fit(model, {"y": y}, coords={"item": ["a", "b"]}, method=SHORT, progress=False)
    mean, _ = _mean(posterior, {}, coords={"item": ["b", "a"], "row": [0]})
    assert np.all(np.abs(mean[0] - [-5.0, 5.0]) < 0.6)
    with pytest.raises(ValueError, match="'u'.*'item'.*depend on one another"):
        posterior.predict({}, coords={"item": ["b", "new"], "row": [0]})


def test_given_values_missing_rows_and_two_outcomes():
    rng = np.random.default_rng(2)
    x = rng.normal(size=40)
    y, other = 2.0 * x + 0.3 * rng.normal(size=40), 1.0 + 0.3 * rng.normal(size=40)
    y[3], x_holes = np.nan, np.where(np.arange(40) == 5, np.nan, x)
    model = pk.Model(
        b=dist.Normal(0, 5),
        x=pk.rv(lambda: dist.Normal(0.0, 1.0), dims="row"),
        y=pk.rv(lambda b, x: dist.Normal(b * x, 0.3), dims="row"),
        other=pk.rv(lambda b: dist.Normal(b / 2.0, 0.3), dims="row"),
    )
    data = {"x": x_holes, "y": y, "other": other}
    posterior = pk.fit(model, data, method=SHORT, progress=False)
    # A latent that is given is held there.
    assert abs(_mean(posterior, {"x": [1.0], "b": 0.0})[0][0]) < 0.1
    assert abs(_mean(posterior, {"x": [1.0]})[0][0] - 2.0) < 0.2
    # What was predicted from is shown as it was given.
    shown = posterior.predict({"x": [0.0, 1.0, np.nan]})["predictions"]["x"]
    assert shown[..., 0].std() == 0.0 and float(shown[..., 1].mean()) == 1.0
    assert float(shown[..., 2].std()) > 0.5
    scores = posterior.log_predictive({"x": [1.0], "y": [2.0], "other": [1.0], "b": 2.0})
    assert set(scores) >= {"y", "other"} and "b" not in scores
    assert float(scores["y"][0]) == pytest.approx(-0.5 * np.log(2 * np.pi * 0.09), abs=1e-3)


def test_arviz_compares_models_with_missing_outcomes():
    y = np.array([0.3, np.nan, 1.2, -0.4])
    model = pk.Model(m=dist.Normal(0, 1), y=pk.rv(lambda m: dist.Normal(m, 1.0), dims="row"))
    posterior = pk.fit(model, {"y": y}, method=SHORT, progress=False)
    terms = posterior.to_arviz()["log_likelihood"]["y"]
    assert terms.sizes["row"] == 3 and list(terms["row"].values) == [0, 2, 3]
    found = az.loo(posterior.to_arviz())
    elpd = getattr(found, "elpd_loo", None) or found.elpd
    assert float(elpd) == pytest.approx(posterior.loo().elpd, abs=0.05)


def test_a_formula_meets_a_new_group():
    rng = np.random.default_rng(1)
    groups = np.repeat(list("abcde"), 8)
    frame = pd.DataFrame({"g": groups, "y": rng.normal(size=5)[rng.integers(0, 5, 40)]})
    posterior = pk.fit(pk.formula("y ~ 1 + (1 | g)", frame), frame, method=SHORT, progress=False)
    new = pd.DataFrame({"g": ["a", "zz"]})
    with pytest.raises(ValueError, match="'zz'.*pass coords"):
        posterior.predict(new)
    found = posterior.predict(new, coords={"g": [*"abcde", "zz"]})["predictions"]["y"]
    assert found.shape[-1] == 2 and np.all(np.isfinite(found))
