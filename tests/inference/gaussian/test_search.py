"""The searches for hyperparameters, on fields made by hand; the normal distribution function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfcx, log_ndtr

from probkit.inference.gaussian import _normal_cdf
from probkit.inference.gaussian._broyden import begin_root, follow, handed_over
from probkit.inference.gaussian._lbfgs import advance, begin


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def test_search_finds_the_minimum_of_a_valley():
    def fn(x):
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    look = jax.jit(jax.value_and_grad(fn))
    candidates = jnp.asarray([[3.0, 3.0], [-1.2, 1.0]])
    at = begin(candidates)
    move = jax.jit(lambda at, v, g: advance(at, v, g, candidates)[0])
    for _ in range(80):
        at = move(at, *look(at.trial))
    np.testing.assert_allclose(at.x, 1.0, atol=1e-6)


def root_of(field, start, steps: int):
    at = begin(jnp.asarray([start]))
    at, _ = advance(at, jnp.asarray(0.0), field(at.trial), jnp.asarray([start]))
    at, root = handed_over(at), begin_root(len(start), at.x.dtype)
    move = jax.jit(lambda at, root: follow(at, root, jnp.asarray(0.0), field(at.trial))[:2])
    for _ in range(steps):
        at, root = move(at, root)
    return at


def test_root_of_a_field_without_a_potential():
    turn = jnp.asarray([[2.0, 0.8, 0.0], [-0.5, 1.0, 0.3], [0.1, 0.0, 3.0]])
    goal = jnp.asarray([0.3, -0.2, 1.0])

    def field(x):
        return turn @ (x - goal) + 0.2 * jnp.sin(x - goal) ** 2

    at = root_of(field, [1.5, 1.0, -0.5], 25)
    np.testing.assert_allclose(at.x, goal, atol=1e-6)
    assert float(at.gain) < 1e-10


def test_a_field_without_a_root_is_left_where_it_is_least():
    at = root_of(lambda x: jnp.stack([x[0] ** 2 + 0.1, x[1]]), [1.0, 1.0], 40)
    assert float(jnp.max(jnp.abs(at.x))) < 0.5 and int(at.refused) >= 4


def test_quick_normal_distribution_function():
    z = np.concatenate([np.linspace(-200, 8, 4001), np.linspace(-1, 1, 401)])
    value = np.asarray(_normal_cdf.log_ndtr(jnp.asarray(z)))
    np.testing.assert_allclose(value, log_ndtr(z), rtol=1e-10, atol=1e-15)
    below = z[z <= 0]
    ratio = np.asarray(jax.vmap(jax.grad(_normal_cdf.log_ndtr))(jnp.asarray(below)))
    np.testing.assert_allclose(ratio, np.sqrt(2 / np.pi) / erfcx(-below / np.sqrt(2)), rtol=1e-9)
    with jax.enable_x64(False):
        single = np.asarray(_normal_cdf.log_ndtr(jnp.asarray(z, jnp.float32)))
    np.testing.assert_allclose(single, log_ndtr(z), rtol=3e-6, atol=1e-6)
