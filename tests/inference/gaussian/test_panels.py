"""Terms with kinks: they are told from smooth ones, integrated to rounding, and fits converge."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

import probkit as pk
from probkit import dist
from probkit.core import Status
from probkit.inference.gaussian._panels import panel_rule
from probkit.inference.gaussian._tilted import expected, tilted

QUICK = ("huber", "bent link", "several")
PLACES = [-1.0, -0.9, 0.0, 0.4, 2.0]
SDS = [0.1, 1.0, 10.0, 100.0]
KINKED = {
    "absolute": (lambda f: -jnp.abs(f - 0.3), [0.3]),
    "quantile": (lambda f: -jnp.where(f > 0.3, 0.9, -0.1) * (f - 0.3), [0.3]),
    "huber": (
        lambda f: -jnp.where(jnp.abs(f) < 1.5, 0.5 * f**2, 1.5 * jnp.abs(f) - 1.125),
        [-1.5, 1.5],
    ),
    "bent link": (lambda f: -jnp.abs(jnp.maximum(f, -1.0) ** 2 - 2.0), [-1.0, 2.0**0.5]),
    "several": (lambda f: -sum(jnp.abs(f - y) for y in PLACES), PLACES),
}


def pieces(kinks: list[float], reach: float, m: float, s: float) -> tuple[np.ndarray, np.ndarray]:
    """A dense rule whose panels shrink towards the kinks: nodes in sds, and their weights."""
    x, w = np.polynomial.legendre.leggauss(20)
    away = np.concatenate([[0.0], np.geomspace(1e-6, 2 * reach, 50)])
    places = [(k - m) / s for k in kinks]
    edges = [np.linspace(-reach, reach, 41)]
    edges += [k + sign * away for k in places for sign in (-1, 1)]
    cuts = np.sort(np.clip(np.concatenate(edges), -reach, reach))
    half = 0.5 * np.diff(cuts)[:, None]
    return (cuts[:-1, None] + half + half * x).ravel(), (half * w).ravel()


@pytest.mark.parametrize(
    "name",
    [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in KINKED],
)
def test_moments_of_terms_with_kinks(name: str) -> None:
    fn, kinks = KINKED[name]
    m = np.array([[0.0, 0.3, -2.0, 7.0, 3.0 * s] for s in SDS]).ravel()
    s = np.repeat(SDS, 5)

    def both(m, v, f):
        count = 5 if name == "several" else 1
        return (
            expected(fn, m, v, panel_rule(fn, m, v, count)),
            tilted(fn, m, v, panel_rule(fn, m, v, count, 0.7), 0.7),
            jax.jvp(fn, (f,), (jnp.ones_like(f),)),
        )

    rules = [pieces(kinks, 40.0, *at) for at in zip(m, s, strict=True)]
    z, w = (np.stack(a) for a in zip(*rules, strict=True))
    with jax.enable_x64(True):
        args = (m, s**2, m[:, None] + s[:, None] * z)
        near, far, (value, slope) = jax.tree.map(np.asarray, jax.jit(both)(*args))
    units = np.stack([np.ones_like(s), s, s**2])
    w = w * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    truth = [np.sum(w * g, 1) for g in (value, s[:, None] * slope, s[:, None] * slope * z)]
    room = 1e-8 * (1 + np.max(np.abs(truth), axis=0))
    assert np.all(np.abs(near * units - truth) < room)
    top = np.max(0.7 * value, axis=1)
    w = w * np.exp(0.7 * value - top[:, None])
    mean = np.sum(w * z, 1) / np.sum(w, 1)
    second = np.sum(w * (z - mean[:, None]) ** 2, 1) / np.sum(w, 1)
    truth = [top + np.log(np.sum(w, 1)), mean, second - 1.0]
    np.testing.assert_allclose(far * units, truth, atol=1e-8)


def test_absolute_errors_have_a_closed_form() -> None:
    """E|f - y| = 2 s phi(d) + (m - y) (2 Phi(d) - 1), d = (m - y) / s, for widths far apart."""
    s = np.geomspace(0.01, 1e4, 25)
    m, y, width = 1.7 * np.sqrt(s), 0.3, 0.1

    def fn(f):
        return -jnp.abs(f - y) / width - jnp.log(2 * width)

    with jax.enable_x64(True):
        run = jax.jit(lambda m, v: expected(fn, m, v, panel_rule(fn, m, v, 1)))
        ours = jax.tree.map(np.asarray, run(m, s**2))
    d = (m - y) / s
    density, share = np.exp(-0.5 * d**2) / np.sqrt(2 * np.pi), erf(d / np.sqrt(2))
    value = -(2 * s * density + (m - y) * share) / width - np.log(2 * width)
    np.testing.assert_allclose(ours.value, value, rtol=1e-9)
    np.testing.assert_allclose(ours.d1, -share / width, atol=1e-9 / width)
    np.testing.assert_allclose(ours.d2, -2 * density / s / width, rtol=1e-8, atol=1e-12)


# -- which terms have kinks ------------------------------------------------------------------------

X = np.linspace(-3, 3, 30)
F = np.sin(X)
COUNTS = np.arange(30) % 5


def huber(width: float):
    def loss(f, y):
        r = jnp.abs(y - f) / width
        return -jnp.where(r < 1.345, 0.5 * r**2, 1.345 * r - 0.9045)

    return pk.factor(loss, dims="row", likelihood=True)


def row(fn):
    return pk.rv(fn, dims="row")


LIKELIHOODS = {
    "laplace": (1, row(lambda f: dist.Laplace(f, 0.4)), F),
    "laplace far away": (1, row(lambda f: dist.Laplace(f, 0.4)), F + 1e5),
    "quantile": (1, row(lambda f: dist.AsymmetricLaplaceQuantile(f, 0.4, 0.9)), F),
    "huber": (1, huber(1.0), F),
    "huber, narrow": (1, huber(0.01), F + 1e3),
    "bent": (1, row(lambda f: dist.Poisson(jax.nn.relu(f) + 0.1)), COUNTS),
    "bent exp": (1, row(lambda f: dist.Laplace(jnp.exp(f), 0.4)), np.exp(F)),
    "poisson": (0, row(lambda f: dist.Poisson(jnp.exp(f))), COUNTS),
    "student": (0, row(lambda f: dist.StudentT(4.0, f, 0.3)), F + 1e3),
    "logit": (0, row(lambda f: dist.Bernoulli(logits=f)), F > 0),
    "clipped by NumPyro": (0, row(lambda f: dist.Bernoulli(probs=jax.nn.sigmoid(f))), F > 0),
    "ordinal": (0, row(lambda f: dist.OrderedLogistic(f, jnp.array([-0.7, 0.6]))), COUNTS % 3),
    "periodic": (0, row(lambda f: dist.VonMises(f, 2.0)), F),
}


def model(node, **more) -> pk.Model:
    name = "loss" if isinstance(node, type(huber(1.0))) else "y"
    return pk.Model(f=pk.gp(pk.kernels.Matern32(1.0), at="x"), **{name: node}, **more)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_kinks_are_found_when_data_are_bound(name: str) -> None:
    kinks, node, y = LIKELIHOODS[name]
    bound = model(node).bind({"x": X, "y": y * 1 if y.dtype == bool else y})
    assert bound.gaussian_latent.kinks(bound.arrays) == kinks


def test_several_observations_of_an_entry_are_counted() -> None:
    node = pk.rv(lambda f, place: dist.Laplace(f[place], 0.4), dims="seen")
    place = np.array([0, 0, 0, 1, 2, 2, 4])
    m = pk.Model(f=pk.gp(pk.kernels.RBF(1.0), at="x"), y=node)
    bound = m.bind(
        {"x": X[:5], "place": place, "y": np.arange(7.0)},
        dims={"x": "row", "place": "seen", "y": "seen"},
    )
    assert bound.gaussian_latent.kinks(bound.arrays) == 4  # three, rounded up


# -- fits -----------------------------------------------------------------------------------------

RNG = np.random.default_rng(1)
POINTS = np.sort(RNG.uniform(-3, 3, 25))
NOISY = np.sin(1.5 * POINTS) + 0.3 * RNG.laplace(size=25)


@pytest.mark.parametrize(
    "method", [pk.CVI, pk.EP, pytest.param(pk.HybridEP, marks=pytest.mark.slow)]
)
def test_fits_with_absolute_errors_converge(method) -> None:
    fit = pk.fit(
        model(row(lambda f, noise: dist.Laplace(f, noise)), noise=dist.HalfNormal(1.0)),
        {"x": POINTS, "y": NOISY},
        method=method(starts=1),
        progress=False,
    )
    assert fit.status is Status.OK and fit.check().ok
    assert fit.approximation.stats["site_residual"] < 1e-5


def test_the_bound_is_the_closed_forms_and_has_its_derivatives() -> None:
    """CVI's ELBO for absolute errors, maximised by SciPy over means and a Cholesky factor."""
    from scipy.optimize import minimize

    from probkit.inference.gaussian import _cvi
    from probkit.inference.gaussian._problem import Problem

    x, y = POINTS[::3], NOISY[::3]
    node = row(lambda f, noise: dist.Laplace(f, noise))
    target = model(node, noise=dist.LogNormal(0.0, 1.0)).bind({"x": x, "y": y})
    problem = Problem.of(target)

    def bound(theta):
        prior = problem.prior(theta)
        found = _cvi.solve(problem, theta, prior, problem.start(theta, prior))
        sites = jax.lax.stop_gradient(found.sites)
        return _cvi.value(problem, theta, sites), found.reason

    with jax.enable_x64(True):
        look = jax.jit(jax.value_and_grad(bound, has_aux=True))
        points = [np.array([a]) for a in (-0.7, -0.7 + 1e-3, -0.7 - 1e-3)]
        (value, reason), slope = jax.tree.map(np.asarray, look(points[0]))
        ahead, behind = (float(look(p)[0][0]) for p in points[1:])
        K = np.asarray(problem.prior(jnp.asarray(points[0])).K)
    assert reason == 0
    assert abs((ahead - behind) / 2e-3 - slope[0]) < 1e-5

    n, b = len(x), float(np.exp(-0.7))
    lower = np.tril_indices(n)

    def closed(flat):
        m, root = flat[:n], np.zeros((n, n))
        root[lower] = flat[n:]
        S = root @ root.T
        s = np.sqrt(np.diag(S))
        d = (m - y) / s
        mean = 2 * s * np.exp(-0.5 * d**2) / np.sqrt(2 * np.pi) + (m - y) * erf(d / np.sqrt(2))
        fit = np.sum(-mean / b - np.log(2 * b))
        inner = np.trace(np.linalg.solve(K, S)) + m @ np.linalg.solve(K, m) - n
        logs = np.linalg.slogdet(K)[1] - 2 * np.sum(np.log(np.abs(np.diag(root)) + 1e-300))
        return 0.5 * (inner + logs) - fit

    start = np.concatenate([np.zeros(n), 0.3 * np.eye(n)[lower]])
    best = minimize(closed, start, method="BFGS", options={"gtol": 1e-6, "maxiter": 2000})
    assert abs(-best.fun - float(value)) < 1e-6
