"""Engines for several processes against dense twins, the engines for one, and differences."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probkit.inference.gaussian import _cvi, _gp_laplace, _several_cvi, _several_laplace
from probkit.inference.gaussian import _several_rule as rule
from probkit.inference.gaussian import _several_tilted as tilted
from probkit.inference.gaussian._conditioning import Sites
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._several_algebra import condition, positive
from probkit.inference.gaussian._several_posterior import moments_at, summarise
from tests.inference.gaussian.several_toy import (
    THETA,
    dense_prior,
    normal_derivatives,
    softmax_derivatives,
    spread_out,
    toy,
)
from tests.inference.gaussian.toy import Toy

ENGINES: dict[str, Any] = {"laplace": _several_laplace, "cvi": _several_cvi}


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@functools.cache
def programs(likelihood: str, engine: str, n: int = 15, closed: bool = False, flat: float = 0.3):
    """A problem, and a compiled function of theta: what was found, value, slope, figures."""
    problem = toy(likelihood, n, closed=closed, flat=1.0 if likelihood == "softmax" else flat)
    module = ENGINES[engine]

    def run(theta):
        prior = problem.prior(theta)
        found = _several_laplace.solve(
            problem, theta, prior, problem.start(theta, prior), tolerance=1e-10
        )
        if engine == "cvi":
            # It goes on from Laplace's sites, as its method does.
            found = module.solve(problem, theta, prior, found.sites, tolerance=1e-9)
        value, slope = jax.value_and_grad(functools.partial(module.value, problem))(
            theta, found.sites
        )
        return found, value, slope

    return problem, jax.jit(run)


CASES = [
    ("softmax", "laplace", True),
    pytest.param("softmax", "laplace", False, marks=pytest.mark.slow),
    ("softmax", "cvi", False),
    ("heteroscedastic", "laplace", False),
    ("heteroscedastic", "cvi", False),
]


@pytest.mark.parametrize(("likelihood", "engine", "closed"), CASES)
def test_gradients_are_those_of_finite_differences(likelihood, engine, closed):
    _, run = programs(likelihood, engine, closed=closed)
    found, _, slope = run(THETA)
    assert int(found.reason) == 0
    for i in range(3):
        step = 1e-4 * np.eye(3)[i]
        ends = [float(run(t)[1]) for t in (THETA + step, THETA - step)]
        assert abs((ends[0] - ends[1]) / 2e-4 - float(slope[i])) < 1e-5


def dense_laplace(problem, likelihood: str) -> tuple[np.ndarray, float, np.ndarray]:
    """Mode ``(C, n)``, evidence and covariance by Newton's method on one dense vector."""
    m, K = dense_prior(problem)
    y, (count, n) = problem.arrays["y"], problem.prior(jnp.asarray(THETA)).m.shape
    inverse = np.linalg.inv(K + 1e-12 * np.eye(len(K)))
    sds = np.sqrt(np.diag(K)).reshape(count, n)

    def at(f):
        if likelihood == "softmax":
            return softmax_derivatives(f, y)
        value, slope, blocks = normal_derivatives(f, y, THETA[2])
        for i in range(n):
            d = np.diag(sds[:, i])
            values, vectors = np.linalg.eigh(d @ blocks[:, :, i] @ d)
            whole = (vectors * np.maximum(values, 0)) @ vectors.T
            blocks[:, :, i] = np.linalg.solve(d, whole) @ np.linalg.inv(d)
        return value, slope, blocks

    def height(f):
        gap = f.ravel() - m
        return at(f)[0] - 0.5 * gap @ inverse @ gap

    f = m.reshape(count, n).copy()
    for _ in range(80):
        _, slope, blocks = at(f)
        downhill = slope.ravel() - inverse @ (f.ravel() - m)
        move = np.linalg.solve(inverse + spread_out(blocks), downhill).reshape(count, n)
        length = 1.0
        while height(f + length * move) < height(f) and length > 1e-8:
            length /= 2
        f = f + length * move
    W = spread_out(at(f)[2])
    evidence = height(f) - 0.5 * np.linalg.slogdet(np.eye(len(K)) + K @ W)[1]
    return f, evidence, np.linalg.inv(inverse + W)


@pytest.mark.parametrize(("likelihood", "closed"), [("softmax", True), ("heteroscedastic", False)])
def test_laplace_against_a_dense_twin(likelihood, closed):
    problem, run = programs(likelihood, "laplace", closed=closed)
    found, value, _ = run(THETA)
    sites = found.sites
    mode, evidence, cov = dense_laplace(problem, likelihood)
    at = condition(problem.prior(jnp.asarray(THETA)), sites)
    np.testing.assert_allclose(at.mu, mode, atol=1e-6)
    assert abs(float(value) - evidence) < 1e-7
    count, n = mode.shape
    blocks = np.einsum("aibi->abi", cov.reshape(count, n, count, n))
    np.testing.assert_allclose(at.blocks(), blocks, atol=1e-6)


