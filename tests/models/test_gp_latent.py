"""The capability gaussian_latent of a declared model: engines are told what the model is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import probkit as pk
from probkit import dist
from probkit.core import Batch, GaussianLatent

X = np.array([0.0, 0.4, 1.1, 2.5, 2.6])
Y = np.array([0.3, 0.5, -0.2, 0.9, 1.0])
F = np.array([0.2, -0.4, 0.3, 1.2, -0.7])


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def process(**more) -> dict:
    return {
        "scale": dist.LogNormal(0, 1),
        "f": pk.gp(lambda scale: pk.kernels.Matern32(scale), at="x", **more),
    }


def normal() -> pk.Model:
    return pk.Model(
        **process(mean=lambda b, x: b * x),
        b=dist.Normal(0, 2),
        s=dist.HalfNormal(1),
        y=pk.rv(lambda f, s: dist.Normal(1.0 + 2.0 * f, s), dims="row"),
    )


def matern32(x, y, scale):
    u = np.sqrt(3) * np.abs(x[:, None] - y) / scale
    return (1 + u) * np.exp(-u)


def latent_of(model: pk.Model, data: dict) -> tuple[pk.Target, GaussianLatent]:
    target = model.bind(data)
    return target, target.gaussian_latent


def test_its_parts_are_those_of_the_model():
    target, latent = latent_of(normal(), {"x": X, "y": Y})
    assert (latent.name, latent.dim, latent.size) == ("f", "row", 5)
    assert list(latent.theta.shapes) == ["scale", "b", "s"]
    arrays, theta = target.arrays, jnp.asarray([0.3, -0.5, -1.0])
    np.testing.assert_allclose(latent.mean(theta, arrays), -0.5 * X)
    gram = matern32(X, X, np.exp(0.3))
    np.testing.assert_allclose(latent.covariance(theta, arrays), gram, rtol=1e-12)
    new = np.array([0.1, 3.0])
    cross = latent.cross_covariance(theta, jnp.asarray(new), latent.points(arrays), arrays)
    np.testing.assert_allclose(cross, matern32(new, X, np.exp(0.3)), rtol=1e-12)
    np.testing.assert_allclose(latent.variance(theta, jnp.asarray(new), arrays), [1, 1])
    want = stats.norm.logpdf(Y, 1 + 2 * F, np.exp(-1))
    terms = latent.log_likelihood(theta, jnp.asarray(F), arrays)
    np.testing.assert_allclose(terms, want, rtol=1e-12)
    rows = jnp.asarray([3, 1])
    some = latent.log_likelihood_rows(theta, jnp.asarray(F)[rows], rows, arrays)
    np.testing.assert_allclose(some, want[[3, 1]], rtol=1e-12)
    prior = stats.norm.logpdf(0.3) + stats.norm.logpdf(-0.5, 0, 2)
    prior += stats.halfnorm.logpdf(np.exp(-1)) - 1.0
    assert float(latent.log_prior(theta, arrays)) == pytest.approx(prior, rel=1e-12)
    np.testing.assert_allclose(latent.centre, [0.0, 0.0, 0.0])


def test_a_pair_goes_back_into_the_models_own_space():
    target, latent = latent_of(normal(), {"x": X, "y": Y})
    arrays, theta = target.arrays, jnp.asarray([0.3, -0.5, -1.0])
    z = latent.point(theta, jnp.asarray(F), arrays)
    gram = matern32(X, X, np.exp(0.3))
    white = np.linalg.solve(np.linalg.cholesky(gram), F + 0.5 * X)
    np.testing.assert_allclose(z["f"], white, atol=1e-10)
    back, f = latent.split(z, arrays)
    np.testing.assert_allclose(back, theta)
    np.testing.assert_allclose(f, F, atol=1e-12)
    # The whole log density is the sum of the parts, in whitened coordinates.
    total = latent.log_prior(theta, arrays) + jnp.sum(latent.log_likelihood(theta, f, arrays))
    total += stats.norm.logpdf(white).sum()
    assert float(target.log_density(z)) == pytest.approx(float(total), rel=1e-10)
    np.testing.assert_allclose(target.constrain(z)["f"], F, atol=1e-12)
    centred = normal().bind({"x": X, "y": Y}, reparam={"f": "centred"})
    same = centred.gaussian_latent.point(theta, jnp.asarray(F), centred.arrays)
    np.testing.assert_allclose(same["f"], F)


def test_gaussian_terms_are_exact():
    target, latent = latent_of(normal(), {"x": X, "y": Y})
    assert latent.family(target.arrays) == "gaussian"
    theta, f = jnp.asarray([0.3, -0.5, -1.0]), jnp.asarray(F)
    a, b, c = latent.gaussian_terms(theta, target.arrays)
    np.testing.assert_allclose(a, 4 * np.exp(2.0) * np.ones(5), rtol=1e-12)
    np.testing.assert_allclose(b, 2 * np.exp(2.0) * (Y - 1), rtol=1e-12)
    want = latent.log_likelihood(theta, f, target.arrays)
    np.testing.assert_allclose(c + b * f - a * f**2 / 2, want, rtol=1e-12)


def probit(value) -> pk.Model:
    return pk.Model(**process(), y=pk.rv(value, dims="row"))


def test_probit_terms_are_exact_far_into_the_tails():
    model = probit(lambda f: pk.BernoulliProbit(3.0 * f - 0.5))
    y = np.array([1, 0, 1, 0, 1])
    target, latent = latent_of(model, {"x": X, "y": y})
    assert latent.family(target.arrays) == "probit"
    slope, offset = latent.probit_terms(jnp.zeros(1), target.arrays)
    sign = 2 * y - 1
    np.testing.assert_allclose(slope, 3.0 * sign)
    np.testing.assert_allclose(offset, -0.5 * sign)
    far = 40.0 * F
    want = stats.norm.logcdf(sign * (3 * far - 0.5))
    got = latent.log_likelihood(jnp.zeros(1), jnp.asarray(far), target.arrays)
    np.testing.assert_allclose(got, want, rtol=1e-10)


FAMILIES = {
    "logit": (lambda f: dist.Bernoulli(logits=f), [1, 0, 1, 0, 1], None),
    "student": (lambda f: dist.StudentT(4.0, f, 0.3), Y, None),
    "bent mean": (lambda f: dist.Normal(f**2, 0.3), Y, None),
    "bent probit": (lambda f: pk.BernoulliProbit(f**2), [1, 0, 1, 0, 1], None),
    "noise of its own": (lambda f: dist.Normal(0.0, jnp.exp(f)), Y, None),
    "lognormal": (lambda f: dist.LogNormal(f, 0.5), np.exp(Y), "gaussian"),
    "known noise": (lambda f, e: dist.Normal(f, e), Y, "gaussian"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_closed_forms_are_claimed_where_they_hold(name):
    value, y, family = FAMILIES[name]
    data = {"x": X, "y": y, "e": 0.1 + np.abs(Y)}
    target, latent = latent_of(
        probit(value), {k: data[k] for k in "xye" if k != "e" or "kno" in name}
    )
    assert latent.family(target.arrays) == family


def test_observations_of_one_entry_add_up():
    group, y = np.array([3, 0, 3, 4, 1, 3]), np.array([1, 4, 0, 2, 2, 7])
    model = pk.Model(
        scale=dist.LogNormal(0, 1),
        f=pk.gp(lambda scale: pk.kernels.Matern32(scale), at="x", dims="place"),
        y=pk.rv(lambda f, group: dist.Poisson(jnp.exp(f[group])), dims="obs"),
    )
    target, latent = latent_of(model, {"x": X, "y": y, "group": group})
    want = np.zeros(5)
    np.add.at(want, group, stats.poisson.logpmf(y, np.exp(F[group])))
    got = latent.log_likelihood(jnp.zeros(1), jnp.asarray(F), target.arrays)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    # Other data of the same shapes: the same program, other owners.
    other = model.bind({"x": X, "y": y, "group": group[::-1].copy()})
    assert other.program is target.program
    np.testing.assert_array_equal(other.arrays["latent"]["owner"]["y"], group[::-1])
    with pytest.raises(ValueError, match="mini-batches"):
        latent.log_likelihood_rows(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, int), target.arrays)


def test_missing_labels_and_factors_are_terms_too():
    model = pk.Model(
        **process(),
        y=pk.rv(lambda f: dist.Bernoulli(logits=f), dims="row"),
        more=pk.factor(lambda f, w: -w * f**4, dims="row", likelihood=True),
    )
    y = np.array([1.0, np.nan, 0.0, 1.0, 1.0])
    target, latent = latent_of(model, {"x": X, "y": y, "w": Y})
    want = np.where(
        [1, 0, 1, 1, 1], stats.bernoulli.logpmf(np.nan_to_num(y), 1 / (1 + np.exp(-F))), 0
    )
    got = latent.log_likelihood(jnp.zeros(1), jnp.asarray(F), target.arrays)
    np.testing.assert_allclose(got, want - Y * F**4, rtol=1e-12)


def two() -> pk.Model:
    return normal().extend(g=pk.gp(pk.kernels.RBF(), at="x"))


ABSENT = {
    "no process": (pk.Model(y=dist.Normal(0, 1)), {"y": 0.3}, "no Gaussian process"),
    "two": (two(), {"x": X, "y": Y}, "2 Gaussian processes"),
    "observed": (normal(), {"x": X, "y": Y, "f": F}, "is observed"),
    "no data": (normal(), {"x": X}, "no observed variable"),
    "several": (probit(lambda f: dist.Normal(jnp.cumsum(f), 1.0)), {"x": X, "y": Y}, "several"),
    "sum": (probit(lambda f: dist.Normal(f[0] + f, 1.0)), {"x": X, "y": Y}, "several"),
    "holes": (normal(), {"x": X, "y": np.where(Y > 0, Y, np.nan)}, "missing entries"),
    "between": (
        normal()
        .replace(y=pk.rv(lambda u, s: dist.Normal(u, s), dims="row"))
        .extend(u=pk.rv(lambda f: dist.Normal(f, 1.0), dims="row")),
        {"x": X, "y": Y},
        "'u' depends on 'f'",
    ),
    "factor": (
        normal().extend(tie=pk.factor(lambda f: -(jnp.sum(f) ** 2))),
        {"x": X, "y": Y},
        "prior factor 'tie'",
    ),
}


@pytest.mark.parametrize("name", ABSENT)
def test_where_it_is_absent_the_reason_is_told(name):
    model, data, words = ABSENT[name]
    target = model.bind(data)
    with pytest.raises(ValueError, match=words):
        _ = target.gaussian_latent


def test_single_precision_is_a_choice():
    model = pk.Model(
        f=pk.gp(pk.kernels.RBF(), at="x", precision="single"),
        y=pk.rv(lambda f: dist.Normal(f, 0.1), dims="row"),
    )
    with jax.enable_x64(False):
        target = model.bind({"x": X, "y": Y})
        assert target.dtype == np.float32
        assert target.gaussian_latent.family(target.arrays) == "gaussian"
        assert normal().bind({"x": X, "y": Y}).dtype == np.float64


def test_mini_batches_of_a_process_are_refused():
    target, _ = latent_of(normal(), {"x": X, "y": Y})
    with pytest.raises(ValueError, match="'f'.*all of its rows"):
        target.log_density(target.example, Batch("row", np.array([0, 1])))
