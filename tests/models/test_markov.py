"""Chains over time: densities, sampling, and the forward algorithm, against plain numpy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import probkit as pk
from probkit import dist

PROBS = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]) * 0.97 + 0.01
START = np.array([0.5, 0.3, 0.2])
MEANS = np.array([-1.0, 0.5, 2.0])


def point(**values: float) -> dict:
    return {k: jnp.asarray(v, float) for k, v in values.items()}


def total(target: pk.Target, z: dict) -> float:
    return float(target.log_density(z))


def test_a_latent_chain_has_the_density_of_its_steps():
    model = pk.Model(
        phi=dist.Normal(0, 1),
        s=dist.HalfNormal(1),
        x=pk.markov(
            lambda before, phi, s: dist.Normal(phi * before, s),
            init=lambda s: dist.Normal(0, 2 * s),
            dims="time",
        ),
        y=pk.rv(lambda x: dist.Normal(x, 0.5), dims="time"),
    )
    y = np.array([0.3, -0.2, 0.8, 1.1, 0.4])
    target = model.bind({"y": y})
    assert target.sites["x"].dims == ("time",)
    assert target.sites["x"].shape == (5,)
    x = np.array([0.1, 0.0, 0.5, 0.9, 0.6])
    z = target.unconstrain({"phi": 0.7, "s": 0.4, "x": x})
    got = float(target.terms(z).prior["x"])
    want = stats.norm.logpdf(x[0], 0, 0.8) + stats.norm.logpdf(x[1:], 0.7 * x[:-1], 0.4).sum()
    assert got == pytest.approx(want, rel=1e-5)


def test_covariates_with_the_time_dim_are_taken_at_their_time():
    model = pk.Model(
        b=dist.Normal(0, 1),
        y=pk.markov(
            lambda before, b, u, w: dist.Normal(0.5 * before + b * u + w, 1),
            init=lambda u: dist.Normal(u, 1),
            dims=("region", "time"),
        ),
    )
    rng = np.random.default_rng(0)
    y, u, w = rng.normal(size=(3, 6)), rng.normal(size=6), rng.normal(size=3)
    target = model.bind({"y": y, "u": u, "w": w}, dims={"u": "time", "w": "region"})
    terms = target.terms(target.unconstrain({"b": 0.3}))
    want = np.zeros((3, 6))
    want[:, 0] = stats.norm.logpdf(y[:, 0], u[0], 1)
    mean = 0.5 * y[:, :-1] + 0.3 * u[1:] + w[:, None]
    want[:, 1:] = stats.norm.logpdf(y[:, 1:], mean, 1)
    np.testing.assert_allclose(terms.likelihood["y"], want, rtol=2e-5)


def test_states_may_be_vectors():
    turn = jnp.array([[0.9, 0.2], [-0.2, 0.9]])
    model = pk.Model(
        q=dist.HalfNormal(1),
        x=pk.markov(
            lambda x, q: dist.Normal(turn @ x, q),
            init=dist.Normal(jnp.zeros(2), 1),
            dims="time",
            event_dims="axis",
        ),
        y=pk.rv(lambda x: dist.Normal(x[:, 0], 0.1), dims="time"),
    )
    target = model.bind({"y": np.zeros(4)})
    assert target.sites["x"].dims == ("time", "axis")
    x = np.random.default_rng(1).normal(size=(4, 2))
    got = float(target.terms(target.unconstrain({"q": 0.5, "x": x})).prior["x"])
    mean = x[:-1] @ np.asarray(turn).T
    want = stats.norm.logpdf(x[0]).sum() + stats.norm.logpdf(x[1:], mean, 0.5).sum()
    assert got == pytest.approx(want, rel=1e-5)


def test_chains_are_sampled_from_their_steps():
    model = pk.Model(
        x=pk.markov(
            lambda x: dist.Normal(0.8 * x + 1.0, 0.6), init=dist.Normal(3.0, 0.5), dims="time"
        )
    )
    prior = pk.prior_predictive(model, coords={"time": np.arange(4)}, draws=4000).prior["x"]
    draws = np.asarray(prior)[0]
    mean, var = 3.0, 0.25
    for t in range(4):
        # Four standard errors: a false alarm once in 16,000 comparisons.
        assert abs(draws[:, t].mean() - mean) < 4 * np.sqrt(var / 4000)
        assert abs(draws[:, t].var() / var - 1) < 4 * np.sqrt(2 / 4000)
        mean, var = 0.8 * mean + 1.0, 0.64 * var + 0.36
    lag = np.corrcoef(draws[:, 2], draws[:, 3])[0, 1]
    want = 0.8 * np.sqrt((0.64 * (0.64 * 0.25 + 0.36) + 0.36) / var * 1.0)
    assert np.isfinite(lag) and abs(lag - want) < 0.2


def test_missing_entries_of_an_observed_chain_are_imputed():
    model = pk.Model(
        phi=dist.Uniform(-1, 1),
        y=pk.markov(lambda y, phi: dist.Normal(phi * y, 1), init=dist.Normal(0, 1), dims="time"),
    )
    y = np.array([0.5, np.nan, 0.2, np.nan])
    target = model.bind({"y": y})
    z = target.unconstrain({"phi": 0.5, "y_missing": np.array([0.3, -0.1])})
    full = np.array([0.5, 0.3, 0.2, -0.1])
    joint = stats.norm.logpdf(full[0]) + stats.norm.logpdf(full[1:], 0.5 * full[:-1], 1).sum()
    prior = float(target.terms(z).prior["phi"])
    assert total(target, z) == pytest.approx(prior + joint, rel=1e-5)


def hidden(extra: dict | None = None) -> pk.Model:
    """A hidden chain of three states, with one observed variable or more."""
    return pk.Model(
        shift=dist.Normal(0, 1),
        state=pk.markov(
            lambda s: dist.Categorical(jnp.asarray(PROBS)[s]),
            init=dist.Categorical(jnp.asarray(START)),
            dims="time",
        ),
        y=pk.rv(
            lambda state, shift: dist.Normal(jnp.asarray(MEANS)[state] + shift, 0.7), dims="time"
        ),
        **(extra or {}),
    )


def brute_force(y: np.ndarray, shift: float, count: np.ndarray | None = None) -> np.ndarray:
    """Log joint density of every path: shape (3,) * len(y)."""
    out = np.zeros((3,) * len(y))
    for path in itertools.product(range(3), repeat=len(y)):
        value = np.log(START[path[0]])
        value += sum(np.log(PROBS[i, j]) for i, j in itertools.pairwise(path))
        value += stats.norm.logpdf(y, MEANS[list(path)] + shift, 0.7).sum()
        if count is not None:
            value += stats.poisson.logpmf(count, np.exp(0.4 * np.array(path))).sum()
        out[path] = value
    return out


def numpy_forward(y: np.ndarray, shift: float) -> float:
    """The forward algorithm by hand, in probabilities."""
    weight = START * stats.norm.pdf(y[0], MEANS + shift, 0.7)
    log_total = 0.0
    for value in y[1:]:
        log_total += np.log(weight.sum())
        weight = (weight / weight.sum()) @ PROBS * stats.norm.pdf(value, MEANS + shift, 0.7)
    return log_total + np.log(weight.sum())


def test_a_hidden_chain_is_summed_out_like_brute_force():
    y = np.array([-0.8, 0.1, 1.9, 2.2, 0.3])
    target = hidden().bind({"y": y})
    got = float(target.log_likelihood(point(shift=0.2)))
    assert got == pytest.approx(logsumexp(brute_force(y, 0.2)), rel=1e-5)
    slope = float(jax.grad(lambda s: target.log_likelihood({"shift": jnp.asarray(s)}))(0.2))
    ends = [numpy_forward(y, 0.2 + h) for h in (1e-4, -1e-4)]
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3)


def test_a_long_hidden_chain_agrees_with_the_forward_algorithm():
    y = np.random.default_rng(2).normal(size=300)
    target = hidden().bind({"y": y})
    got = float(target.log_likelihood(point(shift=-0.1)))
    assert got == pytest.approx(numpy_forward(y, -0.1), rel=1e-5)


def test_several_children_and_a_deterministic_between():
    extra = {
        "rate": pk.deterministic(lambda state: jnp.exp(0.4 * state), dims="time"),
        "count": pk.rv(lambda rate: dist.Poisson(rate), dims="time"),
    }
    y, count = np.array([-0.8, 0.1, 1.9, 2.2]), np.array([0, 2, 1, 3])
    target = hidden(extra).bind({"y": y, "count": count})
    want = logsumexp(brute_force(y, 0.2, count))
    assert float(target.log_likelihood(point(shift=0.2))) == pytest.approx(want, rel=1e-5)


def test_the_path_is_drawn_from_its_posterior():
    y = np.array([-0.2, 0.1, 1.2])
    target = hidden().bind({"y": y})
    table = brute_force(y, 0.0)
    want = np.exp(table - logsumexp(table))
    draw = jax.jit(jax.vmap(lambda k: target.constrain(point(shift=0.0), k)["state"]))
    n = 8000
    paths = np.asarray(draw(jax.random.split(jax.random.key(3), n)))
    got = np.zeros_like(want)
    np.add.at(got, tuple(paths.T), 1 / n)
    # 27 cells, each within 4.5 standard errors (and one count): a false alarm in 5,000 runs.
    assert np.all(np.abs(got - want) < 4.5 * np.sqrt(want * (1 - want) / n) + 1 / n)


def test_a_hidden_chains_observations_are_scored_given_all_others():
    y = np.array([-0.8, 0.1, 1.9, 2.2])
    target = hidden().bind({"y": y})
    got = np.asarray(target.per_example(point(shift=0.2))["y"])
    whole = brute_force(y, 0.2)
    for t in range(4):
        own = stats.norm.logpdf(y[t], MEANS + 0.2, 0.7).reshape((3,) + (1,) * (3 - t))
        want = logsumexp(whole) - logsumexp(whole - own)
        assert got[t] == pytest.approx(want, abs=1e-4)


def test_chains_repeat_and_depend_on_a_scalar_discrete_variable():
    table = np.stack([PROBS, np.full((3, 3), 1 / 3)])
    model = pk.Model(
        regime=dist.Categorical(jnp.array([0.3, 0.7])),
        state=pk.markov(
            lambda s, regime: dist.Categorical(jnp.asarray(table)[regime, s]),
            init=dist.Categorical(jnp.asarray(START)),
            dims=("unit", "time"),
        ),
        y=pk.rv(lambda state: dist.Normal(jnp.asarray(MEANS)[state], 0.7), dims=("unit", "time")),
    )
    y = np.array([[-0.8, 0.1, 1.9], [2.0, 2.2, -0.3]])
    target = model.bind({"y": y})
    whole = []
    for regime, weight in enumerate((0.3, 0.7)):
        value = np.log(weight)
        for row in y:
            paths = []
            for path in itertools.product(range(3), repeat=3):
                p = np.log(START[path[0]]) + stats.norm.logpdf(row, MEANS[list(path)], 0.7).sum()
                p += sum(np.log(table[regime][i, j]) for i, j in itertools.pairwise(path))
                paths.append(p)
            value += logsumexp(paths)
        whole.append(value)
    assert float(target.log_density({})) == pytest.approx(logsumexp(whole), rel=1e-5)
    values = target.constrain({}, jax.random.key(0))
    assert values["state"].shape == (2, 3) and values["regime"].shape == ()


def test_a_mixture_variable_between_the_chain_and_the_data():
    lean = np.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])
    model = pk.Model(
        state=pk.markov(
            lambda s: dist.Categorical(jnp.asarray(PROBS)[s]),
            init=dist.Categorical(jnp.asarray(START)),
            dims="time",
        ),
        kind=pk.rv(lambda state: dist.Categorical(jnp.asarray(lean)[state]), dims="time"),
        y=pk.rv(lambda kind: dist.Normal(2.0 * kind, 1.0), dims="time"),
    )
    y = np.array([0.3, 1.8, 0.9])
    target = model.bind({"y": y})
    emit = np.log(lean @ stats.norm.pdf(y[None], np.array([[0.0], [2.0]]), 1.0))
    paths = []
    for path in itertools.product(range(3), repeat=3):
        p = np.log(START[path[0]]) + sum(emit[k, t] for t, k in enumerate(path))
        paths.append(p + sum(np.log(PROBS[i, j]) for i, j in itertools.pairwise(path)))
    assert float(target.log_density({})) == pytest.approx(logsumexp(paths), rel=1e-5)
    assert target.constrain({}, jax.random.key(1))["kind"].shape == (3,)


def test_a_switching_autoregression():
    model = pk.Model(
        state=pk.markov(
            lambda s: dist.Categorical(jnp.asarray(PROBS)[s]),
            init=dist.Categorical(jnp.asarray(START)),
            dims="time",
        ),
        y=pk.markov(
            lambda y, state: dist.Normal(0.5 * y + jnp.asarray(MEANS)[state], 0.7),
            init=dist.Normal(0, 1),
            dims="time",
        ),
    )
    y = np.array([0.3, 1.8, 0.9, -0.4])
    target = model.bind({"y": y})
    paths = []
    for path in itertools.product(range(3), repeat=4):
        p = np.log(START[path[0]]) + stats.norm.logpdf(y[0])
        p += sum(np.log(PROBS[i, j]) for i, j in itertools.pairwise(path))
        p += stats.norm.logpdf(y[1:], 0.5 * y[:-1] + MEANS[list(path[1:])], 0.7).sum()
        paths.append(p)
    assert float(target.log_density({})) == pytest.approx(logsumexp(paths), rel=1e-5)


def test_an_unobserved_chain_of_states_has_total_probability_one():
    model = pk.Model(
        state=pk.markov(
            lambda s: dist.Categorical(jnp.asarray(PROBS)[s]),
            init=dist.Categorical(jnp.asarray(START)),
            dims="time",
        )
    )
    target = model.bind(coords={"time": np.arange(5)})
    assert float(target.log_density({})) == pytest.approx(0.0, abs=1e-5)


def test_one_fit_of_a_hidden_chain_walks_the_whole_road():
    y = np.random.default_rng(4).normal(size=12)
    posterior = pk.fit(
        hidden(), {"y": y}, method=pk.NUTS(draws=50, warmup=50, chains=2), progress=False
    )
    assert posterior["state"].dims == ("chain", "draw", "time")
    replicated = posterior.groups("posterior_predictive")["posterior_predictive"]
    assert replicated["y"].dims == ("chain", "draw", "time")


MISTAKES = {
    "no time": (lambda: pk.markov(lambda x: dist.Normal(x, 1), init=dist.Normal(0, 1)), "time"),
    "no state": (lambda: pk.markov(lambda: dist.Normal(0, 1), dist.Normal(0, 1), "t"), "first par"),
    "no init": (lambda: pk.markov(lambda x: dist.Normal(x, 1), dims="t"), "init"),
    "misspelt": (
        lambda: pk.markov(lambda x: dist.Normal(x, 1), dist.Normal(0, 1), dim="t"),
        "Did you mean 'dims'",
    ),
    "negative": (lambda: pk.markov(lambda x: dist.Normal(x, 1), dist.Normal(0, -1), "t"), "scale"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_declaration(name):
    make, words = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def bound(step, init, **more):
    model = pk.Model(x=pk.markov(step, init, dims="time"), **more)
    return model.bind(coords={"time": np.arange(4)})


BOUND = {
    "supports": (lambda x: dist.LogNormal(x, 1), dist.Normal(0, 1), {}, "'x'.*one support"),
    "bounds": (lambda x: dist.Uniform(x, x + 1), dist.Uniform(0, 1), {}, "'x'.*constant bounds"),
    "events": (
        lambda x: dist.Normal(x, 1).to_event(1),
        dist.Normal(jnp.zeros((3, 2)), 1),
        {},
        "'x'",
    ),
    "no distribution": (lambda x: x, dist.Normal(0, 1), {}, "'x'.*return a distribution"),
    "negative scale": (lambda x: dist.Normal(x, -2.0), dist.Normal(0, 1), {}, "'x'.*scale"),
}


@pytest.mark.parametrize("name", BOUND)
def test_mistakes_found_at_bind_name_the_site(name):
    step, init, more, words = BOUND[name]
    with pytest.raises((ValueError, TypeError), match=words):
        bound(step, init, **more)


def test_a_child_that_mixes_the_times_of_a_hidden_chain_is_refused_by_name():
    model = pk.Model(
        state=pk.markov(
            lambda s: dist.Categorical(jnp.asarray(PROBS)[s]), dist.Categorical(START), "time"
        ),
        y=pk.rv(lambda state: dist.Normal(jnp.cumsum(state), 1.0), dims="time"),
    )
    with pytest.raises(ValueError, match="'state'.*'y' mixes"):
        model.bind({"y": np.zeros(4)})


def test_two_coupled_hidden_chains_are_refused_by_name():
    model = pk.Model(
        a=pk.markov(lambda s: dist.Bernoulli(0.2 + 0.5 * s), dist.Bernoulli(0.5), "time"),
        b=pk.markov(lambda s: dist.Bernoulli(0.3 + 0.5 * s), dist.Bernoulli(0.5), "time"),
        y=pk.rv(lambda a, b: dist.Normal(a + 2.0 * b, 1.0), dims="time"),
    )
    with pytest.raises(ValueError, match="'[ab]'.*pairs"):
        model.bind({"y": np.zeros(4)})


def test_mini_batches_along_the_time_of_a_chain_are_refused():
    model = pk.Model(
        m=dist.Normal(0, 1),
        y=pk.markov(lambda y, m: dist.Normal(y + m, 1), init=dist.Normal(0, 1), dims="time"),
    )
    target = model.bind({"y": np.zeros(6)})
    from probkit.core import Batch

    with pytest.raises(ValueError, match="'y' is a chain"):
        target.log_likelihood(point(m=0.0), Batch("time", jnp.array([0, 3])))
