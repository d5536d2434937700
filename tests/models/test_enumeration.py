"""Discrete latents: brute-force sums, NumPyro's own enumeration, and exact conditionals."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy import special, stats

import probkit as pk
from probkit import dist

P = np.array([0.2, 0.5, 0.3])
# JAX remembers the dtype of a constant array by identity: the float32 tests have one of their own.
SHARES = P.astype(np.float32)
MU = np.array([-1.0, 0.5, 2.0])
Y = np.array([0.3, 1.9, -0.8, 0.7])
GRID = np.array([[0.1, 1.0, -0.4], [0.6, 2.0, 0.2]])  # (region, rep)
TRANSFER = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]])


# -- the models, in both languages --------------------------------------------------------------


def _per_row() -> tuple[pk.Model, dict, Callable]:
    model = pk.Model(
        mu=pk.rv(dist.Normal(0.0, 2.0), dims="k"),
        z=pk.rv(dist.Categorical(P), dims="obs"),
        y=pk.rv(lambda mu, z: dist.Normal(mu[z], 1.0), dims="obs"),
    )

    def twin() -> None:
        with numpyro.plate("k", 3):
            mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("obs", 4):
            z = numpyro.sample("z", dist.Categorical(P), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=Y)

    return model, {"data": {"y": Y}, "coords": {"k": range(3)}}, twin


def _scalar() -> tuple[pk.Model, dict, Callable]:
    model = pk.Model(
        mu=pk.rv(dist.Normal(0.0, 2.0), dims="k"),
        z=dist.Categorical(P),
        y=pk.rv(lambda mu, z: dist.Normal(mu[z], 1.0), dims="obs"),
    )

    def twin() -> None:
        with numpyro.plate("k", 3):
            mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        z = numpyro.sample("z", dist.Categorical(P), infer={"enumerate": "parallel"})
        with numpyro.plate("obs", 4):
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=Y)

    return model, {"data": {"y": Y}, "coords": {"k": range(3)}}, twin


CODES = np.array([0, 1, 1, 0])


def _by_region() -> tuple[pk.Model, dict, Callable]:
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 2.0), dims=("k", "region")),
        z=pk.rv(dist.Categorical(P), dims="obs"),
        y=pk.rv(lambda a, z, region: dist.Normal(a[z, region], 1.0), dims="obs"),
    )

    def twin() -> None:
        with numpyro.plate("region", 2, dim=-1), numpyro.plate("k", 3, dim=-2):
            a = numpyro.sample("a", dist.Normal(0.0, 2.0))
        with numpyro.plate("obs", 4):
            z = numpyro.sample("z", dist.Categorical(P), infer={"enumerate": "parallel"})
            numpyro.sample("y", dist.Normal(a[z, CODES], 1.0), obs=Y)

    data = {"y": Y, "region": CODES}
    return model, {"data": data, "coords": {"k": range(3), "region": ["n", "s"]}}, twin


def _parent() -> tuple[pk.Model, dict, Callable]:
    """w is drawn given z: one for each row."""
    model = pk.Model(
        mu=pk.rv(dist.Normal(0.0, 2.0), dims="k"),
        z=pk.rv(dist.Categorical(P), dims="obs"),
        w=pk.rv(lambda z: dist.Categorical(jnp.asarray(TRANSFER)[z]), dims="obs"),
        shift=pk.deterministic(lambda mu, w: mu[w], dims="obs"),
        y=pk.rv(lambda shift, z: dist.Normal(shift + 0.3 * z, 1.0), dims="obs"),
    )

    def twin() -> None:
        with numpyro.plate("k", 3):
            mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        with numpyro.plate("obs", 4):
            z = numpyro.sample("z", dist.Categorical(P), infer={"enumerate": "parallel"})
            w = numpyro.sample(
                "w", dist.Categorical(jnp.asarray(TRANSFER)[z]), infer={"enumerate": "parallel"}
            )
            numpyro.sample("y", dist.Normal(mu[w] + 0.3 * z, 1.0), obs=Y)

    return model, {"data": {"y": Y}, "coords": {"k": range(3)}}, twin


def _nested() -> tuple[pk.Model, dict, Callable]:
    """A scalar s above one z a region, above the rows inside it."""
    model = pk.Model(
        mu=pk.rv(dist.Normal(0.0, 2.0), dims="k"),
        s=dist.Categorical(P),
        z=pk.rv(lambda s: dist.Categorical(jnp.asarray(TRANSFER)[s]), dims="region"),
        y=pk.rv(lambda mu, z, s: dist.Normal((mu[z] - s)[:, None], 1.0), dims=("region", "rep")),
    )

    def twin() -> None:
        with numpyro.plate("k", 3):
            mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        s = numpyro.sample("s", dist.Categorical(P), infer={"enumerate": "parallel"})
        with numpyro.plate("region", 2, dim=-2):
            z = numpyro.sample(
                "z", dist.Categorical(jnp.asarray(TRANSFER)[s]), infer={"enumerate": "parallel"}
            )
            with numpyro.plate("rep", 3, dim=-1):
                numpyro.sample("y", dist.Normal(mu[z] - s, 1.0), obs=GRID)

    return model, {"data": {"y": GRID}, "coords": {"k": range(3)}}, twin


MODELS = {
    "row": _per_row,
    "scalar": _scalar,
    "by_region": _by_region,
    "parent": _parent,
    "nested": _nested,
}


# -- references ---------------------------------------------------------------------------------


def _joint(name: str, mu: np.ndarray, z: Any, other: Any) -> float:
    """log p(discrete, y | mu) of one assignment, written out by hand."""
    z, other = np.asarray(z), np.asarray(other)
    normal = stats.norm.logpdf
    if name == "row":
        return float(np.log(P[z]).sum() + normal(Y, mu[z]).sum())
    if name == "scalar":
        return float(np.log(P[z]) + normal(Y, mu[z]).sum())
    if name == "by_region":
        return float(np.log(P[z]).sum() + normal(Y, mu[z, CODES]).sum())
    if name == "parent":
        prior = np.log(P[z]).sum() + np.log(TRANSFER[z, other]).sum()
        return float(prior + normal(Y, mu[other] + 0.3 * z).sum())
    prior = np.log(P[other]) + np.log(TRANSFER[other, z]).sum()
    return float(prior + normal(GRID, (mu[z] - other)[:, None]).sum())


def _assignments(name: str) -> list[tuple]:
    codes = range(3)
    rows = list(itertools.product(codes, repeat=4))
    if name in ("row", "by_region"):
        return [(z, 0) for z in rows]
    if name == "scalar":
        return [(z, 0) for z in codes]
    if name == "parent":
        return [(z, w) for z in rows for w in rows]
    return [(z, s) for z in itertools.product(codes, repeat=2) for s in codes]


def _point(name: str, target: pk.Target) -> dict[str, jax.Array]:
    rng = np.random.default_rng(4)
    return {k: jnp.asarray(rng.normal(size=s)) for k, s in target.program.shapes.items()}


@functools.cache
def _bound(name: str) -> tuple[pk.Target, Callable, Callable]:
    """The target in float64, its value and gradient, and the twin in NumPyro."""
    model, options, twin = MODELS[name]()
    target = model.bind(**options, reparam="off")
    return target, jax.jit(jax.value_and_grad(lambda z: target.log_density(z))), twin


@pytest.mark.parametrize("name", list(MODELS))
def test_sums_by_brute_force(name: str) -> None:
    with jax.enable_x64(True):
        target, density, _ = _bound(name)
        z = _point(name, target)
        mu = np.asarray(next(iter(z.values())))
        terms = [_joint(name, mu, *pair) for pair in _assignments(name)]
        expected = special.logsumexp(terms) + stats.norm.logpdf(mu, 0, 2).sum()
        found = density(z)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        assert found.dtype == np.float64


@pytest.mark.parametrize("name", list(MODELS))
def test_sums_against_numpyro(name: str) -> None:
    """NumPyro's tensor variable elimination, with gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from numpyro.contrib.funsor import config_enumerate, enum, log_density

        with jax.enable_x64(True):
            target, density, twin = _bound(name)
            counted = enum(config_enumerate(twin), first_available_dim=-3)
            z = _point(name, target)

            def theirs(z: dict) -> jax.Array:
                return log_density(counted, (), {}, z)[0]

            expected = jax.jit(jax.value_and_grad(theirs))(z)
            found = density(z)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), found[1], expected[1])


