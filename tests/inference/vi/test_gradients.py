"""Gradient estimators against exact gradients.

Each case compares the mean of some thousands of independent gradients with the closed form; the
score (distance over standard error) must stay below 4. With some 80 scores in all, one exceeds it
by chance with probability 0.5 % (the seeds are fixed).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import digamma, polygamma

from probkit import dist
from probkit.inference.vi._gradients import expectation, running, signal
from probkit.inference.vi._log_gamma import log_dirichlet_draw, log_gamma_draw

REPEATS = 2000


def _scores(program, params, exact, draws=1, repeats=REPEATS, **options):
    """|mean - exact| / standard error of every component of the gradient, and the gradients."""

    @jax.jit
    def gradients(p):
        keys = jax.random.split(jax.random.key(7), repeats)
        one = lambda k: jax.grad(  # noqa: E731
            lambda q: expectation(k, program, q, draws=draws, **options)
        )(p)
        return jax.vmap(one)(keys)

    found = [np.asarray(x, float) for x in jax.tree.leaves(gradients(params))]
    right = [np.asarray(x, float) for x in jax.tree.leaves(exact)]
    scores = []
    for g, e in zip(found, right, strict=True):
        se = g.std(axis=0, ddof=1) / np.sqrt(repeats)
        scores.append(np.max(np.abs(g.mean(axis=0) - e) / se))
    return max(scores), found


@pytest.mark.parametrize("estimator", ["reparam", "score"])
def test_normal(estimator):
    """E[(x - 1)^2] = (m - 1)^2 + s^2."""

    def program(site, p):
        return (site("x", dist.Normal(p["m"], p["s"]), estimator) - 1.0) ** 2

    score, _ = _scores(program, {"m": 0.3, "s": 0.8}, {"m": -1.4, "s": 1.6}, draws=4)
    assert score < 4


def _gamma_program(estimator, boost=4):
    # The Poisson likelihood of a rate z, up to a constant: E = 5 digamma(a) - 2 a.
    def program(site, a):
        y = site("z", dist.Gamma(a, 1.0), estimator, log=True, boost=boost)
        return 5.0 * y - 2.0 * jnp.exp(y)

    return program


@pytest.mark.parametrize(
    ("estimator", "boost", "shape"),
    [
        ("implicit", 0, 0.1),
        ("implicit", 0, 2.0),
        ("rejection", 4, 0.1),
        ("rejection", 1, 0.1),
        ("rejection", 0, 2.0),
        ("rejection", 4, 2.0),
        ("score", 0, 0.1),
        ("score", 0, 2.0),
    ],
)
def test_gamma(estimator, boost, shape):
    exact = 5.0 * polygamma(1, shape) - 2.0
    score, _ = _scores(_gamma_program(estimator, boost), shape, exact)
    assert score < 4


@pytest.mark.parametrize("estimator", ["implicit", "rejection", "score"])
@pytest.mark.parametrize("a", [0.1, 2.0])
def test_beta(estimator, a):
    """E[log z] = digamma(a) - digamma(a + b)."""

    def program(site, p):
        return site("z", dist.Beta(p["a"], p["b"]), estimator, log=True)

    params = {"a": a, "b": 0.7}
    total = polygamma(1, a + 0.7)
    score, _ = _scores(program, params, {"a": polygamma(1, a) - total, "b": -total})
    assert score < 4


@pytest.mark.parametrize("estimator", ["implicit", "rejection", "score"])
def test_dirichlet(estimator):
    """E[sum c log z] with shapes of 0.1 to 3."""
    weights = np.array([1.0, -0.5, 0.3], np.float32)

    def program(site, a):
        return jnp.dot(weights, site("z", dist.Dirichlet(a), estimator, log=True))

    a = jnp.array([0.1, 1.0, 3.0])
    exact = weights * polygamma(1, a) - weights.sum() * polygamma(1, a.sum())
    score, _ = _scores(program, a, exact)
    assert score < 4


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["enumerate", "measure", "score"])
@pytest.mark.parametrize("inner", ["implicit", "rejection", "score"])
def test_nested(choice, inner):
    """k ~ Bernoulli(p), z ~ Gamma(a_k), y ~ N(log z, 1), reward y^2 with a_k = 0.1 and 2.

    E = 1 + sum_k p_k (digamma(a_k)^2 + trigamma(a_k)).
    """

    def program(site, p):
        k = site("k", dist.Bernoulli(p["p"]), choice)
        z = site("z", dist.Gamma(p["a"][k], 1.0), inner, log=True)
        return site("y", dist.Normal(z, 1.0)) ** 2

    def exact(p):
        chances = jnp.stack([1.0 - p["p"], p["p"]])
        return jnp.dot(chances, digamma(p["a"]) ** 2 + polygamma(1, p["a"]))

    params = {"a": jnp.array([0.1, 2.0]), "p": jnp.asarray(0.3)}
    score, _ = _scores(program, params, jax.grad(exact)(params), draws=2)
    assert score < 4


@pytest.mark.slow
@pytest.mark.parametrize("first", ["enumerate", "measure", "score"])
@pytest.mark.parametrize("second", ["enumerate", "measure", "score"])
def test_choices_that_depend_on_draws(first, second):
    """x ~ N(m, 1), j ~ Categorical(x c), k ~ Bernoulli(q_j): E by quadrature over x."""
    slopes, table = jnp.array([0.0, 1.0, -1.0]), jnp.array([[1.0, -2.0], [0.5, 3.0], [2.0, 0.0]])

    def program(site, p):
        x = site("x", dist.Normal(p["m"], 1.0))
        j = site("j", dist.Categorical(logits=slopes * x), first)
        k = site("k", dist.Bernoulli(p["q"][j]), second)
        return table[j, k] * (1.0 + 0.2 * x)

    nodes, weights = np.polynomial.hermite_e.hermegauss(40)

    def exact(p):
        x = p["m"] + jnp.asarray(nodes)
        chances = jax.nn.softmax(slopes * x[:, None], axis=1)
        inner = table[:, 0] * (1 - p["q"]) + table[:, 1] * p["q"]
        return jnp.dot(jnp.asarray(weights / weights.sum()), (chances @ inner) * (1 + 0.2 * x))

    params = {"m": jnp.asarray(0.4), "q": jnp.array([0.2, 0.5, 0.7])}
    score, _ = _scores(program, params, jax.grad(exact)(params))
    assert score < 4


def test_baselines_cut_the_variance_and_no_more():
    """A reward of 100 + x: without a baseline the score's variance is that of 100 x."""

    def program(site, m):
        return 100.0 + site("x", dist.Normal(m, 1.0), "score")

    plain, none = _scores(program, 0.0, 1.0, draws=4, baseline=0.0)
    others, loo = _scores(program, 0.0, 1.0, draws=4)
    mine, mean = _scores(program, 0.0, 1.0, draws=4, baseline=running(100.0, 100.0))
    assert max(plain, others, mine) < 4
    assert loo[0].var() < 0.01 * none[0].var() and mean[0].var() < 0.01 * none[0].var()


