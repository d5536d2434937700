"""EP and the hybrid for several processes: dense twins, closed forms, one process, the truth."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from probkit.inference.gaussian import _ep, _several_cvi, _several_ep
from probkit.inference.gaussian import _several_tilted as tilted
from probkit.inference.gaussian._conditioning import Sites
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._several_algebra import condition_blocks, rooted
from probkit.inference.gaussian._several_cavities import cavities, proper
from probkit.inference.gaussian._several_posterior import summarise
from tests.inference.gaussian import twins
from tests.inference.gaussian.several_toy import (
    MIXED,
    MIXED_SDS,
    THETA,
    dense_prior,
    softmax_derivatives,
    toy,
)
from tests.inference.gaussian.toy import Toy

ROWS = {"softmax": 6, "heteroscedastic": 8, "mixed": 8, "logit": 8}
#: Two of the three classes have the same prior; so have both processes with labels of their own.
ORDERS = {"softmax": (0, 0, 1), "logit": (0, 0)}
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def problem_for(likelihood: str, count: int = 1):
    flat = 0.3 if likelihood == "heteroscedastic" else 1.0
    order = ORDERS.get(likelihood)
    return toy(likelihood, ROWS[likelihood], flat=flat, order=order, count=count)


@functools.cache
def programs(likelihood: str, count: int = 1, power: float = 1.0):
    """A problem, and a compiled function of theta, data and a start: found, value, slope, mu, V."""
    problem = problem_for(likelihood, count)

    def run(theta, arrays, start):
        own = type(problem)(problem.latent, arrays, None)
        prior = own.prior(theta)
        found = _several_ep.solve(own, theta, prior, start, power=power, tolerance=1e-10)
        value = functools.partial(_several_ep.value, own, power=power)
        value, slope = jax.value_and_grad(value)(theta, found.sites)
        at = condition_blocks(prior, rooted(prior)[0], found.sites)
        return found, value, slope, at.mu, at.blocks()

    theta = jnp.asarray(THETA)
    compiled, flat = jax.jit(run), problem.start(theta, problem.prior(theta))
    return problem, lambda theta, arrays, start=flat: compiled(theta, arrays, start)


def solved(*case):
    problem, run = programs(*case)
    return problem, run(THETA, problem.arrays)


# -- against a slow twin --------------------------------------------------------------------------


@pytest.mark.parametrize(("likelihood", "nodes"), [("softmax", 41), ("heteroscedastic", 301)])
def test_against_a_dense_twin(likelihood, nodes):
    problem, (found, value, _, mu, v) = solved(likelihood)
    m, K = dense_prior(problem)
    y = problem.arrays["y"]

    def logs(f, i):
        if likelihood == "softmax":
            return f[:, y[i]] - logsumexp(f, axis=1)
        log_sd = f[:, 1] + THETA[2]
        return -0.5 * ((y[i] - f[:, 0]) * np.exp(-log_sd)) ** 2 - log_sd - 0.5 * np.log(2 * np.pi)

    count = len(problem.latent.names)
    slow, l1, l2 = twins.several_ep(K, m, logs, count, nodes)
    assert int(found.reason) == 0
    assert abs(float(value) - slow.log_evidence) < 1e-7
    np.testing.assert_allclose(np.ravel(mu), slow.mean, atol=1e-6)
    n = ROWS[likelihood]
    each = np.einsum("aibi->abi", slow.cov.reshape(count, n, count, n))
    np.testing.assert_allclose(v, each, atol=1e-6)
    np.testing.assert_allclose(found.sites.l1.T, l1, atol=1e-5)
    np.testing.assert_allclose(np.moveaxis(found.sites.l2, -1, 0), l2, atol=1e-5)
    least = np.linalg.eigvalsh(l2).min()
    # Labels' terms are log-concave; blocks of a mean with its log sd need not be.
    assert least > -1e-9 if likelihood == "softmax" else least < -0.1


@pytest.mark.parametrize("likelihood", ["softmax", "heteroscedastic"])
def test_gradients_are_those_of_finite_differences(likelihood):
    problem, run = programs(likelihood)
    slope = run(THETA, problem.arrays)[2]
    for i in range(3):
        step = 1e-4 * np.eye(3)[i]
        ends = [float(run(t, problem.arrays)[1]) for t in (THETA + step, THETA - step)]
        assert abs((ends[0] - ends[1]) / 2e-4 - float(slope[i])) < 1e-6


# -- closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "power"),
    [
        (2, 1.0),
        pytest.param(2, 0.4, marks=slow),
        pytest.param(3, 1.0, marks=slow),
        pytest.param(4, 1.0, marks=slow),
    ],
)
def test_normal_terms_that_couple_rows_are_exact(count, power):
    problem, (found, value, slope, _, _) = solved("mixed", count, power)
    n, mix = ROWS["mixed"], MIXED[:count, :count]

    def exact(theta, rows):
        prior = problem.prior(theta)
        cov = jnp.einsum("ac,cij,bc->aibj", mix, prior.K[:, :rows, :rows], mix)
        noise = jnp.repeat(jnp.asarray(MIXED_SDS[:count]), rows) * jnp.exp(theta[2])
        cov = cov.reshape(count * rows, -1) + jnp.diag(noise**2)
        gap = (problem.arrays["y"] - mix @ prior.m)[:, :rows].ravel()
        _, log_det = jnp.linalg.slogdet(2 * jnp.pi * cov)
        return -0.5 * (gap @ jnp.linalg.solve(cov, gap) + log_det)

    want, want_slope = jax.value_and_grad(exact)(jnp.asarray(THETA), n)
    assert int(found.reason) == 0 and abs(float(value - want)) < 1e-8
    np.testing.assert_allclose(slope, want_slope, atol=1e-7)
    # One site is what the outcomes of a row say.
    weights = (MIXED_SDS[:count] * np.exp(THETA[2])) ** -2.0
    block = np.einsum("a,ac,ad->cd", weights, mix, mix)
    np.testing.assert_allclose(found.sites.l2, block[:, :, None] * np.ones(n), atol=1e-6)
    if power != 1.0:
        return
    # The last row's density given the others.
    loo = jax.jit(lambda s: summarise(problem, jnp.asarray(THETA), s)["loo"])(found.sites)
    assert abs(float(loo[-1] - (want - exact(jnp.asarray(THETA), n - 1)))) < 1e-8


@slow
def test_processes_that_share_no_term_are_engines_for_one():
    """Two processes with a label each: the sum of two evidences, and the sites of both."""
    problem, (found, value, slope, _, _) = solved("logit", 2)
    theta = jnp.asarray(THETA)
    one = Toy(ROWS["logit"], "logit", None)

    def single(y):
        own = Problem(one, {"x": problem.arrays["x"], "y": y}, None)
        prior = own.prior(theta)
        sites = _ep.solve(own, theta, prior, own.start(theta, prior), tolerance=1e-10).sites
        value, slope = jax.value_and_grad(functools.partial(_ep.value, own))(theta, sites)
        return sites, value, slope

    sites, values, slopes = jax.jit(jax.vmap(single))(jnp.asarray(problem.arrays["y"]))
    assert abs(float(value - jnp.sum(values))) < 1e-8
    np.testing.assert_allclose(slope, jnp.sum(slopes, axis=0), atol=1e-7)
    np.testing.assert_allclose(found.sites.l1, sites.l1, atol=1e-6)
    own = jnp.einsum("aan->an", found.sites.l2)
    np.testing.assert_allclose(own, sites.l2, atol=1e-6)
    np.testing.assert_allclose(found.sites.l2[0, 1], 0.0, atol=1e-6)


def test_order_of_rows_and_classes_does_not_matter():
    problem, run = programs("softmax")
    want = run(THETA, problem.arrays)
    rows = np.random.default_rng(3).permutation(ROWS["softmax"])
    moved = run(THETA, {k: v[rows] for k, v in problem.arrays.items()})
    assert abs(float(moved[1] - want[1])) < 1e-9
    np.testing.assert_allclose(moved[0].sites.l1, want[0].sites.l1[:, rows], atol=1e-7)
    # The first two classes have the same prior.
    labels = np.array([1, 0, 2])[problem.arrays["y"]]
    turned = run(THETA, {**problem.arrays, "y": labels})
    order = np.array([1, 0, 2])
    assert abs(float(turned[1] - want[1])) < 1e-6
    np.testing.assert_allclose(turned[2], want[2], atol=1e-6)
    blocks = np.asarray(want[0].sites.l2)[np.ix_(order, order)]
    np.testing.assert_allclose(turned[0].sites.l2, blocks, atol=1e-5)


# -- the truth ------------------------------------------------------------------------------------


def test_evidence_of_classes_against_importance_sampling():
    """The truth from 120,000 draws of EP's normal, a little wider."""
    problem, (found, value, _, _, _) = solved("softmax")
    prior = problem.prior(jnp.asarray(THETA))
    at = condition_blocks(prior, rooted(prior)[0], found.sites)
    m, K = dense_prior(problem)
    n, y = ROWS["softmax"], problem.arrays["y"]
    half = np.asarray(at.half).reshape(3 * n, 3 * n)
    tril = np.linalg.cholesky(1.1 * half.T @ half)
    e = np.random.default_rng(4).normal(size=(120_000, 3 * n))
    f = np.asarray(at.mu).ravel() + e @ tril.T
    root = np.linalg.cholesky(K + 1e-12 * np.eye(3 * n))
    white = np.linalg.solve(root, (f - m).T)
    log_p = -0.5 * np.sum(white**2, axis=0) - np.sum(np.log(np.diag(root)))
    log_q = -0.5 * np.sum(e**2, axis=1) - np.sum(np.log(np.diag(tril)))
    cube = f.reshape(-1, 3, n)
    logs = cube[:, y, np.arange(n)] - logsumexp(cube, axis=1)
    w = log_p + logs.sum(1) - log_q
    share = np.exp(w - logsumexp(w))
    truth, error = logsumexp(w) - np.log(len(w)), np.sqrt(np.sum(share**2) - 1.0 / len(w))
    assert error < 2e-3
    # EP's own error is a hundredth of a nat; five standard errors of the truth beside it.
    assert abs(float(value) - truth) < 0.015 + 5 * error
    mean = share @ f
    sd = np.sqrt(share @ (f - mean) ** 2)
    room = 0.02 + 5 * error
    assert np.all(np.abs(np.asarray(at.mu).ravel() - mean) < room * sd)
    assert np.all(np.abs(np.sqrt(np.sum(half**2, axis=0)) / sd - 1.0) < room)


