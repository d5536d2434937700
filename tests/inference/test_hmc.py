"""HMC with a given number of leapfrog steps: the right distribution with every metric."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Status, Target
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
    steps = stats["n_steps"]
    assert steps.min() == 6 and steps.max() == 18 and abs(steps.mean() - 12) < 0.1
    assert np.all(steps == steps[0])  # chains that step together take equally many
    assert 0.65 < stats["acceptance_rate"].mean() < 0.97


def test_the_number_of_leapfrog_steps_compiles_nothing():
    first = _fit(metric="diag", leapfrog=1, draws=20, warmup=20, jitter=0.0)
    before = set(_TARGET.program._compiled)
    second = _fit(metric="diag", leapfrog=7, draws=20, warmup=20, jitter=0.0)
    assert set(_TARGET.program._compiled) == before
    assert np.all(first.stats["n_steps"] == 1) and np.all(second.stats["n_steps"] == 7)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_trajectories_of_a_whole_period(jitter):
    """A trajectory of 2 pi on a standard normal ends where it began, unless lengths vary.

    The correlation of neighbours is then near the mean of cos(2 pi (1 + u / 2)) over (-1, 1),
    which is 0 (its standard error here is 0.03: beyond 0.2 by chance, 1e-10).
    """
    target = Target.from_log_density(lambda z: -0.5 * jnp.sum(z["x"] ** 2), {"x": np.zeros(2)})
    method = pk.HMC(draws=1000, warmup=0, leapfrog=20, jitter=jitter, metric="diag")

    @jax.jit
    def walk(key):
        state = method.init(key, target)
        log_step = jnp.log(2.0 * jnp.pi / 20.0)
        state["averaging"] = (state["averaging"][0], log_step, *state["averaging"][2:])

        def one(state, t):
            return method.step(jax.random.fold_in(key, t), target, state, None, t)

        return jax.lax.scan(one, state, jnp.arange(1000))[1]["position"]

    x = np.asarray(walk(jax.random.key(0)))
    found = [np.corrcoef(x[:-1, i], x[1:, i])[0, 1] for i in range(2)]
    if jitter:
        assert np.max(np.abs(found)) < 0.2
    else:
        assert np.min(found) > 0.95
