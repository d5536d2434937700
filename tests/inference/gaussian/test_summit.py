"""The top of a density and its coordinates; derivatives of gradients by differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.inference.gaussian import _marginal
from probkit.inference.gaussian._problem import WALL
from probkit.inference.gaussian._summit import curved, summit

RNG = np.random.default_rng(2)
A = RNG.normal(size=(4, 4))
PRECISION = A @ A.T + np.eye(4)
MEAN = RNG.normal(size=4)

regression = pk.Model(
    log_length=pk.dist.Normal(0.0, 1.0),
    log_noise=pk.dist.Normal(-1.0, 1.0),
    f=pk.gp(lambda log_length: pk.kernels.Matern12(jnp.exp(log_length)), at="x"),
    y=pk.rv(lambda f, log_noise: pk.dist.Normal(f, jnp.exp(log_noise)), dims="row"),
)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def test_a_normal_density_becomes_a_standard_one():
    def log_density(z):
        return -0.5 * (z - MEAN) @ jnp.asarray(PRECISION) @ (z - MEAN)

    candidates = jnp.asarray(RNG.uniform(-2, 2, size=(3, 4)))
    at = jax.jit(lambda c: summit(log_density, c))(candidates)
    assert np.max(np.abs(at.centre - MEAN)) < 0.1  # within the hundredth of a nat asked for
    np.testing.assert_allclose(at.scale @ PRECISION @ at.scale, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(at.log_scale, np.linalg.slogdet(at.scale)[1], atol=1e-10)


def test_flat_directions_and_densities_that_are_nowhere_finite():
    at = summit(lambda z: -0.5 * z[0] ** 2, jnp.ones((1, 2)))
    assert np.all(np.linalg.eigvalsh(np.asarray(at.scale)) < 3.2)
    at = summit(lambda z: jnp.sum(z) * jnp.nan, jnp.ones((2, 3)))
    assert np.array_equal(at.scale, np.eye(3)) and np.array_equal(at.centre, np.zeros(3))


def test_curvature_of_a_gradient_that_is_made_of_constants():
    def cubic(z):
        # As an energy with frozen parts: the derivative is right, that of the derivative is not.
        frozen = jax.lax.stop_gradient(z)
        return jnp.sum(3.0 * frozen**2 * (z - frozen) + frozen**3)

    z = jnp.array([0.5, -1.0, 2.0])
    np.testing.assert_allclose(jax.grad(curved(cubic))(z), 3.0 * z**2)
    np.testing.assert_allclose(jax.hessian(curved(cubic))(z), np.diag(6.0 * z), atol=1e-5)


X = RNG.uniform(-2, 2, size=15)
Y = np.sin(2 * X) + 0.2 * RNG.normal(size=15)


def dense(z):
    """Log evidence plus log prior, the plain way."""
    log_length, log_noise = z
    k = jnp.exp(-jnp.abs(X[:, None] - X) / jnp.exp(log_length))
    k += jnp.exp(2 * log_noise) * jnp.eye(15)
    log_p = -0.5 * Y @ jnp.linalg.solve(k, Y) - 0.5 * jnp.linalg.slogdet(k)[1]
    log_p -= 0.5 * log_length**2 + 0.5 * (log_noise + 1.0) ** 2
    return log_p - 8.5 * np.log(2 * np.pi)


def test_the_marginal_density_its_gradient_and_hessian():
    target = regression.bind({"x": X, "y": Y})
    fn = _marginal.reduced(target, "exact").flat_log_density
    both = jax.jit(lambda z: (*jax.value_and_grad(lambda v: fn(v))(z), jax.hessian(fn)(z)))
    value, slope, bend = both(jnp.array([0.1, -0.8]))
    truth = jax.value_and_grad(dense)(jnp.array([0.1, -0.8]))
    np.testing.assert_allclose(value, truth[0], rtol=1e-11)
    np.testing.assert_allclose(slope, truth[1], rtol=1e-9)
    np.testing.assert_allclose(bend, jax.hessian(dense)(jnp.array([0.1, -0.8])), rtol=1e-4)
    # Noise of nothing: the terms' constants are 1e17, and what is left of them is not lost.
    value, slope, _ = both(jnp.array([0.1, -20.0]))
    beyond = 20.0 - 1.0 - WALL  # (The wall stands around the prior's median, at -1.)
    wall = 0.5 * beyond**2, np.array([0.0, beyond])
    truth = jax.value_and_grad(dense)(jnp.array([0.1, -20.0]))
    np.testing.assert_allclose(value, truth[0] - wall[0], rtol=1e-8)
    np.testing.assert_allclose(slope, truth[1] + wall[1], rtol=1e-4)