# -- the hybrid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [pytest.param("softmax", marks=slow), "heteroscedastic"])
def test_the_hybrid_is_the_energy_at_sites_of_vi(likelihood):
    """Its slope is that at frozen sites; at EP's own sites both agree."""
    problem, (ep, ep_value, ep_slope, _, _) = solved(likelihood)

    def run(theta, start):
        prior = problem.prior(theta)
        return _several_cvi.solve(problem, theta, prior, start, tolerance=1e-9, allowed=proper)

    sites = jax.jit(run)(jnp.asarray(THETA), ep.sites).sites
    energy = jax.jit(jax.value_and_grad(lambda t, s: _several_ep.value(problem, t, s, exact=False)))
    value, slope = energy(THETA, sites)
    assert 1e-6 < abs(float(value - ep_value)) < 0.3
    for i in range(3):
        step = 1e-4 * np.eye(3)[i]
        ends = [float(energy(t, sites)[0]) for t in (THETA + step, THETA - step)]
        assert abs((ends[0] - ends[1]) / 2e-4 - float(slope[i])) < 1e-6
    value, slope = energy(THETA, ep.sites)
    assert abs(float(value - ep_value)) < 1e-10
    np.testing.assert_allclose(slope, ep_slope, atol=1e-7)


# -- its parts ------------------------------------------------------------------------------------