@pytest.mark.parametrize("name", list(MODELS))
def test_discrete_latents_follow_their_exact_conditional(name: str) -> None:
    """Frequencies of drawn assignments, by a chi-squared test at 1e-6 a model."""
    count = 4000
    with jax.enable_x64(True):
        target, _, _ = _bound(name)
        z = _point(name, target)
        mu = np.asarray(next(iter(z.values())))
        draw = jax.jit(jax.vmap(lambda key: target.constrain(z, key)))
        drawn = draw(jax.random.split(jax.random.key(2), count))
    pairs = _assignments(name)
    logs = np.array([_joint(name, mu, *pair) for pair in pairs])
    probability = np.exp(logs - special.logsumexp(logs))
    if name == "parent":
        codes = np.concatenate([drawn["z"], drawn["w"]], axis=1)
        keys = [tuple((*z, *w)) for z, w in pairs]
    elif name == "nested":
        codes = np.concatenate([drawn["z"], drawn["s"][:, None]], axis=1)
        keys = [tuple((*z, s)) for z, s in pairs]
    else:
        codes = np.asarray(drawn["z"]).reshape(count, -1)
        keys = [tuple(np.atleast_1d(z)) for z, _ in pairs]
    tally: dict[tuple, int] = {}
    for row in codes.tolist():
        tally[tuple(row)] = tally.get(tuple(row), 0) + 1
    seen = np.array([tally.get(k, 0) for k in keys])
    large = probability * count >= 5
    rest = probability[~large].sum()
    observed = np.append(seen[large], seen[~large].sum())
    expected = np.append(probability[large], rest) * count
    keep = expected > 1e-9
    assert observed[~keep].sum() == 0
    statistic = ((observed - expected)[keep] ** 2 / expected[keep]).sum()
    assert stats.chi2.sf(statistic, keep.sum() - 1) > 1e-6


