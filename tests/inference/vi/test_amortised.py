"""Amortised guides on a conjugate model of rows: means, sds and the bound are known exactly."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy import stats

import probkit as pk
from probkit import dist

ROWS, NOISE = 40, 0.5


def _model(**more):
    return pk.Model(
        z=pk.rv(lambda: dist.Normal(0, 1), dims="row"),
        y=pk.rv(lambda z: dist.Normal(z, NOISE), dims="row"),
        **more,
    )


def _data():
    rng = np.random.default_rng(0)
    return {"y": rng.normal(size=ROWS) * np.sqrt(1 + NOISE**2)}


def _guide(out=2):
    return eqx.nn.Linear(1, out, key=jax.random.key(0))


def test_conjugate_rows_in_mini_batches():
    data = _data()
    method = pk.VI(guide=_guide(), batch_size=20, max_steps=3000, step_size=0.02)
    posterior = pk.fit(_model(), data, method=method, progress=False)
    shrink = 1 / (1 + NOISE**2)
    fitted: Any = posterior.approximation
    params = fitted.params
    np.testing.assert_allclose(params["mean"], shrink * data["y"], atol=0.03)
    np.testing.assert_allclose(params["sd"], np.sqrt(shrink) * NOISE, rtol=0.05)
    truth = stats.norm.logpdf(data["y"], 0, np.sqrt(1 + NOISE**2)).sum()
    assert posterior.elbo.value == pytest.approx(truth, abs=0.15)
    assert posterior.log_evidence.value == pytest.approx(truth, abs=0.05)
    verdict = posterior.check()
    assert posterior.status.name == "OK" and verdict["k_hat"].ok and verdict["settled"].ok
    # The trained guide tells rows that were not there.
    loc, log_sd = method.encoder(posterior)(np.array([2.0], np.float32))
    assert float(loc) == pytest.approx(2 * shrink, abs=0.05)
    assert float(np.exp(log_sd)) == pytest.approx(np.sqrt(shrink) * NOISE, rel=0.05)


def test_global_latents_beside_those_of_the_rows():
    """The mean of all rows is global; given it rows are independent, which q has to ignore."""
    rng = np.random.default_rng(1)
    data = {"y": 3.0 + rng.normal(size=ROWS) * np.sqrt(1 + NOISE**2)}
    model = pk.Model(
        mu=dist.Normal(0, 10),
        z=pk.rv(lambda mu: dist.Normal(mu, 1), dims="row"),
        y=pk.rv(lambda z: dist.Normal(z, NOISE), dims="row"),
    )
    method = pk.VI(guide=_guide(), inputs="y", max_steps=2000, step_size=0.03)
    posterior = pk.fit(model, data, method=method, progress=False)
    # The best mean-field factor has the conditional sd, 1 / sqrt(N), and the right mean.
    fitted: Any = posterior.approximation
    params = fitted.params
    assert params["mean"][0] == pytest.approx(data["y"].mean(), abs=0.05)
    assert params["sd"][0] == pytest.approx(1 / np.sqrt(ROWS), rel=0.1)


def test_mistakes():
    data = _data()
    with pytest.raises(TypeError, match="callable equinox module"):
        pk.VI(guide=3.0)
    with pytest.raises(ValueError, match="leave `family` out"):
        pk.VI(guide=_guide(), family="fullrank")
    with pytest.raises(ValueError, match="only of use with guide"):
        pk.VI(inputs="y")
    with pytest.raises(ValueError, match="no guide"):
        pk.VI().encoder(None)
    fit = lambda model, **more: pk.fit(  # noqa: E731
        model, data, method=pk.VI(max_steps=20, **more), progress=False
    )
    with pytest.raises(ValueError, match=r"expected a vector of 2 numbers.*'?z'?.*\(3,\)"):
        fit(_model(), guide=_guide(3))
    with pytest.raises(ValueError, match="no 'x'.*'?y'?"):
        fit(_model(), guide=_guide(), inputs="x")
    plain = pk.Model(mu=dist.Normal(0, 1), y=pk.rv(lambda mu: dist.Normal(mu, 1), dims="row"))
    with pytest.raises(ValueError, match="no latent variable has the dim 'row'"):
        fit(plain, guide=_guide())