@functools.cache
def _slope_of(shape):
    grad = jax.jit(jax.vmap(jax.value_and_grad(lambda a, k: log_gamma_draw(k, a)), (None, 0)))
    return grad(jnp.float32(shape), jax.random.split(jax.random.key(0), 4000))


@pytest.mark.parametrize("shape", [0.01, 0.1])
def test_small_shapes_are_finite_in_float32(shape):
    """And E[d log z / da] = trigamma(a), E[log z] = digamma(a)."""
    y, slope = _slope_of(shape)
    assert y.dtype == slope.dtype == jnp.float32
    assert np.all(np.isfinite(y)) and np.all(np.isfinite(slope))
    assert np.mean(np.exp(np.asarray(y)) == 0.0) > (0.3 if shape == 0.01 else -1)
    for values, exact in ((y, digamma(shape)), (slope, polygamma(1, shape))):
        values = np.asarray(values, float)
        assert abs(values.mean() - float(exact)) < 4 * values.std() / np.sqrt(values.size)
    logs = log_dirichlet_draw(jax.random.key(1), jnp.full((200, 3), shape))
    assert np.all(np.isfinite(logs))
    np.testing.assert_allclose(np.exp(logs).sum(axis=-1), 1.0, rtol=1e-5)


def test_signal():
    g = np.random.default_rng(0).normal([3.0, 0.0], [1.0, 2.0], size=(20_000, 2))
    found = {k: np.asarray(v) for k, v in signal(g).items()}
    np.testing.assert_allclose(found["mean"], [3.0, 0.0], atol=0.06)
    assert found["variance"] == pytest.approx(5.0, rel=0.05)
    assert found["size"] == pytest.approx(9.0, rel=0.05)
    assert found["snr"] == pytest.approx(1.8, rel=0.08)


def test_bad_choices():
    def program(estimator, fn, **options):
        return lambda site, p: jnp.sum(site("x", fn(p), estimator, **options)).astype(float)

    bad = [
        (program("reparm", lambda p: dist.Normal(p, 1.0)), "reparam"),
        (program("rejection", lambda p: dist.Normal(p, 1.0)), "rejection"),
        (program("reparam", lambda p: dist.Bernoulli(p)), "enumerate"),
        (program("enumerate", lambda p: dist.Poisson(p)), "finitely many"),
        (program("enumerate", lambda p: dist.Bernoulli(p * jnp.ones(3))), "one site for each"),
        (program("score", lambda p: dist.Normal(p, 1.0), log=True), "log=True"),
    ]
    for objective, words in bad:
        with pytest.raises(ValueError, match=words):
            expectation(jax.random.key(0), objective, 0.5)

    def twice(site, p):
        return site("x", dist.Normal(p, 1.0)) + site("x", dist.Normal(p, 1.0))

    with pytest.raises(ValueError, match="twice"):
        expectation(jax.random.key(0), twice, 0.5)
    with pytest.raises(ValueError, match="scalar"):
        expectation(jax.random.key(0), lambda site, p: jnp.ones(2) * p, 0.5)
