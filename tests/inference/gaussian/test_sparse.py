"""The sparse algebra against its dense twins, closed forms and its own mini-batches."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probkit.inference.gaussian import _cvi, _ep, _gp_exact, _inducing_points, _sparse
from probkit.inference.gaussian._sparse import Natural
from probkit.inference.gaussian._sparse_posterior import summarise
from probkit.inference.gaussian._sparse_rows import part
from probkit.inference.gaussian._sparse_search import polish, whole
from tests.inference.gaussian.toy import THETA, toy

N, M = 30, 8


@pytest.fixture(autouse=True)
def _wide():
    with jax.enable_x64(True):
        yield


@functools.cache
def optimum(likelihood: str, points: int = N, closed: bool = True):
    """A toy problem, inducing points among its rows, and q's optimum there."""
    with jax.enable_x64(True):
        problem = toy(likelihood, N, closed=closed)
        problem = dataclasses.replace(problem, arrays=jax.tree.map(jnp.asarray, problem.arrays))
        z = jnp.asarray(problem.arrays["x"][:points])
        flat = Natural(jnp.zeros(points), jnp.zeros((points, points)))
        rho = 1.0 if likelihood == "gaussian" else 0.5
        fn = jax.jit(lambda: polish(problem, jnp.asarray(THETA), z, flat, rho))
        return problem, z, fn()


@functools.cache
def slopes(likelihood: str) -> dict[str, np.ndarray]:
    """Derivatives at q's optimum: of the bound with either sites held, and of the energy."""
    problem, z, found = optimum(likelihood)
    forms = {
        "svgp": (_sparse.elbo_at, False),
        "tsvgp": (_sparse.elbo_at, True),
        "hybrid": (_sparse.energy_at, True),
    }

    @jax.jit
    def every(theta):
        out = {}
        for name, (form, tied) in forms.items():
            sites = found.sites
            if tied:
                sites = _sparse.coloured(_sparse.basis(problem, theta, z), sites)
            sites = jax.lax.stop_gradient(sites)
            value = lambda t, f=form, s=sites, k=tied: f(problem, t, z, s, k, 1.0)[0].value  # noqa: E731
            out[name] = jax.value_and_grad(value)(theta)
        return out

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, every(jnp.asarray(THETA)))