@pytest.mark.parametrize("likelihood", ["softmax", "heteroscedastic"])
def test_cvi_against_a_dense_twin(likelihood):
    """The bound by dense natural gradients, expectations of Hessians by another rule's nodes."""
    problem, run = programs(likelihood, "cvi")
    m, K = dense_prior(problem)
    y, (count, n) = problem.arrays["y"], problem.prior(jnp.asarray(THETA)).m.shape
    inverse = np.linalg.inv(K + 1e-12 * np.eye(len(K)))
    z, w = np.polynomial.hermite_e.hermegauss(18 if count == 3 else 26)
    grids = np.stack([g.ravel() for g in np.meshgrid(*[z] * count, indexing="ij")], -1)
    weights = np.prod(np.meshgrid(*[w / w.sum()] * count, indexing="ij"), axis=0).ravel()

    def expectations(mu, cov):
        each = cov.reshape(count, n, count, n)
        f = np.stack(
            [mu[:, i] + grids @ np.linalg.cholesky(each[:, i, :, i]).T for i in range(n)], -1
        )  # (nodes, C, n)
        f = np.moveaxis(f, 0, 1).reshape(count, -1)
        ys = np.tile(y, len(weights))
        if likelihood == "softmax":
            _, slope, blocks = softmax_derivatives(f, ys)
            p = slope  # one hot less p
            hot = np.eye(count)[ys].T
            each_value = np.log(np.sum((hot - p) * hot, axis=0))
        else:
            _, slope, blocks = normal_derivatives(f, ys, THETA[2])
            precision = blocks[0, 0]
            each_value = 0.5 * (
                np.log(precision) - np.log(2 * np.pi) - (ys - f[0]) ** 2 * precision
            )
        mean = lambda v: np.einsum("q,...qn->...n", weights, v.reshape(*v.shape[:-1], -1, n))  # noqa: E731
        return mean(each_value), mean(slope), mean(blocks)

    mode, _, cov = dense_laplace(problem, likelihood)
    precision, mu = np.linalg.inv(cov), mode
    for _ in range(60):
        _, g, H = expectations(mu, np.linalg.inv(precision))
        precision = 0.5 * precision + 0.5 * (inverse + spread_out(H))
        slope = g.ravel() - inverse @ (mu.ravel() - m)
        mu = mu + 0.5 * np.linalg.solve(precision, slope).reshape(count, n)
    cov = np.linalg.inv(precision)
    gap = mu.ravel() - m
    log_dets = np.linalg.slogdet(K + 1e-12 * np.eye(len(K)))[1] - np.linalg.slogdet(cov)[1]
    divergence = 0.5 * (gap @ inverse @ gap + np.trace(inverse @ cov) - len(m) + log_dets)
    bound = np.sum(expectations(mu, cov)[0]) - divergence
    found, value, _ = run(THETA)
    assert abs(float(value) - bound) < 1e-6
    at = condition(problem.prior(jnp.asarray(THETA)), found.sites)
    np.testing.assert_allclose(at.mu, mu, atol=1e-5)


@pytest.mark.parametrize("engine", ["laplace", "cvi"])
def test_one_process_is_what_the_engines_for_one_say(engine):
    problem, run = programs("logit", engine)
    one = Problem(Toy(15, "logit", None), problem.arrays, None)
    peer = {"laplace": _gp_laplace, "cvi": _cvi}[engine]
    theta = jnp.asarray(THETA)
    prior = one.prior(theta)
    start = one.start(theta, prior)
    found = jax.jit(lambda: peer.solve(one, theta, prior, start, tolerance=1e-10))()
    want, want_slope = jax.jit(jax.value_and_grad(functools.partial(peer.value, one)))(
        theta, found.sites
    )
    _, ours, slope = run(THETA)
    assert abs(float(ours - want)) < 1e-9
    np.testing.assert_allclose(slope, want_slope, atol=1e-8)


def test_order_of_rows_and_classes_does_not_matter():
    problem, run = programs("softmax", "laplace", closed=True)
    want = float(run(THETA)[1])
    rows = np.random.default_rng(3).permutation(15)
    moved = toy("softmax", closed=True, order=[2, 0, 1])
    arrays = {k: v[rows] for k, v in problem.arrays.items()}
    for closed in ("softmax",):
        other = type(moved)(moved.latent, arrays, closed)

        def again(theta, other=other):
            prior = other.prior(theta)
            start = other.start(theta, prior)
            found = _several_laplace.solve(other, theta, prior, start, tolerance=1e-10)
            return _several_laplace.value(other, theta, found.sites)

        assert abs(float(jax.jit(again)(THETA)) - want) < 1e-8


