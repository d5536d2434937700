"""Prediction and held-out scores, against closed forms of conjugate models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

import probkit as pk
from probkit import dist

DRAWS = 8000


def _fit(model: pk.Model, data: object, method: object = None, **options: object) -> pk.Posterior:
    method = pk.ExactGaussian(draws=DRAWS) if method is None else method
    return pk.fit(model, data, method=method, progress=False, **options)


def _moments(array: object) -> tuple[np.ndarray, np.ndarray]:
    return (np.asarray(f(("chain", "draw"))) for f in (array.mean, array.std))  # type: ignore


# -- one regression, a conjugate normal ---------------------------------------------------------

X = np.linspace(-1.0, 2.0, 9)
Y = 0.8 * X + np.array([0.3, -0.2, 0.1, 0.5, -0.4, 0.2, 0.0, -0.1, 0.3])
NOISE = 0.5
PRECISION = 1.0 + np.sum(X**2) / NOISE**2
MEAN = np.sum(X * Y) / NOISE**2 / PRECISION


@pytest.fixture(scope="module")
def line() -> pk.Posterior:
    model = pk.Model(
        b=dist.Normal(0.0, 1.0),
        mean=pk.deterministic(lambda b, x: b * x, dims="obs"),
        y=pk.rv(lambda mean: dist.Normal(mean, NOISE), dims="obs"),
    )
    return _fit(model, {"x": X, "y": Y})


def test_prediction_of_new_rows(line: pk.Posterior) -> None:
    """The predictive is normal with mean m x and variance x^2 / precision + noise^2."""
    x = np.array([0.0, 3.0, -2.0, 1.0])
    group = line.predict({"x": x}).predictions
    assert group["y"].dims == ("chain", "draw", "obs") and group["mean"].dims[-1] == "obs"
    sd = np.sqrt(x**2 / PRECISION + NOISE**2)
    mean, spread = _moments(group["y"])
    np.testing.assert_allclose(mean, MEAN * x, atol=5 * sd.max() / np.sqrt(DRAWS))
    np.testing.assert_allclose(spread, sd, rtol=5 / np.sqrt(2 * DRAWS))
    mean, spread = _moments(group["mean"])
    np.testing.assert_allclose(spread, np.abs(x) / np.sqrt(PRECISION), rtol=0.05, atol=1e-6)


def test_prediction_at_the_training_inputs(line: pk.Posterior) -> None:
    group = line.predict().posterior_predictive
    mean, spread = _moments(group["y"])
    sd = np.sqrt(X**2 / PRECISION + NOISE**2)
    np.testing.assert_allclose(mean, MEAN * X, atol=5 * sd.max() / np.sqrt(DRAWS))
    np.testing.assert_allclose(spread, sd, rtol=5 / np.sqrt(2 * DRAWS))


def test_held_out_scores_are_those_of_the_predictive(line: pk.Posterior) -> None:
    x, y = np.array([0.5, 3.0, -2.0]), np.array([1.0, 2.0, -2.0])
    score = line.log_predictive({"x": x, "y": y})
    assert score.dims == ("obs",)
    expected = stats.norm.logpdf(y, MEAN * x, np.sqrt(x**2 / PRECISION + NOISE**2))
    np.testing.assert_allclose(score, expected, atol=0.03)


def test_missing_held_out_rows_are_not_scored(line: pk.Posterior) -> None:
    score = line.log_predictive({"x": np.array([0.5, 3.0]), "y": np.array([1.0, np.nan])})
    assert np.isnan(score.values).tolist() == [False, True]


def test_a_bad_call_loses_nothing(line: pk.Posterior) -> None:
    before = line.summary()
    with pytest.raises(ValueError, match="'x'"):
        line.predict({"z": X})
    with pytest.raises(ValueError, match="observed variable"):
        line.log_predictive({"x": X})
    assert line.summary().equals(before)
    assert line.predict({"x": X[:2]}).predictions["y"].shape[-1] == 2


# -- groups -------------------------------------------------------------------------------------

GROUPS = ["hill", "lake", "moor"]
COUNTS = np.array([2, 5, 1])
TAU, SIGMA = 1.5, 0.6


@pytest.fixture(scope="module")
def groups() -> pk.Posterior:
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, TAU), dims="g"),
        y=pk.rv(lambda a, g: dist.Normal(a[g], SIGMA), dims="obs"),
    )
    rng = np.random.default_rng(2)
    labels = np.repeat(GROUPS, COUNTS)
    frame = pd.DataFrame({"g": labels, "y": rng.normal(size=COUNTS.sum()) + 1.0})
    posterior = _fit(model, frame)
    posterior.frame = frame  # type: ignore[attr-defined]
    return posterior


def _group_posterior(posterior: pk.Posterior) -> tuple[np.ndarray, np.ndarray]:
    frame = posterior.frame  # type: ignore[attr-defined]
    sums = frame.groupby("g")["y"].sum()[GROUPS].to_numpy()
    precision = 1 / TAU**2 + COUNTS / SIGMA**2
    return sums / SIGMA**2 / precision, 1 / np.sqrt(precision)


def test_new_rows_match_groups_by_label(groups: pk.Posterior) -> None:
    mean, sd = _group_posterior(groups)
    order = [2, 0, 2]
    found = groups.predict(pd.DataFrame({"g": [GROUPS[i] for i in order]})).predictions
    assert found["y"].sizes["obs"] == 3
    centre, spread = _moments(found["y"])
    np.testing.assert_allclose(centre, mean[order], atol=0.06)
    np.testing.assert_allclose(spread, np.hypot(sd[order], SIGMA), rtol=0.05)


def test_an_unseen_label_is_refused(groups: pk.Posterior) -> None:
    with pytest.raises(ValueError, match=r"'g'.*'coast'.*'hill', 'lake', 'moor'"):
        groups.predict(pd.DataFrame({"g": ["hill", "coast"]}))


def test_new_groups_are_drawn_and_old_ones_kept(groups: pk.Posterior) -> None:
    """New coords: the labels that were there keep their draws; the new one is drawn afresh."""
    mean, sd = _group_posterior(groups)
    frame = pd.DataFrame({"g": ["lake", "coast", "moor"]})
    coords = {"g": ["coast", "moor", "lake"]}
    found = groups.predict(frame, coords=coords).predictions
    centre, spread = _moments(found["y"])
    np.testing.assert_allclose(centre, [mean[1], 0.0, mean[2]], atol=0.09)
    expected = np.hypot([sd[1], TAU, sd[2]], SIGMA)
    np.testing.assert_allclose(spread, expected, rtol=0.05)


def test_held_out_groups_are_integrated_out(groups: pk.Posterior) -> None:
    frame = pd.DataFrame({"g": ["coast", "lake"], "y": [2.5, 1.0]})
    score = groups.log_predictive(frame, coords={"g": [*GROUPS, "coast"]})
    mean, sd = _group_posterior(groups)
    expected = stats.norm.logpdf([2.5, 1.0], [0.0, mean[1]], np.hypot([TAU, sd[1]], SIGMA))
    np.testing.assert_allclose(score, expected, atol=0.05)


def test_codes_stay_codes_in_new_data() -> None:
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 10.0), dims="g"),
        y=pk.rv(lambda a, g: dist.Normal(a[g], 0.01), dims="obs"),
    )
    data = {"g": np.array([0, 1, 2]), "y": np.array([1.0, 2.0, 3.0])}
    posterior = _fit(model, data, coords={"g": ["p", "q", "r"]})
    by_code = posterior.predict({"g": np.array([2, 0])}).predictions["y"].mean(("chain", "draw"))
    by_label = posterior.predict({"g": ["r", "p"]}).predictions["y"].mean(("chain", "draw"))
    np.testing.assert_allclose(by_code, [3.0, 1.0], atol=0.01)
    np.testing.assert_allclose(by_label, [3.0, 1.0], atol=0.01)
    with pytest.raises(ValueError, match=r"'g'.*0 to 3.*0 to 2"):
        posterior.predict({"g": np.array([3, 0])})


# -- rows, panels, matrices ---------------------------------------------------------------------


def test_latents_of_the_rows_are_drawn_afresh() -> None:
    """Rows are new: their own latents come from the prior, given the rest."""
    model = pk.Model(
        u=pk.rv(dist.Normal(0.0, 2.0), dims="obs"),
        y=pk.rv(lambda u: dist.Normal(u, 0.1), dims="obs"),
    )
    posterior = _fit(model, {"y": np.array([5.0, 6.0])})
    found = posterior.log_predictive({"y": np.array([5.0, -1.0])})
    np.testing.assert_allclose(
        found, stats.norm.logpdf([5.0, -1.0], 0.0, np.hypot(2.0, 0.1)), atol=0.25
    )
    same = posterior.log_predictive({"y": np.array([5.0, 6.0])}, coords={"obs": [0, 1]})
    assert float(same.min()) > 1.0, "the same labels mean the same rows"


def test_a_panel_keeps_what_its_dims_learnt() -> None:
    """Two dims of the outcome: the one without latents is the rows; the firms stay."""
    model = pk.Model(
        u=pk.rv(dist.Normal(0.0, 5.0), dims="firm"),
        y=pk.rv(lambda u, x: dist.Normal(u[:, None] + x, 0.1), dims=("firm", "year")),
    )
    y = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    x = np.broadcast_to(np.array([0.0, 1.0, 2.0]), (2, 3))
    posterior = _fit(
        model, {"x": x, "y": y}, coords={"firm": ["A", "B"], "year": [1951, 1952, 1953]}
    )
    new = posterior.predict({"x": np.full((2, 1), 3.0)}, coords={"year": [1954]}).predictions
    assert new["year"].values.tolist() == [1954] and new["firm"].values.tolist() == ["A", "B"]
    np.testing.assert_allclose(new["y"].mean(("chain", "draw")), [[4.0], [7.0]], atol=0.02)
    unlabelled = posterior.predict({"x": np.full((2, 4), 3.0)}).predictions
    assert unlabelled["y"].sizes["year"] == 4


def test_matrices_need_no_dims_again() -> None:
    model = pk.Model(
        b=pk.rv(dist.Normal(0.0, 3.0), dims="k"),
        y=pk.rv(lambda b, X: dist.Normal(X @ b, 0.05), dims="obs"),
    )
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(10, 2))
    posterior = _fit(model, {"X": matrix, "y": matrix @ [1.0, -2.0]}, coords={"k": ["p", "q"]})
    new = rng.normal(size=(3, 2))
    found = posterior.predict({"X": new}).predictions["y"].mean(("chain", "draw"))
    np.testing.assert_allclose(found, new @ [1.0, -2.0], atol=0.15)


@pytest.fixture(scope="module")
def counts() -> pk.Posterior:
    model = pk.Model(
        rate=dist.Gamma(3.0, 1.0),
        n=pk.rv(lambda rate, t: dist.Poisson(rate * t), dims="obs"),
    )
    method = pk.NUTS(draws=1000, warmup=300, chains=2)
    return _fit(model, {"n": np.array([3, 5, 2, 6]), "t": np.ones(4)}, method)


def test_counts_are_predicted_without_their_data(counts: pk.Posterior) -> None:
    """A gamma-Poisson predictive is negative binomial; the outcome is absent from the new data."""
    found = counts.predict({"t": np.array([1.0, 2.0])}).predictions["n"]
    assert np.issubdtype(found.dtype, np.integer)
    shape, rate = 3.0 + 16, 1.0 + 4
    np.testing.assert_allclose(
        found.mean(("chain", "draw")), [shape / rate, 2 * shape / rate], rtol=0.06
    )
    score = counts.log_predictive({"t": np.array([1.0]), "n": np.array([4])})
    expected = stats.nbinom.logpmf(4, shape, rate / (rate + 1))
    np.testing.assert_allclose(score, [expected], atol=0.03)


def test_prior_predictive_needs_no_outcome() -> None:
    model = pk.Model(
        rate=dist.Gamma(3.0, 1.0), n=pk.rv(lambda rate: dist.Poisson(rate), dims="obs")
    )
    without = pk.prior_predictive(model, coords={"obs": range(3)}, draws=2000).prior["n"]
    given = pk.prior_predictive(model, {"n": np.array([1, 2, 3])}, draws=2000)
    np.testing.assert_allclose(without.mean(("chain", "draw")), 3.0, atol=0.25)
    np.testing.assert_allclose(given.prior_predictive["n"].mean(), 3.0, atol=0.2)


def test_prior_predictive_fills_missing_parents() -> None:
    """Children of a variable with holes see a draw there, never a stand-in."""
    model = pk.Model(
        x=pk.rv(dist.Normal(50.0, 1.0), dims="obs"),
        y=pk.rv(lambda x: dist.Normal(x, 0.1), dims="obs"),
    )
    data = {"x": np.array([0.0, np.nan]), "y": np.array([0.0, 0.0])}
    found = pk.prior_predictive(model, data, draws=500).prior_predictive["y"]
    np.testing.assert_allclose(found.mean(("chain", "draw")), [0.0, 50.0], atol=0.3)


def test_scores_of_mixtures_average_over_the_components() -> None:
    model = pk.Model(
        m=dist.Normal(0.0, 0.01),
        z=pk.rv(dist.Bernoulli(0.3), dims="obs"),
        y=pk.rv(lambda m, z: dist.Normal(m + 3.0 * z, 1.0), dims="obs"),
    )
    posterior = _fit(model, {"y": np.array([0.1, 2.9])}, pk.Laplace(draws=DRAWS))
    y = np.array([1.5, 3.0])
    expected = special.logsumexp(
        [np.log(0.7) + stats.norm.logpdf(y), np.log(0.3) + stats.norm.logpdf(y, 3)], axis=0
    )
    np.testing.assert_allclose(posterior.log_predictive({"y": y}), expected, atol=0.05)
    seen = posterior.log_likelihood()["y"].mean(("chain", "draw"))
    y = np.array([0.1, 2.9])
    expected = np.log(0.7 * stats.norm.pdf(y) + 0.3 * stats.norm.pdf(y, 3))
    np.testing.assert_allclose(seen, expected, atol=0.02)