def test_cavities_put_a_row_s_site_back():
    problem, (found, *_) = solved("heteroscedastic")
    prior = problem.prior(jnp.asarray(THETA))
    at = condition_blocks(prior, rooted(prior)[0], found.sites)
    power, l1, l2 = 0.3, np.asarray(found.sites.l1), np.asarray(found.sites.l2)
    out = jax.jit(lambda l1: cavities(at, l1, power))(l1)
    means, covs = np.asarray(out.mean), np.asarray(out.cov)
    mu, v = np.asarray(at.mu), np.asarray(at.blocks())
    for i in range(ROWS["heteroscedastic"]):
        back = np.linalg.inv(np.linalg.inv(covs[:, :, i]) + power * l2[:, :, i])
        np.testing.assert_allclose(back, v[:, :, i], rtol=1e-8)
        mean = back @ (np.linalg.solve(covs[:, :, i], means[:, i]) + power * l1[:, i])
        np.testing.assert_allclose(mean, mu[:, i], atol=1e-8)
        log_det = np.linalg.slogdet(back)[1] - np.linalg.slogdet(covs[:, :, i])[1]
        np.testing.assert_allclose(out.log_det[i], log_det, atol=1e-8)


def test_blocks_without_proper_cavities_lose_their_negative_part():
    """One row's curvature is paid for by another's: without that one it is no distribution."""
    problem = problem_for("heteroscedastic")
    prior = problem.prior(jnp.asarray(THETA))
    roots, n = rooted(prior)[0], ROWS["heteroscedastic"]
    close = np.argsort(np.sum((problem.arrays["x"] - problem.arrays["x"][0]) ** 2, axis=1))[1]
    v = np.asarray(prior.K)[0, 0, 0]
    blocks = np.zeros((2, 2, n))
    blocks[0, 0, 0], blocks[0, 0, close] = 500.0 / v, -1.5 / v
    check = jax.jit(lambda b: proper(prior, roots, b))
    np.testing.assert_allclose(check(blocks), np.maximum(blocks, 0.0), atol=1e-9)
    blocks[0, 0, close] = -0.3 / v
    np.testing.assert_array_equal(check(blocks), blocks)