# -- other supports, factors, missing entries ---------------------------------------------------


def _value(target: pk.Target, z: Mapping | None = None) -> float:
    return float(jax.jit(lambda z: target.log_density(z))({} if z is None else z))


@pytest.mark.parametrize(
    ("prior", "values", "weights"),
    [
        (dist.DiscreteUniform(3, 6), np.arange(3, 7), np.full(4, 0.25)),
        (dist.Bernoulli(0.3), np.arange(2), np.array([0.7, 0.3])),
        (dist.Binomial(4, 0.4), np.arange(5), stats.binom.pmf(np.arange(5), 4, 0.4)),
    ],
    ids=["uniform", "bernoulli", "binomial"],
)
def test_values_of_the_support(prior: Any, values: np.ndarray, weights: np.ndarray) -> None:
    """The support need not begin at zero."""
    model = pk.Model(
        z=pk.rv(prior, dims="obs"), y=pk.rv(lambda z: dist.Normal(1.0 * z, 1.0), dims="obs")
    )
    y = np.array([4.2, 2.8])
    target = model.bind({"y": y})
    joint = np.log(weights) + stats.norm.logpdf(y[:, None], values)
    assert _value(target) == pytest.approx(special.logsumexp(joint, axis=1).sum(), rel=1e-5)
    draw = jax.jit(jax.vmap(lambda key: target.constrain({}, key)["z"]))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    exact = (special.softmax(joint, axis=1) * values).sum(1)
    np.testing.assert_allclose(drawn.mean(0), exact, atol=0.08)


def test_prior_and_likelihood_factors() -> None:
    model = pk.Model(
        z=pk.rv(dist.Categorical(SHARES), dims="obs"),
        tilt=pk.factor(lambda z: 0.4 * z, dims="obs"),
        hit=pk.factor(lambda z, y: -((y - z) ** 2), dims="obs", likelihood=True),
    )
    joint = np.log(P) + 0.4 * np.arange(3) - (Y[:, None] - np.arange(3)) ** 2
    target = model.bind({"y": Y})
    assert _value(target) == pytest.approx(special.logsumexp(joint, axis=1).sum(), rel=1e-5)