@pytest.mark.parametrize("engine", [pytest.param("laplace", marks=pytest.mark.slow), "cvi"])
def test_a_noise_that_hardly_varies_is_gaussian_noise(engine):
    problem = toy("heteroscedastic", flat=1e-7)
    module = ENGINES[engine]
    theta = jnp.asarray(THETA)

    def run(theta):
        prior = problem.prior(theta)
        found = _several_laplace.solve(problem, theta, prior, problem.start(theta, prior))
        if engine == "cvi":
            found = module.solve(problem, theta, prior, found.sites)
        loo = summarise(problem, theta, found.sites)["loo"] if engine == "cvi" else None
        return module.value(problem, theta, found.sites), loo

    value, found = jax.jit(run)(theta)
    prior = problem.prior(theta)
    K = np.asarray(prior.K[0]) + np.exp(2 * THETA[2]) * np.eye(15)
    gap = np.asarray(problem.arrays["y"] - prior.m[0])
    exact = -0.5 * (gap @ np.linalg.solve(K, gap) + np.linalg.slogdet(2 * np.pi * K)[1])
    assert abs(float(value) - exact) < 1e-6
    if found is None:
        return
    inverse = np.linalg.inv(K)
    var = 1 / np.diag(inverse)
    loo = -0.5 * np.log(2 * np.pi * var) - 0.5 * (inverse @ gap) ** 2 * var
    np.testing.assert_allclose(found, loo, atol=1e-6)


def test_evidence_against_importance_sampling():
    """A small softmax problem: the truth from 200,000 draws of CVI's normal, widened."""
    problem, run = programs("softmax", "cvi")
    found, bound, _ = run(THETA)
    sites = found.sites
    at = condition(problem.prior(jnp.asarray(THETA)), sites)
    m, K = dense_prior(problem)
    half = np.asarray(at.half).reshape(45, 45)
    cov = 1.15 * half.T @ half
    rng = np.random.default_rng(4)
    tril = np.linalg.cholesky(cov)
    e = rng.normal(size=(200_000, 45))
    f = np.asarray(at.mu).ravel() + e @ tril.T
    root = np.linalg.cholesky(K + 1e-12 * np.eye(45))
    white = np.linalg.solve(root, (f - m).T)
    log_p = -0.5 * np.sum(white**2, 0) - np.sum(np.log(np.diag(root)))
    log_q = -0.5 * np.sum(e**2, 1) - np.sum(np.log(np.diag(tril)))
    cube = f.reshape(-1, 3, 15)
    y = problem.arrays["y"]
    labels = cube[:, y, np.arange(15)] - np.log(np.sum(np.exp(cube), axis=1))
    w = log_p + labels.sum(1) - log_q
    top = w.max()
    truth = top + np.log(np.mean(np.exp(w - top)))
    error = np.std(np.exp(w - top)) / np.mean(np.exp(w - top)) / np.sqrt(len(w))
    assert error < 0.02
    # A bound: below the truth (five standard errors), and not by much on fifteen labels.
    assert truth - 0.2 < bound < truth + 5 * error
    _, run = programs("softmax", "laplace", closed=True)
    assert truth - 0.6 < float(run(THETA)[1]) < truth


def test_both_algebras_agree_on_softmax_sites():
    problem, run = programs("softmax", "laplace", closed=True)
    theta = jnp.asarray(THETA)
    sites = run(THETA)[0].sites
    prior = problem.prior(theta)
    quick = condition(prior, sites)
    slow = condition(prior, Sites(sites.l1, quick.precisions))
    for name in ("alpha", "mu", "square", "half_log_det"):
        np.testing.assert_allclose(getattr(quick, name), getattr(slow, name), atol=1e-8)
    np.testing.assert_allclose(quick.blocks(), slow.blocks(), atol=1e-8)
    np.testing.assert_allclose(quick.shrinkers(), slow.shrinkers(), atol=1e-7)
    y = jnp.asarray(np.random.default_rng(5).normal(size=(3, 15)))
    np.testing.assert_allclose(quick.spread(y), slow.spread(y), atol=1e-8)
    new = type(problem)(problem.latent, {"x": problem.arrays["x"][:4] + 0.1}, None)
    for a, b in zip(
        moments_at(problem, theta, sites, new),
        moments_at(problem, theta, Sites(sites.l1, quick.precisions), new),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-8)
    draws = [np.asarray(c.noise(jax.random.key(0), 20_000)) for c in (quick, slow)]
    for e in draws:
        found = np.cov(e.reshape(20_000, -1).T)
        cov = np.asarray(slow.half).reshape(45, 45)
        cov = cov.T @ cov
        sd = np.sqrt(np.diag(cov))
        # 1035 entries: within five and a half standard errors.
        assert np.all(np.abs(found - cov) < 5.5 * np.sqrt(2 / 20_000) * np.outer(sd, sd))


