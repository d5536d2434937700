"""HMC with a fixed number of leapfrog steps: the right distribution with every metric."""

from __future__ import annotations

import numpy as np
import pytest

import probkit as pk
from probkit.core import Status
from tests.inference.cases import BOUND, CENTRE, COVARIANCE, correlated, scores

_TARGET = correlated()


def _fit(**options):
    method = pk.HMC(**{"draws": 1000, "warmup": 500, "leapfrog": 12, **options})
    return pk.fit(_TARGET, method=method, progress=False)


@pytest.mark.parametrize("metric", ["low_rank", "dense", "diag"])
def test_a_correlated_gaussian(metric):
    """24 scores in all; one of them beyond 5 by chance: 2e-4."""
    posterior = _fit(metric=metric)
    assert posterior.status is Status.OK
    assert np.max(scores(posterior.values["x"], CENTRE, COVARIANCE)) < BOUND
    stats = posterior.stats
    assert set(stats) == {
        "diverging",
        "energy",
        "lp",
        "acceptance_rate",
        "step_size",
        "n_steps",
    }
    assert np.all(stats["n_steps"] == 12)
    assert 0.65 < stats["acceptance_rate"].mean() < 0.97


def test_the_number_of_leapfrog_steps_compiles_nothing():
    first = _fit(metric="diag", leapfrog=1, draws=20, warmup=20)
    before = set(_TARGET.program._compiled)
    second = _fit(metric="diag", leapfrog=7, draws=20, warmup=20)
    assert set(_TARGET.program._compiled) == before
    assert np.all(first.stats["n_steps"] == 1) and np.all(second.stats["n_steps"] == 7)
