"""A formula's model along the whole road: bound, fitted, and used for new rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
import scipy.stats
import statsmodels.api as sm
from numpyro import distributions as dist
from numpyro.infer.util import potential_energy

import probkit as pk
from probkit.models._formula import formula
from probkit.models._formula_families import HalfStudentT


def make_frame(n: int = 150) -> pd.DataFrame:
    rng = np.random.default_rng(11)
    frame = pd.DataFrame({"x": 10 + 3 * rng.normal(size=n), "z": rng.normal(size=n)})
    frame["g"] = rng.choice(["q", "u", "v", "w"], n)
    frame["exposure"] = rng.uniform(1, 5, n)
    eta = 0.2 * (frame.x - 10) - 0.5 * frame.z
    frame["y"] = 1.5 + eta + rng.normal(size=n)
    frame["count"] = rng.poisson(frame.exposure * np.exp(0.3 + 0.5 * eta))
    return frame


FRAME = make_frame()


def by_hand(x, z, g, y):
    """y ~ x + z + (1 + x | g) with the default priors, as NumPyro users write it."""
    spread, sx, sz = (v.std() for v in (y, x, z))
    intercept = numpyro.sample("Intercept_centred", dist.Normal(y.mean(), 2.5 * spread))
    scale = 2.5 * spread / jnp.array([sx, sz])
    beta = numpyro.sample("beta", dist.Normal(0, scale).to_event(1))
    s0 = numpyro.sample("1|g_sigma", dist.HalfNormal(2.5 * spread))
    s1 = numpyro.sample("x|g_sigma", dist.HalfNormal(2.5 * spread / sx))
    factor = numpyro.sample("1 + x|g_cholesky", dist.LKJCholesky(2, 2.0))
    tril = jnp.stack([s0, s1])[:, None] * factor
    with numpyro.plate("levels", 4):
        u = numpyro.sample("u", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril))
    sigma = numpyro.sample("sigma", HalfStudentT(4.0, spread))
    eta = intercept + (x - x.mean()) * beta[0] + (z - z.mean()) * beta[1]
    numpyro.sample("y", dist.Normal(eta + u[g, 0] + x * u[g, 1], sigma), obs=y)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_density_is_that_of_a_numpyro_model(seed):
    x, z, y = (FRAME[c].to_numpy() for c in "xzy")
    args = (x, z, np.searchsorted(["q", "u", "v", "w"], FRAME.g), y)
    with jax.enable_x64(True):
        target = formula("y ~ x + z + (1 + x | g)", FRAME).bind(FRAME, reparam="centred")
        rng = np.random.default_rng(seed)
        point = {k: jnp.asarray(rng.normal(size=v.shape)) for k, v in target.example.items()}
        other = {k: v for k, v in point.items() if k not in ("1|g", "x|g")}
        other["u"] = jnp.stack([point["1|g"], point["x|g"]], axis=1)
        reference = -potential_energy(by_hand, args, {}, other)
        np.testing.assert_allclose(target.log_density(point), reference, rtol=1e-11)


def test_sites_have_dims_and_labels():
    target = formula("y ~ x + z + (1 + x | g)", FRAME).bind(FRAME)
    kinds = {name: site.kind for name, site in target.sites.items()}
    assert kinds["Intercept"] == kinds["1 + x|g_corr"] == "deterministic"
    assert set(target.example) == {name for name, kind in kinds.items() if kind == "latent"}
    dims = {name: site.dims for name, site in target.sites.items()}
    assert dims["beta"] == ("term",) and dims["x|g"] == ("g",) and dims["y"] == ("row",)
    assert target.coords["term"].tolist() == ["x", "z"]
    assert target.coords["g"].tolist() == ["q", "u", "v", "w"]
    assert target.coords["1 + x|g_effect"].tolist() == ["1", "x"]


def test_missing_responses_are_imputed_or_masked():
    holes = FRAME.assign(y=FRAME.y.mask(FRAME.index.isin([3, 8])))
    sites = formula("y ~ x", holes).bind(holes).sites
    assert sites["y_missing"].kind == "imputed" and sites["y_missing"].shape == (2,)
    counts = FRAME.assign(count=FRAME["count"].mask(FRAME.index == 3))
    whole = formula("count ~ 1", FRAME, family="poisson")
    point = {"Intercept": jnp.asarray(0.4)}
    found = float(whole.bind(counts).log_likelihood(point))
    exact = scipy.stats.poisson.logpmf(FRAME["count"].drop(3), np.exp(0.4)).sum()
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@pytest.fixture(scope="module")
def gaussian():
    method = pk.NUTS(draws=400, warmup=400, chains=2)
    return pk.fit(formula("y ~ x + z", FRAME), FRAME, method=method, seed=1, progress=False)


def test_nuts_against_least_squares(gaussian):
    ols = sm.OLS(FRAME.y, sm.add_constant(FRAME[["x", "z"]])).fit()
    draws = gaussian.draws
    found = [float(draws["Intercept"].mean()), *draws["beta"].mean(("chain", "draw")).values]
    # At least 200 effective draws give a Monte Carlo error below .07 posterior sds; .35 is five of
    # them (a false alarm in 10^6) and far above the pull of the priors (a thousandth).
    np.testing.assert_array_less(np.abs(found - ols.params) / ols.bse, 0.35)
    spread = draws["beta"].std(("chain", "draw")).values
    np.testing.assert_allclose(spread, ols.bse.iloc[1:], rtol=0.25)
    assert list(draws["beta"].coords["term"].values) == ["x", "z"]


def test_new_rows_are_predicted_with_the_training_design(gaussian):
    new = pd.DataFrame({"x": [10.0, 16.0, 10.0], "z": [0.0, 0.0, 2.0]}, index=["a", "b", "c"])
    drawn = gaussian.predict(new)["predictions"]["y"]
    assert drawn.dims == ("chain", "draw", "row") and drawn.sizes["row"] == 3
    assert list(drawn.coords["row"].values) == ["a", "b", "c"]
    ols = sm.OLS(FRAME.y, sm.add_constant(FRAME[["x", "z"]])).fit()
    mean = ols.predict(sm.add_constant(new, has_constant="add"))
    # 800 draws with sd about 1: standard error .035 (autocorrelation is negative or none).
    np.testing.assert_allclose(drawn.mean(("chain", "draw")), mean, atol=0.2)


def test_nuts_with_an_offset_against_a_glm():
    model = formula("count ~ x + z + offset(log(exposure))", FRAME, family="poisson")
    method = pk.NUTS(draws=400, warmup=400, chains=2)
    draws = pk.fit(model, FRAME, method=method, seed=2, progress=False).draws
    design = sm.add_constant(FRAME[["x", "z"]])
    glm = sm.GLM(FRAME["count"], design, sm.families.Poisson(), exposure=FRAME.exposure).fit()
    found = [float(draws["Intercept"].mean()), *draws["beta"].mean(("chain", "draw")).values]
    # As for least squares, with .1 more for the skewness that separates mean and mode.
    np.testing.assert_array_less(np.abs(found - glm.params) / glm.bse, 0.45)
