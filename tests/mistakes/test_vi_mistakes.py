"""Mistakes that variational inference meets: each named with its site and a remedy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Status, Target, run
from probkit.core._status import Status as _Status


def test_a_discrete_latent_that_cannot_be_summed():
    model = pk.Model(
        n=pk.dist.Poisson(3.0),
        y=pk.rv(lambda n: pk.dist.Normal(n, 1.0), dims="row"),
    )
    with pytest.raises(ValueError, match=r"'?n'?"):
        pk.fit(model, {"y": np.zeros(3)}, method=pk.VI(), progress=False)


def test_a_factor_without_a_gradient_is_named():
    """A penalty on the rounded mean: its gradient is zero, its value is not constant."""
    model = pk.Model(
        mu=pk.dist.Normal(0, 2),
        steps=pk.factor(lambda mu: -3.0 * jnp.abs(jnp.round(mu) - 2.0)),
    )
    posterior = pk.fit(model, {}, method=pk.VI(family="meanfield"), progress=False)
    verdict = posterior.check()
    check = verdict["gradients"]
    assert check.ok is False and "'steps'" in check.where and "'mu'" not in check.where
    assert "smooth" in check.advice and not verdict.ok


def test_smooth_factors_pass():
    model = pk.Model(
        mu=pk.dist.Normal(0, 2),
        tau=pk.dist.HalfNormal(1.0),
        y=pk.rv(lambda mu, tau: pk.dist.StudentT(3.0, mu, tau), dims="row"),
    )
    data = {"y": np.array([0.5, 1.0, -0.3, 8.0])}
    posterior = pk.fit(model, data, method=pk.VI(family="fullrank"), progress=False)
    assert posterior.check()["gradients"].ok


@pytest.mark.parametrize("family", ["coupling", "autoregressive"])
def test_a_family_that_does_not_fit(family):
    pytest.importorskip("flowjax")
    model = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1.0)))
    with pytest.raises(ValueError, match=f"{family}.*use family='flow'"):
        pk.fit(model, {"y": 0.5}, method=pk.VI(family=family), progress=False)


def test_structure_of_too_many_entries():
    target = Target.from_log_density(lambda z: -0.5 * jnp.sum(z["x"] ** 2), {"x": np.zeros(300)})
    with pytest.raises(ValueError, match="structured.*256.*meanfield"):
        run(target, pk.VI(family="structured"), 0)


def _edge(at: float) -> Target:
    """A normal whose log density is not a number beyond a point."""
    fn = lambda z: jnp.where(z["x"] > at, jnp.nan, -0.5 * z["x"] ** 2)  # noqa: E731
    return Target.from_log_density(fn, {"x": np.zeros(())})


def test_a_step_that_is_not_finite_is_left_out_and_told():
    """Two or three in a hundred steps see a draw beyond 3.2: they are skipped and counted."""
    fit = run(_edge(3.2), pk.VI(family="meanfield", tolerance=1e-6, tempering=2000), 0)
    assert fit.output.stats["nonfinite_steps"] > 0
    (check,) = [c for c in fit.output.checks if c.name == "finite_steps"]
    assert "log_density" in check.where and "best fit" in check.advice
    assert np.all(np.isfinite(np.asarray(fit.output.params["family"]["loc"])))


def test_nothing_but_nan_ends_with_the_last_good_state():
    """No step has all of its draws where the density is finite (by chance one in a million has)."""
    fn = lambda z: jnp.where(jnp.abs(z["x"][0]) > 0.3, jnp.nan, -0.5 * jnp.sum(z["x"] ** 2))  # noqa: E731
    target = Target.from_log_density(fn, {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="no starting point|not finite|finite"):
        run(target, pk.VI(family="meanfield", particles=1024), 0)


def test_statuses_have_words():
    assert _Status.NONFINITE is Status.NONFINITE and "last finite" in Status.NONFINITE.message


def test_bad_batches():
    model = pk.Model(
        mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1.0), dims="row")
    )
    method = pk.VI(family="meanfield", batch_size=4, dim="rows")
    with pytest.raises(ValueError, match="rows.*row"):
        pk.fit(model, {"y": np.zeros(20)}, method=method, progress=False)


def test_batches_find_the_same_posterior():
    rng = np.random.default_rng(0)
    y = rng.normal(1.0, 1.0, 200)
    model = pk.Model(
        mu=pk.dist.Normal(0, 10), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1.0), dims="row")
    )
    method = pk.VI(family="meanfield", batch_size=20)
    posterior = pk.fit(model, {"y": y}, method=method, progress=False)
    mu = posterior.values["mu"]
    assert abs(mu.mean() - y.sum() / 200.01) < 0.3 / 200**0.5
    assert mu.std() == pytest.approx(200.01**-0.5, rel=0.1)
