"""Posterior: one schema from every method, and nothing that raises where it need not."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest

import probkit as pk
from probkit.core import Callback, Status
from probkit.core import _run as driver
from tests.registry import COORDS, DIMS, problem, regression

_METHODS = {
    "draws": lambda: pk.HMC(draws=1500, warmup=300, chains=2, leapfrog=5, metric="diag"),
    "approximation": lambda: pk.ExactGaussian(draws=800),
}


@functools.cache
def _target():
    return regression.bind(problem().data, coords=COORDS, dims=DIMS)


@functools.cache
def _fitted(kind: str):
    return pk.fit(_target(), method=_METHODS[kind](), progress=False)


@pytest.fixture(params=_METHODS)
def posterior(request):
    return _fitted(request.param)


# -- one schema -----------------------------------------------------------------------------------


def test_draws_are_named(posterior):
    assert posterior.draws["theta"].dims == ("chain", "draw", "term")
    assert posterior["theta"].sel(term="b").shape == posterior.values["theta"].shape[:2]
    with pytest.raises(KeyError, match="Did you mean 'theta'"):
        posterior["thet"]


def test_summary_has_a_row_a_component(posterior):
    table = posterior.summary()
    assert list(table.index[:3]) == ["theta[a]", "theta[b]", "theta[c]"] or set(
        ["theta[a]", "theta[b]", "theta[c]"]
    ) <= set(table.index)
    assert table.columns[0] == "mean"
    some = posterior.summary("theta")
    assert len(some) == 3
    np.testing.assert_allclose(some["mean"], problem().mean, atol=0.1)
    with pytest.raises(ValueError, match="Did you mean 'theta'"):
        posterior.summary("thet")


def test_the_verdict(posterior):
    verdict = posterior.check()
    assert verdict.ok, str(verdict)
    assert "OK" in repr(posterior) and "theta" in repr(posterior)
    assert "<" in posterior._repr_html_()
    with_loo = posterior.check(loo=True)
    assert "loo_k" in [c.name for c in with_loo.checks]


def test_evidence_is_close(posterior):
    evidence = posterior.log_evidence
    assert abs(evidence.value - problem().log_evidence) < max(3 * evidence.se, 1e-3)
    assert posterior.log_evidence is evidence  # computed once


def test_log_likelihood_and_loo(posterior):
    terms = posterior.log_likelihood()["y"]
    assert terms.dims == ("chain", "draw", "row")
    p, theta = problem(), posterior.values["theta"].astype(float)
    expected = -0.5 * (p.y - theta @ p.X.T) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(terms.values, expected, rtol=1e-3, atol=1e-3)
    assert posterior.loo().elpd < 0


def test_prediction_for_the_training_rows(posterior):
    drawn = posterior.predict().posterior_predictive["y"]
    assert drawn.dims == ("chain", "draw", "row")
    centre = problem().X @ problem().mean
    np.testing.assert_allclose(drawn.mean(("chain", "draw")), centre, atol=0.3)
    again = posterior.predict().posterior_predictive["y"]
    np.testing.assert_array_equal(drawn, again)


def test_prediction_for_new_rows(posterior):
    rng = np.random.default_rng(0)
    new = {**problem().data, "X": rng.normal(size=(5, 3))}
    del new["y"]
    drawn = posterior.predict(new, coords={"row": [f"n{i}" for i in range(5)]}).predictions["y"]
    assert drawn.sizes["row"] == 5 and str(drawn["row"].values[0]) == "n0"
    sd = np.sqrt(1 + np.einsum("ij,jk,ik->i", new["X"], problem().covariance, new["X"]))
    np.testing.assert_allclose(drawn.mean(("chain", "draw")), new["X"] @ problem().mean, atol=0.35)
    np.testing.assert_allclose(drawn.std(("chain", "draw")), sd, rtol=0.15)


def test_held_out_scores(posterior):
    p = problem()
    scores = posterior.log_predictive(p.data, coords=COORDS)
    assert scores.dims == ("row",)
    sd = np.sqrt(1 + np.einsum("ij,jk,ik->i", p.X, p.covariance, p.X))
    gap = (p.y - p.X @ p.mean) / sd
    expected = -0.5 * gap**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(scores.values, expected, atol=0.1)


def test_facts_travel(posterior):
    attrs = posterior.to_arviz().attrs
    assert attrs["dtype"] == "float32" and attrs["status"] == "OK"
    assert attrs["method"] == type(posterior.method).__name__


def test_unknown_groups_are_named(posterior):
    with pytest.raises(ValueError, match="Did you mean 'posterior'"):
        posterior.groups("posteriro")


# -- functions of the draws -----------------------------------------------------------------------


def test_map_gives_each_function_its_own_program(posterior):
    """Lambdas come and go and may be given one another's place in memory."""
    theta = posterior.values["theta"]
    for power in range(1, 6):
        out = posterior.map(lambda v, k=power: {"s": (k * v["theta"]).sum()})["s"]
        np.testing.assert_allclose(out, power * theta.sum(axis=-1), rtol=1e-4, atol=1e-4)


# -- runs that ended early ------------------------------------------------------------------------


class _Stop(Callback):
    def __call__(self, progressed):
        return Status.STOPPED


def _stopped(monkeypatch, warmup):
    monkeypatch.setattr(driver, "_CHUNK_SECONDS", 1e-9)
    method = pk.HMC(draws=1500, warmup=warmup, chains=2, leapfrog=5, metric="diag")
    return pk.fit(_target(), method=method, progress=False, callbacks=[_Stop()])


def test_a_run_stopped_in_its_warmup_has_no_draws_and_says_so(monkeypatch):
    posterior = _stopped(monkeypatch, warmup=300)
    assert posterior.status is Status.STOPPED
    assert posterior.values["theta"].shape == (2, 0, 3)
    verdict = posterior.check(loo=True)
    assert not verdict.ok and "first draw" in str(verdict)
    assert posterior.draws["theta"].sizes["draw"] == 0
    assert posterior.groups("warmup_posterior")["warmup_posterior"].sizes["draw"] == 32
    assert "HMC" in repr(posterior)
    rest = pk.fit(_target(), method=posterior.method, progress=False, resume=posterior.state)
    np.testing.assert_array_equal(rest.values["theta"], _fitted("draws").values["theta"])


def test_a_run_stopped_among_its_draws_keeps_them(monkeypatch):
    posterior = _stopped(monkeypatch, warmup=0)
    assert posterior.values["theta"].shape == (2, 32, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(posterior.groups()) >= {"posterior", "log_likelihood", "posterior_predictive"}
    assert posterior.check()["status"].ok