def test_all_rows_as_points_give_the_exact_evidence_and_predictions():
    problem, z, found = optimum("gaussian")
    theta = jnp.asarray(THETA)
    value, grad = jax.jit(jax.value_and_grad(lambda t: _gp_exact.value(problem, t)))(theta)
    assert abs(found.elbo - value) < 1e-6 and found.steps <= 3
    for name, (ours, by_theta) in slopes("gaussian").items():
        assert abs(ours - value) < 1e-6, name
        np.testing.assert_allclose(by_theta, grad, atol=1e-5)
    out = jax.jit(lambda s: summarise(problem, theta, z, s))(found.sites)
    k, x = problem.prior(theta), np.asarray(problem.arrays["x"])
    noise = np.exp(2 * THETA[2])
    gain = np.linalg.solve(np.asarray(k.K) + noise * np.eye(N), np.asarray(k.K)).T
    mean = np.asarray(k.m) + gain @ (problem.arrays["y"] - np.asarray(k.m))
    var = np.diag(np.asarray(k.K) - gain @ np.asarray(k.K))
    np.testing.assert_allclose(out["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(out["sd"], np.sqrt(var), atol=1e-6)
    # New rows from u, as predictions are made: mean and variance of the dense process.
    new = x + 0.3
    cross = np.asarray(problem.latent.cross_covariance(theta, new, x, problem.arrays))
    inverse = np.linalg.inv(np.asarray(k.K) + noise * np.eye(N))
    w = np.linalg.solve(out["tril"], cross.T)
    np.testing.assert_allclose(
        w.T @ out["mu"], cross @ inverse @ (problem.arrays["y"] - np.asarray(k.m)), atol=1e-6
    )
    shrunk = np.sum(w * (out["shrunk"] @ w), axis=0)
    np.testing.assert_allclose(shrunk, np.sum(cross @ inverse * cross, axis=1), atol=1e-6)


def test_fewer_points_give_the_collapsed_bound_in_one_step():
    # Titsias (2009), equation 9: log N(y; m, Q + s I) - tr(K - Q) / 2s.
    problem, z, found = optimum("gaussian", M)
    theta, x = jnp.asarray(THETA), problem.arrays["x"]
    prior, noise = problem.prior(theta), np.exp(2 * THETA[2])
    kzz = np.asarray(problem.latent.cross_covariance(theta, z, z, {}))
    kzx = np.asarray(problem.latent.cross_covariance(theta, z, x, {}))
    q = kzx.T @ np.linalg.solve(kzz, kzx)
    cov, gap = q + noise * np.eye(N), problem.arrays["y"] - np.asarray(prior.m)
    bound = -0.5 * (gap @ np.linalg.solve(cov, gap) + np.linalg.slogdet(cov)[1])
    bound -= 0.5 * N * np.log(2 * np.pi) + 0.5 * np.trace(np.asarray(prior.K) - q) / noise
    assert abs(found.elbo - bound) < 1e-6
    # From anywhere, one step of length one is there, and so is its gradient.
    rng = np.random.default_rng(1)
    root = rng.normal(size=(M, M))
    far = Natural(jnp.asarray(rng.normal(size=M)), jnp.asarray(root @ root.T))
    step = jax.jit(lambda s: _sparse.elbo_at(problem, theta, z, s, False, 1.0, 1.0)[0])
    assert abs(step(far).value - bound) < 1e-6
    np.testing.assert_allclose(step(far).sites.l2, found.sites.l2, rtol=1e-6)


@pytest.mark.parametrize("likelihood", ["probit", pytest.param("poisson", marks=pytest.mark.slow)])
def test_all_rows_as_points_give_the_dense_variational_optimum(likelihood):
    problem, _, found = optimum(likelihood)

    @jax.jit
    def dense(theta):
        prior = problem.prior(theta)
        flat = problem.start(theta, prior)
        sites = _cvi.solve(problem, theta, prior, flat, tolerance=1e-9).sites
        sites = jax.lax.stop_gradient(sites)
        bound = jax.value_and_grad(lambda t: _cvi.value(problem, t, sites))(theta)
        energy = jax.value_and_grad(lambda t: _ep.value(problem, t, sites, exact=False))(theta)
        return bound, energy

    bound, energy = dense(jnp.asarray(THETA))
    assert abs(found.elbo - bound[0]) < 1e-6
    for name, truth in (("svgp", bound), ("tsvgp", bound), ("hybrid", energy)):
        value, grad = slopes(likelihood)[name]
        assert abs(value - truth[0]) < 1e-6, name
        np.testing.assert_allclose(grad, truth[1], atol=1e-5)


def test_gradients_against_finite_differences():
    problem, z, found = optimum("probit", M)
    theta = jnp.asarray(THETA)
    tied = _sparse.coloured(_sparse.basis(problem, theta, z), found.sites)
    # The sites on u are the dearer ones: everything between theta and the bound is in them.
    fn = jax.jit(
        jax.value_and_grad(lambda t: _sparse.elbo_at(problem, t, z, tied, True, 2.0)[0].value)
    )
    grad = np.asarray(fn(theta)[1])
    for i in range(2):
        e = 1e-5 * np.eye(3)[i]
        assert abs((fn(theta + e)[0] - fn(theta - e)[0]) / 2e-5 - grad[i]) < 1e-6


def test_mini_batches_are_unbiased():
    # The mean over an epoch's batches is the step on all rows, for q and for the hyperparameters.
    problem, z, found = optimum("probit", M)
    theta, half = jnp.asarray(THETA), Natural(0.5 * found.sites.l1, 0.5 * found.sites.l2)

    @jax.jit
    def step(rows):
        some = part(problem, rows)
        weight = N / some.latent.size

        def value(t):
            out, _ = _sparse.elbo_at(some, t, z, half, False, weight, 1.0, False)
            return out.value, out

        (_, out), grad = jax.value_and_grad(value, has_aux=True)(theta)
        return out.value, out.sites, grad

    order = np.random.default_rng(0).permutation(N).reshape(3, 10)
    parts = [step(rows) for rows in order]
    mean = jax.tree.map(lambda *a: sum(a) / 3, *parts)
    every = step(np.arange(N))
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(every), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("likelihood", ["gaussian", "probit"])
def test_blocks_of_rows_sum_to_the_whole(likelihood):
    problem, z, found = optimum(likelihood, M)
    theta = jnp.asarray(THETA)
    at, q = _sparse.basis(problem, theta, z), _sparse.gaussian(found.sites)
    one, many = jax.jit(lambda: [whole(problem, theta, z, at, q, b) for b in (64, 7)])()
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    one, many = jax.jit(lambda: [summarise(problem, theta, z, found.sites, b) for b in (64, 7)])()
    for name in ("mean", "sd", "loo", "lost"):
        np.testing.assert_allclose(one[name], many[name], rtol=1e-9, atol=1e-12)


def test_leave_one_out_is_exact_for_normal_terms():
    problem, z, found = optimum("gaussian")
    theta = jnp.asarray(THETA)
    loo = jax.jit(lambda: summarise(problem, theta, z, found.sites)["loo"])()
    prior, y = problem.prior(theta), problem.arrays["y"]
    inverse = np.linalg.inv(np.asarray(prior.K) + np.exp(2 * THETA[2]) * np.eye(N))
    var = 1 / np.diag(inverse)
    gap = (inverse @ (y - np.asarray(prior.m))) * var
    np.testing.assert_allclose(loo, -0.5 * np.log(2 * np.pi * var) - 0.5 * gap**2 / var, atol=1e-6)


# -- where the points lie ----------------------------------------------------------------------


def test_points_spread_and_are_rows():
    x = np.random.default_rng(0).normal(size=(400, 2))
    x[:300] *= 0.01
    rows = np.asarray(_inducing_points.kmeans(jax.random.key(0), jnp.asarray(x), 40))
    assert len(set(rows.tolist())) == 40
    chance = np.random.default_rng(1).permutation(400)[:40]
    far = lambda r: np.mean(np.min(np.sum((x[:, None] - x[r]) ** 2, -1), 1))  # noqa: E731
    assert far(rows) < 0.5 * far(chance)
    # Columns in other units choose the same rows (powers of two, so that nothing is rounded).
    other = _inducing_points.kmeans(jax.random.key(0), jnp.asarray(x * [4.0, 1 / 64]), 40)
    np.testing.assert_array_equal(rows, other)


def test_greedy_points_are_the_pivots_of_a_cholesky_factor():
    problem = toy("gaussian", 40)
    theta, x = jnp.asarray(THETA), jnp.asarray(problem.arrays["x"])
    rows = np.asarray(_inducing_points.greedy(problem, theta, x, 12))
    K = np.asarray(problem.prior(theta).K)
    left, chosen = np.diag(K).copy(), []
    for _ in range(12):
        chosen.append(int(np.argmax(left)))
        part = K[:, chosen]
        left = np.diag(K) - np.sum(part * np.linalg.solve(K[np.ix_(chosen, chosen)], part.T).T, 1)
    assert rows.tolist() == chosen
    every = np.asarray(_inducing_points.greedy(problem, theta, x, 40))
    assert sorted(every.tolist()) == list(range(40))


def test_rows_that_repeat_do_not_stop_the_choice():
    x = jnp.asarray(np.repeat(np.arange(4.0), 10))
    rows = np.asarray(_inducing_points.kmeans(jax.random.key(0), x, 8))
    assert len(set(rows.tolist())) == 8 and set(np.asarray(x)[rows]) == {0.0, 1.0, 2.0, 3.0}
