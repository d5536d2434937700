"""Kernel matrices made by class: what mapping over pairs gives, with its derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from probkit.models import kernels
from probkit.models.kernels._distance import between
from tests.models.test_kernels import KERNELS

RNG = np.random.default_rng(11)
OWN_WAY = ["ChangePoint", "Columns", "Constant", "Deep", "Matern12", "Matern52", "RBF", "White"]


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def mapped(kernel, a, b):
    """The plain way."""
    return jax.vmap(lambda x: jax.vmap(lambda y: kernel(x, y))(b))(a)


@pytest.mark.parametrize("name", OWN_WAY)
def test_matrices_and_their_derivatives_are_those_of_the_pairs(name):
    a, b = jnp.asarray(RNG.normal(size=(7, 3))), jnp.asarray(RNG.normal(size=(5, 3)))
    a = a.at[1].set(b[0])
    weights = jnp.asarray(RNG.normal(size=(7, 5)))

    def total(way, p, q, x, y):
        return jnp.sum(weights * way(KERNELS[name](p, q), x, y))

    # In the inputs too, but where a kernel has a cusp at equal points.
    wanted = (0, 1) if name in ("Matern12", "White") else (0, 1, 2, 3)
    at = (jnp.asarray(0.8), jnp.asarray(1.7), a, b)
    ours, plain = (
        jax.value_and_grad(lambda *z, way=way: total(way, *z), wanted)(*at)
        for way in (kernels.cross_covariance, mapped)
    )
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("d", [1, 3, 16, 37])
def test_a_length_scale_a_coordinate(d):
    a, length = jnp.asarray(RNG.normal(size=(9, d))), jnp.asarray(RNG.uniform(1, 3, size=d))
    weights = jnp.asarray(RNG.normal(size=(9, 9)))

    def total(length, way):
        return jnp.sum(weights * way(kernels.Matern32(length, 2.0), a, a))

    ours = jax.value_and_grad(lambda v: total(v, kernels.cross_covariance))(length)
    plain = jax.value_and_grad(lambda v: total(v, mapped))(length)
    for x, y in zip(ours, plain, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)


def test_distances_of_equal_points_are_zero_far_from_the_origin():
    a = jnp.asarray(1e6 + RNG.normal(size=(6, 5)))
    found = np.asarray(between(a, a))
    assert np.all(np.diag(found) == 0.0) and np.array_equal(found, found.T)
    exact = np.sum((np.asarray(a)[:, None] - np.asarray(a)) ** 2, axis=-1)
    np.testing.assert_allclose(found, exact, rtol=1e-14)


def test_second_derivatives_of_distances():
    a, b = jnp.asarray(RNG.normal(size=(2, 2))), jnp.asarray(RNG.normal(size=(3, 2)))
    hessian = jax.hessian(lambda u: jnp.sum(jnp.exp(-between(u, b))))(a)
    plain = jax.hessian(lambda u: jnp.sum(jnp.exp(-jnp.sum((u[:, None] - b) ** 2, -1))))(a)
    np.testing.assert_allclose(hessian, plain, atol=1e-12)


def test_numbers_as_points_and_kernels_that_return_no_number():
    a = jnp.asarray(RNG.normal(size=6))
    for kernel in (kernels.RBF(0.7), kernels.RBF(0.7) + kernels.Matern12(0.3)):
        np.testing.assert_allclose(
            kernels.cross_covariance(kernel, a, a[:4]), mapped(kernel, a, a[:4]), rtol=1e-12
        )
    wrong = kernels.RBF() + (lambda x, y: x * y * jnp.ones(2))
    with pytest.raises(ValueError, match="expected k\\(x, y\\) to return a number"):
        kernels.cross_covariance(wrong, a, a)
