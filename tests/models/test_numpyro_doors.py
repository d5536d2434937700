"""Both doors to NumPyro: its densities are the reference for ours, sum-products included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.distributions import biject_to
from numpyro.infer.util import log_density

import probkit as pk
from probkit import dist

RNG = np.random.default_rng(0)


def jacobian(fn, trace: dict, z: dict) -> float:
    """Log Jacobians of the maps from the unconstrained space, from NumPyro's own sites."""
    total = 0.0
    for name, site in trace.items():
        if site["type"] == "sample" and not site["is_observed"] and name in z:
            transform = biject_to(site["fn"].support)
            value = site["value"]
            free = transform._inverse(value)
            total += float(jnp.sum(transform.log_abs_det_jacobian(free, value)))
    return total


def compare(model: pk.Model, data: dict, *, enum: bool = False, **options) -> None:
    """Our log density at a point drawn at random equals NumPyro's, and so does its gradient."""
    target = model.bind(data, reparam="off", **options)
    fn = model.to_numpyro(data, **options)
    z = target.program.prior_point(jax.random.key(3), target.arrays)
    values = {k: v for k, v in target.constrain(z).items() if k in z}
    placed = fn.place(values)
    if enum:
        from numpyro.contrib.funsor import config_enumerate
        from numpyro.contrib.funsor import enum as enumerated
        from numpyro.contrib.funsor import log_density as enumerated_density

        wrapped = enumerated(config_enumerate(fn), first_available_dim=-fn.max_plate_nesting - 1)
        got, trace = enumerated_density(wrapped, (), {}, placed)
    else:
        got, trace = log_density(fn, (), {}, placed)
    want = float(target.log_density(z))
    assert np.isfinite(want)
    assert float(got) + jacobian(fn, trace, z) == pytest.approx(want, rel=2e-5, abs=2e-4)


def schools() -> tuple[pk.Model, dict]:
    model = pk.Model(
        mu=dist.Normal(0, 5),
        tau=dist.HalfCauchy(5),
        theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
        y=pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
    )
    y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    return model, {"y": y, "sigma": np.array([15.0, 10, 16, 11, 9, 11, 10, 18])}


def test_eight_schools():
    compare(*schools())


def test_dims_in_any_order_event_dims_deterministics_and_factors():
    model = pk.Model(
        a=pk.rv(dist.Normal(0, 1), dims=("region", "year")),
        b=pk.rv(dist.LogNormal(0, 1), dims=("year", "region")),
        low=pk.rv(dist.Normal(0, 1), dims="region"),
        high=pk.rv(lambda low: dist.TruncatedNormal(0.0, 1.0, low=low), dims="region"),
        share=pk.rv(dist.Dirichlet(jnp.ones(3)), dims="year", event_dims="part"),
        mean=pk.deterministic(lambda a, b, low: a + b.T * low[:, None], dims=("region", "year")),
        soft=pk.factor(lambda low: -(low**2), dims="region"),
        data_term=pk.factor(lambda mean: -jnp.abs(mean), dims=("region", "year"), likelihood=True),
        y=pk.rv(lambda mean, share: dist.Normal(mean + share[:, 0], 1), dims=("region", "year")),
    )
    compare(model, {"y": RNG.normal(size=(4, 2))})


def test_imputed_entries():
    model = pk.Model(
        m=dist.Normal(0, 1),
        y=pk.rv(lambda m: dist.Gamma(2.0, jnp.exp(m)), dims="row"),
    )
    compare(model, {"y": np.array([1.2, np.nan, 0.3, np.nan])})


def test_missing_discrete_outcomes_are_masked():
    model = pk.Model(m=dist.Normal(0, 1), y=pk.rv(lambda m: dist.Poisson(jnp.exp(m)), dims="row"))
    compare(model, {"y": np.array([1.0, np.nan, 3.0])})


def test_a_chain_over_time():
    model = pk.Model(
        s=dist.HalfNormal(1),
        x=pk.markov(
            lambda x, s: dist.Normal(0.5 * x, s), init=dist.Normal(0, 1), dims=("region", "time")
        ),
        y=pk.rv(lambda x: dist.Normal(x, 1), dims=("region", "time")),
    )
    compare(model, {"y": RNG.normal(size=(2, 4))})


