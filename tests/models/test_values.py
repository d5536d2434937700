"""What depends on the values of data, not on their shapes: looked at anew at every bind."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as dist

import probkit as pk
from probkit.core import Batch


def test_values_of_a_discrete_latent_follow_the_column():
    model = pk.Model(
        z=pk.rv(lambda K: dist.DiscreteUniform(0, K)),
        y=pk.rv(lambda z: dist.Normal(z, 1.0), dims="row"),
    )
    y = np.array([8.0, 8.5])
    for top in (2, 9):
        target = model.bind({"K": top, "y": y})
        terms = -0.5 * ((y - np.arange(top + 1)[:, None]) ** 2) - 0.5 * np.log(2 * np.pi)
        exact = np.log(np.mean(np.exp(terms.sum(axis=1))))
        assert float(target.log_density(target.example)) == pytest.approx(exact, rel=1e-5)


def test_supports_and_parameters_are_checked_at_every_bind():
    model = pk.Model(
        t=dist.Normal(0, 1),
        u=pk.rv(lambda t, hi: dist.Uniform(0, hi), dims="row"),
        y=pk.rv(lambda t, sd: dist.Normal(t, sd), dims="row"),
    )
    good = {"hi": 5.0, "u": [4.0, 1.5], "y": [0.0, 1.0], "sd": [1.0, 1.0]}
    first = model.bind(good)
    with pytest.raises(ValueError, match="'u'.*outside"):
        model.bind({**good, "hi": 2.0})
    with pytest.raises(ValueError, match="'y'.*scale"):
        model.bind({**good, "sd": [1.0, -1.0]})
    # A bound that moves is no other program.
    assert model.bind({**good, "hi": 6.0}).program is first.program


def test_whole_numbers_that_do_not_fit_are_refused():
    model = pk.Model(m=dist.Normal(0, 1), y=pk.rv(lambda m: dist.Poisson(jnp.exp(m)), dims="row"))
    with pytest.raises(ValueError, match="'y'.*do not fit into int32"):
        model.bind({"y": np.array([2**32 + 5, 7])})
    with pytest.warns(UserWarning, match="precision='double'"):
        model.bind({"y": np.array([2_000_000, 1_999_000])})


def test_columns_that_single_precision_cannot_tell_apart():
    model = pk.Model(b=dist.Normal(0, 1), y=pk.rv(lambda b, x: dist.Normal(b * x, 1), dims="row"))
    x = 1.7e9 + np.arange(4.0)
    with pytest.warns(UserWarning, match="'x'.*cannot tell apart"):
        model.bind({"x": x, "y": np.zeros(4)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = model.bind({"x": x, "y": np.zeros(4)}, precision="double")
        model.bind({"x": np.full(4, 0.1), "y": np.zeros(4)})
    assert target.dtype == np.float64
    with pytest.raises(ValueError, match="does not fit into float32"):
        model.bind({"x": np.array([0.0, 1e300, 0.0, 0.0]), "y": np.zeros(4)})


def test_double_precision_of_a_count_model_is_exact():
    from scipy.special import gammaln

    y = np.random.default_rng(1).poisson(2e6, 10)
    model = pk.Model(lam=dist.Gamma(2.0, 1e-6), y=pk.rv(lambda lam: dist.Poisson(lam), dims="row"))
    with pytest.warns(UserWarning, match="precision='double'"):
        model.bind({"y": y})
    posterior = pk.fit(model, {"y": y}, method=pk.Laplace(), precision="double", progress=False)
    a, b = 2.0 + y.sum(), 1e-6 + len(y)
    exact = gammaln(a) - a * np.log(b) - gammaln(2.0) + 2 * np.log(1e-6) - gammaln(y + 1).sum()
    assert posterior.log_evidence.value == pytest.approx(exact, abs=5e-3)


def test_batches_of_a_model_with_a_missing_discrete_outcome():
    x = np.arange(5.0) - 2
    model = pk.Model(
        b=dist.Normal(0, 1), y=pk.rv(lambda b, x: dist.Bernoulli(logits=b * x), dims="row")
    )
    target = model.bind({"x": x, "y": np.array([1.0, 0.0, np.nan, 1.0, 1.0])})
    z = {"b": jnp.asarray(0.3)}
    whole = float(target.log_likelihood(z))
    for size in (1, 2):
        rows = [(np.arange(size) + i) % 5 for i in range(5)]
        parts = [float(target.log_likelihood(z, Batch("row", jnp.asarray(r)))) for r in rows]
        assert np.mean(parts) == pytest.approx(whole, rel=1e-5)


def test_tables_indexed_by_latent_codes():
    model = pk.Model(
        z=pk.rv(lambda: dist.Categorical(jnp.ones(2) / 2), dims="row"),
        y=pk.rv(lambda locs, z: dist.Normal(locs[z], 1.0), dims="row"),
    )
    y, locs = np.array([0.2, -0.7]), np.array([-1.0, 1.0])
    target = model.bind({"y": y, "locs": locs})
    terms = np.exp(-0.5 * (y[:, None] - locs) ** 2) / np.sqrt(2 * np.pi)
    exact = np.log(terms.mean(axis=1)).sum()
    assert float(target.log_density(target.example)) == pytest.approx(exact, rel=1e-5)

    groups = pk.Model(
        a=pk.rv(lambda: dist.Normal(0, 1), dims="g"),
        y=pk.rv(lambda a, g: dist.Normal(a[g], 1.0), dims="row"),
    )
    cut = groups.do(a=np.array([1.0, 2.0, 3.0])).extend(c=dist.Normal(0, 1))
    target = cut.bind({"y": np.zeros(3), "g": np.array([0, 2, 1])})
    exact = -0.5 * (1 + 9 + 4) - 2 * np.log(2 * np.pi)
    assert float(target.log_density({"c": jnp.asarray(0.0)})) == pytest.approx(exact, rel=1e-5)


def test_true_and_false_are_two_groups():
    model = pk.Model(
        a=pk.rv(lambda: dist.Normal(0, 1), dims="g"),
        y=pk.rv(lambda a, g: dist.Normal(a[g], 1.0), dims="row"),
    )
    target = model.bind({"y": np.zeros(3), "g": np.array([True, False, True])})
    assert target.coords["g"].tolist() == [False, True]
    assert target.arrays["data"]["g"].tolist() == [1, 0, 1]
    again = model.bind({"y": np.zeros(2), "g": np.array([True, True])}, like=target)
    assert again.arrays["data"]["g"].tolist() == [1, 1]
