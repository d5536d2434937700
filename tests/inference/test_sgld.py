"""SGLD: its bias is the one that the update has on paper, and its mini-batches are unbiased."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import probkit as pk
from probkit.core import Status
from probkit.results._diagnostics import mcse_sd

_N = 40
_Y = 0.7 + np.random.default_rng(0).normal(size=_N)
_MODEL = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1.0), dims="row"))
_PRECISION = _N + 1.0
_MEAN, _SD = _Y.sum() / _PRECISION, _PRECISION**-0.5


@functools.cache
def _target():
    return _MODEL.bind({"y": _Y})


def _fit(**options):
    method = pk.SGLD(**{"draws": 2500, "warmup": 100, "thin": 5, **options})
    return pk.fit(_target(), method=method, progress=False)


@pytest.mark.parametrize("share", [0.4, 1.2, 2.0])
def test_the_bias_of_a_constant_step(share):
    """z <- z - (e/2) A (z - m) + sqrt(e) N(0, 1) has variance 1 / (A (1 - e A / 4)): with e A of
    0.4, 1.2 and 2 that is 11, 43 and 100 per cent too much. Bound 5 on six scores: 4e-6."""
    step = share / _PRECISION
    posterior = _fit(step_size=step)
    mu = posterior.values["mu"].astype(float)
    expected = _SD / np.sqrt(1.0 - share / 4.0)
    error = float(mcse_sd(mu))
    assert abs(mu.std() - expected) < 5 * error
    assert mu.std() - _SD > 5 * error  # so that the test could tell a method without the bias
    assert abs(mu.mean() - _MEAN) < 5 * mu.std() / np.sqrt(mu.size / 4)
    np.testing.assert_allclose(posterior.stats["step_size"], step, rtol=1e-6)


def test_mini_batches_leave_the_mean():
    posterior = _fit(step_size=0.1 / _PRECISION, batch_size=10, thin=20, draws=1500)
    mu = posterior.values["mu"].astype(float)
    assert abs(mu.mean() - _MEAN) < 0.15 * _SD
    # Their noise widens the draws: 1 + (e A / 4) (N / b) here, 10 per cent in variance.
    assert 0.9 < mu.std() / _SD < 1.25


def test_a_decaying_step():
    posterior = _fit(step_size=1e-3, decay=0.5, decay_after=50.0, draws=100)
    t = np.arange(100, 200)
    expected = 1e-3 * (1 + t / 50.0) ** -0.5
    np.testing.assert_allclose(posterior.stats["step_size"][0], expected, rtol=1e-5)


def test_a_step_that_is_too_large_ends_with_a_status_and_finite_draws():
    posterior = _fit(step_size=1.0)  # e A = 41: each step multiplies the distance by 19.5
    assert posterior.status is Status.NONFINITE
    assert "target.check" in posterior.status.message
    everything = np.concatenate([posterior._drawn.warmup, posterior._drawn.unconstrained], axis=1)
    assert everything.shape[1] < 2600 and np.all(np.isfinite(everything))
    assert np.all(np.isfinite(posterior._drawn.warmup_stats["lp"]))
    verdict = posterior.check()
    assert not verdict.ok and "stopped being finite" in str(verdict)


@pytest.mark.parametrize(("rows", "sd"), [(40, 1.0), (4000, 0.002)], ids=["wide", "narrow"])
@pytest.mark.parametrize("batch", [None, 20])
def test_the_default_step_fits_the_scale(rows, sd, batch):
    """Precisions 41 and 1e9: e (A + V) is 0.2, V being the variance of the batch gradient.

    V is estimated from 32 batches: a factor of three off by chance, 1e-4 for each chain. The
    variance of the draws may be 5 per cent too large; 6 standard errors on either side.
    """
    y = 0.7 + sd * np.random.default_rng(1).normal(size=rows)
    model = pk.Model(
        mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, sd), dims="row")
    )
    method = pk.SGLD(draws=1000, warmup=50, thin=20, batch_size=batch)
    posterior = pk.fit(model, {"y": y}, method=method, progress=False)
    precision = rows / sd**2 + 1.0
    noise = 0.0 if batch is None else rows**2 / batch * y.var() / sd**4
    found = posterior.stats["step_size"][:, 0] * (precision + noise)
    assert np.max(np.abs(np.log(found / 0.2))) < (1e-3 if batch is None else np.log(3.0))
    assert posterior.status is Status.OK
    mu = posterior.values["mu"].astype(float)
    middle, wide = y.sum() / sd**2 / precision, precision**-0.5
    assert abs(mu.mean() - middle) < 1.0 * wide
    if batch is None:
        assert abs(mu.std() / wide - 1.025) < 6 * float(mcse_sd(mu)) / wide + 0.03


def test_thin_steps_do_not_limit_the_batches():
    """A draw of 20 small steps with batches of 10 needs more rows than there are: epochs go on."""
    assert _fit(step_size=1e-4, batch_size=10, thin=20, draws=3, warmup=0).status.ok
    with pytest.raises(ValueError, match="expected 1 to 40"):
        _fit(step_size=1e-4, batch_size=41)


def test_the_dim_is_checked():
    with pytest.raises(ValueError, match="Did you mean 'row'"):
        _fit(batch_size=5, dim="rows")