MIXTURES = {
    "scalar": (
        dict(
            mu=pk.rv(dist.Normal(0, 2), dims="part"),
            z=dist.Categorical(jnp.array([0.2, 0.5, 0.3])),
            y=pk.rv(lambda mu, z: dist.Normal(mu[z], 1.0), dims="row"),
        ),
        dict(y=RNG.normal(size=5)),
        dict(part=list("abc")),
    ),
    "along its own dim": (
        dict(
            mu=pk.rv(dist.Normal(0, 2), dims="part"),
            w=pk.rv(dist.Dirichlet(jnp.ones(3)), event_dims="part"),
            z=pk.rv(lambda w: dist.Categorical(w), dims="row"),
            y=pk.rv(lambda mu, z: dist.Normal(mu[z], 1.0), dims="row"),
        ),
        dict(y=RNG.normal(size=5)),
        dict(part=list("abc")),
    ),
    "a[z, region]": (
        dict(
            a=pk.rv(dist.Normal(0, 2), dims=("part", "region")),
            z=pk.rv(dist.Categorical(jnp.array([0.4, 0.6])), dims="row"),
            y=pk.rv(lambda a, z, region: dist.Normal(a[z, region], 1.0), dims="row"),
        ),
        dict(y=RNG.normal(size=6), region=np.array([0, 1, 2, 0, 1, 2])),
        dict(part=list("ab")),
    ),
    "two discrete latents": (
        dict(
            p=dist.Beta(2, 2),
            s=pk.rv(lambda p: dist.Bernoulli(p)),
            z=pk.rv(
                lambda s: dist.Categorical(
                    jnp.where(s, jnp.array([0.7, 0.2, 0.1]), jnp.array([0.2, 0.2, 0.6]))
                ),
                dims="row",
            ),
            y=pk.rv(lambda z, s: dist.Normal(z * 1.0 - s, 1.0), dims="row"),
        ),
        dict(y=RNG.normal(size=4)),
        dict(),
    ),
    "in a plate of its own": (
        dict(
            mu=pk.rv(dist.Normal(0, 2), dims="part"),
            z=pk.rv(dist.Categorical(jnp.array([0.3, 0.3, 0.4])), dims="region"),
            y=pk.rv(lambda mu, z: dist.Normal(mu[z][:, None], 1.0), dims=("region", "row")),
        ),
        dict(y=RNG.normal(size=(3, 4))),
        dict(part=list("abc")),
    ),
    "transposed": (
        dict(
            b=pk.rv(dist.Normal(0, 1), dims=("row", "region")),
            z=pk.rv(dist.Bernoulli(0.3), dims=("region", "row")),
            level=pk.deterministic(lambda b, z: jnp.where(z, b.T, 0.0), dims=("region", "row")),
            y=pk.rv(lambda level: dist.Normal(level, 1.0), dims=("region", "row")),
        ),
        dict(y=RNG.normal(size=(2, 3))),
        dict(),
    ),
    "with imputation": (
        dict(
            m=pk.rv(dist.Normal(0, 2), dims="part"),
            z=pk.rv(dist.Categorical(jnp.array([0.5, 0.5])), dims="row"),
            x=pk.rv(lambda z: dist.Normal(z * 1.0, 1.0), dims="row"),
            y=pk.rv(lambda m, z, x: dist.Normal(m[z] + x, 1.0), dims="row"),
        ),
        dict(y=RNG.normal(size=4), x=np.array([0.3, np.nan, 1.0, np.nan])),
        dict(part=list("ab")),
    ),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_discrete_latents_are_summed_out_as_by_funsor(name):
    nodes, data, coords = MIXTURES[name]
    compare(pk.Model(**nodes), data, coords=coords, enum=True)


# -- from NumPyro -------------------------------------------------------------------------------


def numpyro_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", sigma.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def potential(fn, z: dict, kwargs: dict, enum: bool = False) -> float:
    from numpyro.infer.util import potential_energy

    model = numpyro.handlers.seed(fn, jax.random.key(0))
    if enum:
        from numpyro.contrib.funsor import config_enumerate
        from numpyro.contrib.funsor import enum as enumerated

        model = enumerated(config_enumerate(model), first_available_dim=-4)
    return -float(potential_energy(model, (), kwargs, z, enum=enum))


def start(target: pk.Target, seed: int = 3) -> dict:
    return target.program.prior_point(jax.random.key(seed), target.arrays)


def test_eight_schools_from_numpyro_are_the_declared_ones():
    declared, data = schools()
    ours = declared.bind(data, reparam="off")
    theirs = pk.Model.from_numpyro(numpyro_schools).bind(data)
    assert {k: (s.kind, s.dims, s.shape) for k, s in theirs.sites.items()} == {
        k: (s.kind, s.dims, s.shape) for k, s in ours.sites.items()
    }
    z = start(ours)
    for part in ("log_prior", "log_likelihood"):
        got, want = getattr(theirs, part)(z), getattr(ours, part)(z)
        assert float(got) == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(theirs.per_example(z)["y"], ours.per_example(z)["y"], rtol=1e-5)
    values = theirs.constrain(z)
    again = theirs.unconstrain(values)
    for name in z:
        np.testing.assert_allclose(again[name], z[name], rtol=1e-5, atol=1e-6)


def test_every_part_of_a_posterior_works_from_numpyro():
    _, data = schools()
    model = pk.Model.from_numpyro(numpyro_schools)
    names = list("abcdefgh")
    posterior = pk.fit(
        model,
        data,
        coords={"school": names},
        progress=False,
        method=pk.NUTS(draws=100, warmup=100, chains=2),
    )
    groups = posterior.groups()
    wanted = {
        "posterior",
        "prior",
        "prior_predictive",
        "posterior_predictive",
        "log_likelihood",
        "log_prior",
        "observed_data",
        "constant_data",
        "sample_stats",
    }
    assert wanted <= set(groups)
    assert groups["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert groups["posterior"]["theta"].coords["school"].values.tolist() == names
    assert groups["constant_data"]["sigma"].dims == ("school",)
    predicted = posterior.predict({"sigma": np.full(3, 5.0)}, coords={"school": ["h", "i", "j"]})
    assert predicted.predictions["y"].shape == (2, 100, 3)
    score = posterior.log_predictive({"sigma": np.ones(2), "y": np.zeros(2)})
    assert score.shape == (2,) and np.isfinite(score).all()
    assert "<svg" in model.bind(data).labels.source.graph().svg


def test_plates_in_any_nesting_static_arguments_and_defaults():
    def fn(x, groups=2, family="normal", shift=1.5, y=None):
        outer, inner = numpyro.plate("g", groups, dim=-2), numpyro.plate("row", len(x), dim=-1)
        scale = numpyro.sample("scale", dist.Gamma(2, 2))
        with outer:
            a = numpyro.sample("a", dist.Normal(0, 1))
        with inner:
            b = numpyro.sample("b", dist.Normal(shift, 1))
        mean = numpyro.deterministic("mean", a + b * x)
        numpyro.factor("soft", -(scale**2))
        made = dist.Normal if family == "normal" else dist.Laplace
        with outer, inner:
            numpyro.sample("y", made(mean, scale), obs=y)

    data = {"x": np.arange(3.0), "groups": 2, "family": "laplace", "y": RNG.normal(size=(2, 3))}
    target = pk.Model.from_numpyro(fn, dims={"mean": ("g", "row")}).bind(data)
    assert {k: (s.kind, s.dims) for k, s in target.sites.items()} == {
        "scale": ("latent", ()),
        "a": ("latent", ("g",)),
        "b": ("latent", ("row",)),
        "mean": ("deterministic", ("g", "row")),
        "soft": ("factor", ()),
        "y": ("observed", ("g", "row")),
    }
    z = start(target)
    assert set(target.terms(z).likelihood) == {"y"}
    assert float(target.log_density(z)) == pytest.approx(potential(fn, z, data), rel=1e-5)
    assert target.constrain(z)["a"].shape == (2,)
    assert target.per_example(z)["y"].shape == (2, 3)
    again = target.unconstrain(target.constrain(z))
    np.testing.assert_allclose(again["a"], z["a"], rtol=1e-5)


def test_discrete_latents_of_a_numpyro_function_are_summed_out_and_drawn():
    def fn(y):
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
        with numpyro.plate("part", 2):
            mu = numpyro.sample("mu", dist.Normal(0, 3))
        with numpyro.plate("row", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    data = {"y": np.array([-2.0, 2.5, 2.0, -1.5])}
    target = pk.Model.from_numpyro(fn).bind(data)
    assert target.sites["z"].kind == "discrete"
    z = start(target)
    assert float(target.log_density(z)) == pytest.approx(potential(fn, z, data, True), rel=1e-5)
    mu = np.array([-2.0, 2.0])
    point = target.unconstrain({"w": jnp.array([0.5, 0.5]), "mu": jnp.asarray(mu)})
    draw = jax.vmap(lambda k: target.constrain(point, k)["z"])
    share = np.asarray(draw(jax.random.split(jax.random.key(0), 2000))).mean(0)
    logits = -0.5 * (data["y"] - mu[1]) ** 2 + 0.5 * (data["y"] - mu[0]) ** 2
    # Four probabilities, each within 4.5 standard errors: a false alarm in 36,000 runs.
    want = 1 / (1 + np.exp(-logits))
    assert np.all(np.abs(share - want) < 4.5 * np.sqrt(want * (1 - want) / 2000) + 1e-3)


def test_mini_batches_scale_the_rows_of_a_numpyro_function():
    from probkit.core import Batch

    _, data = schools()
    target = pk.Model.from_numpyro(numpyro_schools).bind(data)
    z = start(target)
    whole = target.terms(z)
    parts = [target.terms(z, Batch("school", jnp.array(i))) for i in ([0, 3, 5, 6], [1, 2, 4, 7])]
    got = np.mean([float(p.log_density()) for p in parts])
    assert got == pytest.approx(float(whole.log_density()), rel=1e-5)


def test_a_function_that_looks_at_its_data_is_taken_as_it_is():
    def fn(group, y):
        with numpyro.plate("g", int(group.max()) + 1):
            a = numpyro.sample("a", dist.Normal(0, 1))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(a[group], 1), obs=y)

    model = pk.Model.from_numpyro(fn)
    group, y = np.array([0, 2, 1, 2]), np.arange(4.0)
    target = model.bind({"group": group, "y": y})
    assert target.sites["a"].shape == (3,)
    z = start(target)
    want = potential(fn, z, {"group": group, "y": y})
    assert float(target.log_density(z)) == pytest.approx(want, rel=1e-5)
    assert model.bind({"group": group, "y": y}).program is target.program
    assert model.bind({"group": group, "y": y + 1}).program is not target.program


def test_targets_of_one_numpyro_function_share_programs():
    model = pk.Model.from_numpyro(numpyro_schools)
    _, data = schools()
    first = model.bind(data)
    assert model.bind({**data, "y": data["y"] + 1}).program is first.program
    assert model.bind({"sigma": data["sigma"]}).program is not first.program


def test_a_scan_of_numpyro_keeps_its_density():
    from numpyro.contrib.control_flow import scan

    def fn(y):
        phi = numpyro.sample("phi", dist.Uniform(0, 1))

        def step(x, value):
            x = numpyro.sample("x", dist.Normal(phi * x, 1))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=value)
            return x, None

        scan(step, 0.0, y)

    data = {"y": np.array([0.3, -0.1, 0.8])}
    target = pk.Model.from_numpyro(fn, dims={"x": "time", "y": "time"}).bind(data)
    assert target.sites["x"].dims == ("time",)
    z = start(target)
    assert float(target.log_density(z)) == pytest.approx(potential(fn, z, data), rel=1e-5)


def subsampled(y):
    with numpyro.plate("row", len(y), subsample_size=2) as index:
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(0, 1)), 1), obs=y[index])


