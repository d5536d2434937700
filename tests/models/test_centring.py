"""Centred or not: the choice follows the data, and the posterior does not depend on it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import probkit as pk
from probkit import dist
from probkit.models import describe_centring
from probkit.models._centring import centre

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def _schools() -> pk.Model:
    return pk.Model(
        mu=dist.Normal(0.0, 5.0),
        tau=dist.HalfCauchy(5.0),
        theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
        y=pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
    )


def _groups() -> pk.Model:
    return pk.Model(
        mu=dist.Normal(0.0, 5.0),
        tau=dist.HalfNormal(5.0),
        a=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="g"),
        s=dist.HalfNormal(2.0),
        y=pk.rv(lambda a, g, s: dist.Normal(a[g], s), dims="obs"),
    )


def _rows(counts: list[int], seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    means = rng.normal(1.0, 1.5, len(counts))
    codes = np.repeat(np.arange(len(counts)), counts)
    return {"g": codes, "y": rng.normal(means[codes], 1.0)}


# -- the choice ---------------------------------------------------------------------------------


def test_weak_data_are_not_centred() -> None:
    target = _schools().bind({"y": EFFECTS, "sigma": ERRORS})
    assert describe_centring(target) == {"theta": "non-centred"}


def test_strong_data_are_centred() -> None:
    target = _groups().bind(_rows([150] * 20))
    assert describe_centring(target) == {"a": "centred"}


def test_unbalanced_groups_are_mixed() -> None:
    """Large groups are centred, and groups without a single row are not."""
    model, counts = _groups(), [120] * 6 + [0] * 6
    target = model.bind(_rows(counts), coords={"g": range(12)})
    choice = np.asarray(target.arrays["centred"]["a"])
    assert choice[:6].all() and not choice[6:].any()
    assert describe_centring(target) == {"a": "50% centred"}


def test_without_data_nothing_is_centred() -> None:
    target = _schools().bind(coords={"school": range(8)}, data={"sigma": ERRORS})
    assert not target.arrays["centred"]["theta"].any()


def test_observed_imputed_and_top_sites_are_left_alone() -> None:
    y = EFFECTS.copy()
    y[2] = np.nan
    target = _schools().bind({"y": y, "sigma": ERRORS})
    assert set(target.arrays["centred"]) == {"theta"}
    known = _schools().bind({"y": EFFECTS, "sigma": ERRORS, "theta": EFFECTS})
    assert not known.arrays["centred"]


def test_expanded_and_vector_distributions_have_the_choice_too() -> None:
    model = pk.Model(
        tau=dist.HalfNormal(1.0),
        a=pk.rv(lambda tau: dist.Normal(0.0, tau).expand((4,)), dims="g"),
        b=pk.rv(lambda tau: dist.Normal(jnp.zeros(3), tau).to_event(1), dims="g"),
        v=pk.rv(lambda tau: dist.MultivariateNormal(jnp.zeros(2), tau * jnp.eye(2)), dims="g"),
        t=pk.rv(lambda tau: dist.StudentT(4.0, 0.0, tau), dims="g"),
        p=pk.rv(lambda tau: dist.Gamma(2.0, tau), dims="g"),
    )
    target = model.bind(coords={"g": range(4)})
    shapes = {k: v.shape for k, v in target.arrays["centred"].items()}
    assert shapes == {"a": (4,), "b": (4, 3), "v": (4,), "t": (4,)}


def test_new_data_follow_the_choice_of_the_old() -> None:
    model = _groups()
    target = model.bind(_rows([120] * 4 + [0] * 2), coords={"g": range(6)})
    again = model.bind(_rows([3] * 4), like=target)
    np.testing.assert_array_equal(again.arrays["centred"]["a"], target.arrays["centred"]["a"])


# -- the options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "shape", "term"),
    [
        ("centred", None, lambda z: stats.norm.logpdf(z, 1.0, np.exp(0.5)).sum()),
        ("off", None, lambda z: stats.norm.logpdf(z, 1.0, np.exp(0.5)).sum()),
        ("noncentred", None, lambda z: stats.norm.logpdf(z).sum()),
        ({"theta": "noncentred"}, None, lambda z: stats.norm.logpdf(z).sum()),
        ({"theta": None}, None, lambda z: stats.norm.logpdf(z, 1.0, np.exp(0.5)).sum()),
    ],
    ids=["centred", "off", "noncentred", "by site", "site off"],
)
def test_options(option: object, shape: object, term: object) -> None:
    target = _schools().bind({"y": EFFECTS, "sigma": ERRORS}, reparam=option)
    assert target.arrays["centred"] == {}
    z = {"mu": jnp.asarray(1.0), "tau": jnp.asarray(0.5), "theta": jnp.linspace(-1.0, 2.0, 8)}
    found = float(target.terms(z).prior["theta"])
    assert found == pytest.approx(term(np.linspace(-1, 2, 8)), rel=1e-5)  # type: ignore


# -- the density does not depend on it ----------------------------------------------------------


def _vectors() -> pk.Model:
    return pk.Model(
        mu=pk.rv(dist.Normal(0.0, 2.0), dims="k"),
        tau=dist.HalfNormal(1.0),
        a=pk.rv(lambda mu, tau: dist.StudentT(5.0, mu[0], tau), dims="g"),
        v=pk.rv(
            lambda mu, tau: dist.MultivariateNormal(
                mu, scale_tril=tau * jnp.array([[1.0, 0.0], [0.5, 0.8]])
            ),
            dims="g",
            event_dims="k",
        ),
        y=pk.rv(lambda a, v: dist.Normal(a + v.sum(-1), 1.0), dims="g"),
    )


def _chosen(target: pk.Target, seed: int) -> pk.Target:
    rng = np.random.default_rng(seed)
    choice = {k: rng.random(v.shape) < 0.5 for k, v in target.arrays["centred"].items()}
    return pk.Target(target.program, {**target.arrays, "centred": choice}, target.labels)


def test_every_choice_is_the_same_distribution() -> None:
    """log p(z) - log |dx/dz| is log p(x), for any mixture of the two parametrisations."""
    with jax.enable_x64(True):
        target = _vectors().bind({"y": np.array([0.5, -1.0, 2.0])}, coords={"k": ["p", "q"]})
        plain = _vectors().bind(
            {"y": np.array([0.5, -1.0, 2.0])}, coords={"k": ["p", "q"]}, reparam="off"
        )
        rng = np.random.default_rng(0)

        @jax.jit
        def walk(z: dict, arrays: dict) -> tuple:
            mixed = pk.Target(target.program, arrays)
            x = mixed.constrain(z)
            centred = plain.log_density(plain.unconstrain(x))
            return x, mixed.unconstrain(x), mixed.log_density(z), centred

        for seed in range(3):
            mixed = _chosen(target, seed)
            z = {k: jnp.asarray(rng.normal(size=s)) for k, s in mixed.program.shapes.items()}
            x, back, found, centred = walk(z, mixed.arrays)
            for name, value in z.items():
                np.testing.assert_allclose(back[name], value, rtol=1e-9, atol=1e-12)
            choice = mixed.arrays["centred"]
            log_tau = np.log(float(x["tau"]))
            jacobian = (~choice["a"]).sum() * log_tau
            jacobian += (~choice["v"]).sum() * (2 * log_tau + np.log(0.8))
            np.testing.assert_allclose(found, centred + jacobian, rtol=1e-10)


def _plainly(loc: jax.Array, scale: jax.Array, z: jax.Array, w: jax.Array) -> jax.Array:
    """A function of value and density terms, with each way of the choice written out."""
    x = jnp.where(w, z, loc + scale * z)
    centred, standard = dist.StudentT(5.0, loc, scale), dist.StudentT(5.0, 0.0, 1.0)
    return jnp.sum(jnp.sin(x)) + jnp.sum(
        jnp.where(w, centred.log_prob(z), standard.log_prob(jnp.where(w, 0.0, z)))
    )


@pytest.mark.parametrize("shape", [(), (4,), (3, 1)], ids=str)
def test_derivatives_are_those_of_the_formula(shape: tuple[int, ...]) -> None:
    """Gradient and second derivatives, for locations and scales that elements share or not."""
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.random((3, 4)) < 0.5)

    def ours(loc: jax.Array, scale: jax.Array, z: jax.Array) -> jax.Array:
        x, terms = centre(dist.StudentT(5.0, loc, scale), z, w)
        return jnp.sum(jnp.sin(x)) + jnp.sum(terms)

    with jax.enable_x64(True):
        point = rng.normal(size=shape), rng.uniform(0.5, 2.0, shape), rng.normal(size=(3, 4))
        point = tuple(map(jnp.asarray, point))
        found = jax.jit(_to_second_order(ours))(*point)
        wanted = jax.jit(_to_second_order(lambda *at: _plainly(*at, w)))(*point)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def _to_second_order(fn: Callable) -> Callable:
    """Value, gradient and their derivatives along a fixed direction."""

    def along(*at: jax.Array) -> tuple:
        direction = tuple(jnp.cos(1.0 + jnp.arange(float(x.size))).reshape(x.shape) for x in at)
        return jax.jvp(jax.value_and_grad(fn, (0, 1, 2)), at, direction)

    return along


def test_a_scale_of_zero_harms_centred_elements_only() -> None:
    """Far out in the funnel the scale underflows; a site without a centred element goes on."""

    @jax.jit
    def total(scale: jax.Array, z: jax.Array, w: jax.Array) -> jax.Array:
        x, terms = centre(dist.Normal(1.0, scale), z, w)
        return jnp.sum(x) + jnp.sum(terms)

    found = jax.value_and_grad(total, (0, 1))(jnp.zeros(()), jnp.ones(2), jnp.zeros(2, bool))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    rows = jax.grad(total)(jnp.array([0.0, 1.0]), jnp.ones(2), jnp.array([False, True]))
    assert np.isfinite(rows).all()


def _grid_moments() -> dict[str, np.ndarray]:
    """Posterior moments of a two-level model, theta integrated by hand, on a dense grid."""
    y, s = np.array([2.0, -1.0, 4.0]), np.array([0.3, 1.0, 2.5])
    mu = np.linspace(-12, 14, 801)[:, None]
    log_tau = np.linspace(-7, 4, 801)
    tau = np.exp(log_tau)
    total = np.sqrt(tau**2 + s[:, None] ** 2)[:, None, :]
    log = stats.norm.logpdf(y[:, None, None], mu, total).sum(0)
    log = log + stats.norm.logpdf(mu, 0, 3) + stats.halfnorm.logpdf(tau, scale=3) + log_tau
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    gain = tau**2 / (tau**2 + s[:, None] ** 2)
    centre = gain[:, None, :] * y[:, None, None] + (1 - gain)[:, None, :] * mu
    variance = (gain * s[:, None] ** 2)[:, None, :]
    theta = (weight * centre).sum((1, 2))
    square = (weight * (centre**2 + variance)).sum((1, 2))
    return {
        "mu": np.array([(weight * mu).sum(), (weight * mu**2).sum()]),
        "log_tau": np.array([(weight * log_tau).sum(), (weight * log_tau**2).sum()]),
        "theta": theta,
        "square": square,
    }


def test_a_mixture_samples_the_posterior_of_a_dense_grid() -> None:
    """Moments within 5 Monte-Carlo standard errors; the first school is centred, others not."""
    model = pk.Model(
        mu=dist.Normal(0.0, 3.0),
        tau=dist.HalfNormal(3.0),
        theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="g"),
        y=pk.rv(lambda theta, s: dist.Normal(theta, s), dims="g"),
    )
    data = {"y": np.array([2.0, -1.0, 4.0]), "s": np.array([0.3, 1.0, 2.5])}
    target = model.bind(data)
    choice = {"theta": np.array([True, False, False])}
    target = pk.Target(target.program, {**target.arrays, "centred": choice}, target.labels)
    method = pk.NUTS(draws=2000, warmup=500, chains=2, target_accept=0.9)
    posterior = pk.fit(target, method=method, seed=1, progress=False)
    exact = _grid_moments()
    mu, theta = posterior.values["mu"], posterior.values["theta"]
    log_tau = np.log(posterior.values["tau"])
    pairs = {
        "mu": (mu, exact["mu"][0]),
        "mu2": (mu**2, exact["mu"][1]),
        "log_tau": (log_tau, exact["log_tau"][0]),
        **{f"theta{i}": (theta[..., i], exact["theta"][i]) for i in range(3)},
        **{f"square{i}": (theta[..., i] ** 2, exact["square"][i]) for i in range(3)},
    }
    for name, (draws, expected) in pairs.items():
        halves = np.concatenate(np.array_split(draws, 20, axis=1)).mean(axis=1)
        error = halves.std(ddof=1) / np.sqrt(halves.size)
        assert abs(draws.mean() - expected) < 5 * error, (name, draws.mean(), expected, error)