def test_positive_parts_and_their_derivative():
    rng = np.random.default_rng(6)
    half = rng.normal(size=(3, 3, 5))
    blocks = jnp.asarray(half + np.swapaxes(half, 0, 1))
    scale = jnp.exp(jnp.asarray(rng.normal(size=(3, 5))))
    move = jnp.asarray(np.random.default_rng(7).normal(size=(3, 3, 5)))
    move = move + jnp.swapaxes(move, 0, 1)
    out, slope = jax.jvp(lambda b: positive(b, scale), (blocks,), (move,))
    ends = [positive(blocks + s * move, scale) for s in (1e-6, -1e-6)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, atol=1e-6)
    for i in range(5):
        d = np.diag(np.asarray(scale)[:, i])
        assert np.linalg.eigvalsh(d @ np.asarray(out)[:, :, i] @ d).min() > -1e-10
    # Units do not matter, and what is positive stays as it is (also where eigenvalues repeat).
    units = jnp.exp(jnp.asarray(rng.normal(size=(3, 5))))
    both = units[:, None] * units[None]
    np.testing.assert_allclose(positive(blocks * both, scale / units), out * both, rtol=1e-9)
    same = jnp.asarray(np.eye(3)[:, :, None] * np.ones(5))
    np.testing.assert_allclose(positive(same, jnp.ones((3, 5))), same)
    grad = jax.grad(lambda b: jnp.sum(positive(b, jnp.ones((3, 5)))))(same)
    np.testing.assert_allclose(grad, np.ones((3, 3, 5)), atol=1e-12)


@pytest.mark.parametrize(("count", "room"), [(2, 1e-9), (3, 1e-6), (5, 1e-3)])
def test_expectations_of_softmax_terms(count, room):
    """Against a product of trapezoids (two and three processes) or 262,144 points (five)."""
    m = np.linspace(-1, 1, count)[:, None]
    v = np.eye(count)[:, :, None]

    def fn(f):
        return f[0] - jax.nn.logsumexp(f, axis=0)

    got = float(jax.jit(lambda: rule.mean_term(fn, jnp.asarray(m), jnp.asarray(v))[0])())
    if count < 4:
        t = np.linspace(-9, 9, 91)
        w = np.exp(-0.5 * t**2) * (t[1] - t[0]) / np.sqrt(2 * np.pi)
        grids = np.stack([g.ravel() for g in np.meshgrid(*[t] * count, indexing="ij")])
        weight = functools.reduce(np.multiply.outer, [w] * count).ravel()
        want = weight @ np.asarray(fn(m + grids))
    else:
        from scipy.stats import norm, qmc

        u = qmc.Sobol(count, rng=np.random.default_rng(11)).random_base2(18)
        want = np.mean(np.asarray(fn(m + norm.ppf(u).T)))
    assert abs(got - want) < room


def test_tilted_terms_much_narrower_than_the_normal():
    """Labels' terms add up to one; normal terms of little noise have a closed form."""
    rng = np.random.default_rng(8)
    half = rng.normal(size=(6, 3, 3))
    v = jnp.asarray(np.moveaxis(half @ half.transpose(0, 2, 1) + 0.1 * np.eye(3), 0, -1)) * 4.0
    m = jnp.asarray(rng.normal(size=(3, 6)))
    log_tilted = lambda fn, m, v: tilted.log_mass(fn, tilted.place(fn, m, v))  # noqa: E731
    label = lambda c: log_tilted(lambda f: jax.nn.log_softmax(f, axis=0)[c], m, v)  # noqa: E731
    total = jax.jit(jax.vmap(label))(jnp.arange(3))
    np.testing.assert_allclose(np.sum(np.exp(total), axis=0), 1.0, atol=2e-4)
    y = jnp.asarray(rng.normal(size=6))

    def narrow(f):
        return -0.5 * ((y - f[0]) / 0.01) ** 2 - 0.5 * f[1] ** 2

    got = jax.jit(lambda: log_tilted(narrow, m[:2], v[:2, :2]))()
    noisy = np.moveaxis(np.asarray(v[:2, :2]), -1, 0) + np.diag([1e-4, 1.0])
    gap = np.stack([np.asarray(y - m[0]), -np.asarray(m[1])], -1)
    solved = np.linalg.solve(noisy, gap[..., None])[..., 0]
    want = -0.5 * np.sum(gap * solved, -1) - 0.5 * np.linalg.slogdet(noisy)[1] + np.log(0.01)
    np.testing.assert_allclose(got, want, atol=1e-8)