def optimised(y):
    numpyro.sample("y", dist.Normal(numpyro.param("a", 0.0), 1), obs=y)


def unbounded(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("n", dist.Poisson(3.0)), 1), obs=y)


WRONG = {
    "subsampling": (subsampled, {"y": np.zeros(4)}, {}, "plate 'row'.*subsample_size"),
    "param": (optimised, {"y": np.zeros(4)}, {}, "site 'a'.*numpyro.param"),
    "misspelt data": (numpyro_schools, {"sigam": np.ones(2)}, {}, "'sigam'.*Did you mean 'sigma'"),
    "missing data": (numpyro_schools, {"y": np.ones(2)}, {}, "'sigma' has no default"),
    "holes": (numpyro_schools, {"sigma": np.ones(2), "y": [1.0, np.nan]}, {}, "'y'.*missing"),
    "dims": (numpyro_schools, {"sigma": np.ones(2)}, {"dims": {"thta": "k"}}, "Did you mean 'thet"),
    "coords": (numpyro_schools, {"sigma": np.ones(2)}, {"coords": {"scool": [1]}}, "dim 'scool'"),
    "labels": (numpyro_schools, {"sigma": np.ones(2)}, {"coords": {"school": [1]}}, "2 labels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_with_a_numpyro_function(name):
    fn, data, options, words = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=words):
        pk.Model.from_numpyro(fn).bind(data, **options)


def test_an_unbounded_discrete_latent_is_refused_by_name():
    target = pk.Model.from_numpyro(unbounded).bind({"y": np.zeros(3)})
    with pytest.raises(ValueError, match="site 'n'.*cannot be summed out"):
        target.log_density({})


def test_reparam_is_named_as_unused():
    with pytest.warns(UserWarning, match="reparam"):
        pk.Model.from_numpyro(numpyro_schools).bind({"sigma": np.ones(2)}, reparam="centred")


def test_the_function_made_from_a_model_says_what_it_takes():
    fn = schools()[0].to_numpyro(schools()[1])
    with pytest.raises(TypeError, match="Did you mean 'sigma'"):
        fn(sigam=1.0)
    with pytest.raises(ValueError, match="made for data of these sizes"):
        fn(sigma=np.ones(3))
    trace = numpyro.handlers.trace(numpyro.handlers.seed(fn, 0)).get_trace(y=None)
    assert not trace["y"]["is_observed"]