def test_imputation_beside_a_discrete_latent() -> None:
    """Joint density of a missing outcome and mu, the components summed out."""
    model = pk.Model(
        mu=pk.rv(dist.Normal(0.0, 2.0), dims="k"),
        z=pk.rv(dist.Categorical(SHARES), dims="obs"),
        y=pk.rv(lambda mu, z: dist.Normal(mu[z], 1.0), dims="obs"),
    )
    y = np.array([0.3, np.nan, -0.8])
    target = model.bind({"y": y}, coords={"k": range(3)}, reparam="off")
    assert target.program.shapes["y_missing"] == (1,)
    filled = np.array([0.3, 1.7, -0.8])
    joint = np.log(P) + stats.norm.logpdf(filled[:, None], MU)
    expected = special.logsumexp(joint, axis=1).sum() + stats.norm.logpdf(MU, 0, 2).sum()
    z = {"mu": jnp.asarray(MU), "y_missing": jnp.array([1.7])}
    assert _value(target, z) == pytest.approx(expected, rel=1e-5)
    terms = target.per_example(z)["y"]
    np.testing.assert_array_equal(np.isnan(terms), [False, True, False])
    np.testing.assert_allclose(terms[0], special.logsumexp(joint[0]), rtol=1e-5)


def test_missing_discrete_outcomes_beside_a_discrete_latent() -> None:
    model = pk.Model(
        z=pk.rv(dist.Categorical(SHARES), dims="obs"),
        n=pk.rv(lambda z: dist.Poisson(1.0 + z), dims="obs"),
    )
    target = model.bind({"n": np.array([2.0, np.nan, 0.0])})
    joint = np.log(P) + stats.poisson.logpmf(np.array([[2], [0]]), 1.0 + np.arange(3))
    assert _value(target) == pytest.approx(special.logsumexp(joint, axis=1).sum(), rel=1e-5)


def test_a_continuous_latent_below_a_discrete_one() -> None:
    model = pk.Model(
        z=pk.rv(dist.Bernoulli(0.3), dims="g"),
        u=pk.rv(lambda z: dist.Normal(0.0, jnp.where(z == 1, 5.0, 0.1)), dims="g"),
        y=pk.rv(lambda u: dist.Normal(u, 1.0), dims="g"),
    )
    target = model.bind({"y": np.array([0.2, 6.0])})
    u, y = np.array([0.1, 4.0]), np.array([0.2, 6.0])
    joint = np.log([0.7, 0.3]) + stats.norm.logpdf(u[:, None], 0.0, [0.1, 5.0])
    expected = special.logsumexp(joint, axis=1).sum() + stats.norm.logpdf(y, u).sum()
    assert _value(target, {"u": jnp.asarray(u)}) == pytest.approx(expected, rel=1e-5)


# -- what is refused, by name -------------------------------------------------------------------


def test_indexing_by_group_is_refused_naming_the_variable() -> None:
    """One z a region and rows inside: each row may use any element, so it is refused."""
    model = pk.Model(
        z=pk.rv(dist.Categorical(SHARES), dims="region"),
        y=pk.rv(lambda z, region: dist.Normal(1.0 * z[region], 1.0), dims="obs"),
    )
    data = {"y": Y, "region": CODES}
    with pytest.raises(ValueError, match=r"site 'z'.*dims \('region',\).*'y'"):
        model.bind(data)


def test_mixing_elements_along_a_shared_dim_is_refused() -> None:
    model = pk.Model(
        z=pk.rv(dist.Categorical(SHARES), dims="obs"),
        y=pk.rv(lambda z: dist.Normal(1.0 * z[::-1], 1.0), dims="obs"),
    )
    with pytest.raises(ValueError, match=r"site 'z'.*'y' mixes its elements"):
        model.bind({"y": Y})


def test_a_support_that_moves_with_the_variable_is_refused() -> None:
    model = pk.Model(
        z=dist.Bernoulli(0.5),
        u=pk.rv(lambda z: dist.Uniform(0.0, 1.0 + z)),
        y=pk.rv(lambda u: dist.Normal(u, 1.0)),
    )
    with pytest.raises(ValueError, match=r"site 'z'.*support of 'u' depends on"):
        model.bind({"y": 0.3})


@pytest.mark.parametrize("prior", [dist.Poisson(3.0), dist.Multinomial(3, SHARES)])
def test_infinite_supports_are_refused(prior: Any) -> None:
    model = pk.Model(n=prior, y=pk.rv(lambda n: dist.Normal(1.0 * jnp.sum(n), 1.0)))
    with pytest.raises(ValueError, match=r"site 'n'.*cannot be summed out.*Categorical"):
        model.bind({"y": 2.5})