def test_moments_where_one_function_is_the_other_s_scale():
    """A normal outcome with a log sd of its own, by one dimension in closed form and a fine grid.

    The order of the two functions does not matter; a product's nodes are wrong by a tenth here.
    """
    y, m = np.array([0.0, 1.0, 3.0]), np.array([0.0, -1.0])
    v = np.array([[1.0, 0.6], [0.6, 4.0]])
    g = np.linspace(-12, 12, 40_001) * 2.0 + m[1]
    slope = v[0, 1] / v[1, 1]
    mean = m[0] + slope * (g - m[1])
    var = v[0, 0] - slope * v[0, 1]
    noisy = var + np.exp(2 * g)
    for turn in ([0, 1], [1, 0]):

        def term(f, turn=turn):
            f = f[jnp.asarray(turn)]
            return -0.5 * ((y - f[0]) * jnp.exp(-f[1])) ** 2 - f[1] - 0.5 * np.log(2 * np.pi)

        means = jnp.asarray(m[turn])[:, None] * jnp.ones(3)
        covs = jnp.asarray(v[np.ix_(turn, turn)])[:, :, None] * jnp.ones(3)
        run = jax.jit(lambda m, v, term=term: tilted.weigh(term, tilted.place(term, m, v)))
        got = run(means, covs)
        for i in range(3):
            logs = -0.5 * ((y[i] - mean) ** 2 / noisy + np.log(2 * np.pi * noisy))
            logs += -0.5 * (g - m[1]) ** 2 / v[1, 1] + np.log((g[1] - g[0]) / 2.0)
            logs -= 0.5 * np.log(2 * np.pi)
            share = np.exp(logs - logsumexp(logs))
            inner = mean + var / noisy * (y[i] - mean)
            first = np.array([share @ inner, share @ g])
            second = np.array(
                [
                    [share @ (inner**2 + var - var**2 / noisy), share @ (inner * g)],
                    [share @ (inner * g), share @ g**2],
                ]
            ) - np.outer(first, first)
            root = np.asarray(got.root[i])
            assert abs(float(got.log_z[i]) - logsumexp(logs)) < 1e-6
            ours = np.asarray(means)[:, i] + root @ np.asarray(got.mean[i])
            np.testing.assert_allclose(ours, first[turn], atol=1e-6)
            cov = root @ np.asarray(got.cov[i]) @ root.T
            np.testing.assert_allclose(cov, second[np.ix_(turn, turn)], atol=1e-5)


@slow
def test_softmax_terms_see_contrasts_only():
    """Their moments in C - 1 dimensions are those in C."""
    problem = problem_for("softmax")
    assert problem.latent.softmax(problem.arrays)
    rng = np.random.default_rng(8)
    half = rng.normal(size=(6, 3, 3))
    v = np.moveaxis(half @ half.transpose(0, 2, 1) + 0.1 * np.eye(3), 0, -1)
    m, theta = jnp.asarray(rng.normal(size=(3, 6))), jnp.asarray(THETA)
    _, slope, _ = softmax_derivatives(np.asarray(m), problem.arrays["y"])
    assert np.abs(slope.sum(0)).max() < 1e-12

    def both(m, v):
        seen = problem.weigh(theta, problem.place(theta, m, v))
        whole = problem.terms(theta)
        return seen, tilted.matched(tilted.weigh(whole, tilted.place(whole, m, v)))

    for a, b in zip(*jax.jit(both)(m, jnp.asarray(v)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@slow
def test_random_problems_end_or_say_why():
    """Classes and noise that varies, hyperparameters from everywhere: no silent nonsense."""
    for likelihood, scale in (("softmax", 1.5), ("heteroscedastic", 1.0)):
        problem, run = programs(likelihood)
        rng, n, ended = np.random.default_rng(1), ROWS[likelihood], 0
        for _ in range(40):
            x = rng.uniform(-2, 2, size=(n, 2))
            f = np.sin(3 * rng.normal() * x[:, 0]) + rng.normal() * x[:, 1]
            y = f + 0.3 * np.exp(0.5 * x[:, 0]) * rng.normal(size=n)
            if likelihood == "softmax":
                y = np.digitize(y, [-0.7, 0.6])
            found, value, slope, _, _ = run(scale * rng.normal(size=3), {"x": x, "y": y})
            assert np.isfinite(found.residual) and np.isfinite(value)
            assert np.all(np.isfinite(slope)) or int(found.reason) != 0
            ended += float(found.residual) < 1e-4
        assert ended >= 37


def test_sites_that_are_not_proper_are_mended_before_the_search():
    problem, run = programs("heteroscedastic")
    n = ROWS["heteroscedastic"]
    wild = Sites(jnp.zeros((2, n)), -50.0 * jnp.eye(2)[:, :, None] * jnp.ones(n))
    found, want = (run(THETA, problem.arrays, *start)[0] for start in ([wild], []))
    assert int(found.reason) == 0
    np.testing.assert_allclose(found.sites.l2, want.sites.l2, atol=1e-5)
