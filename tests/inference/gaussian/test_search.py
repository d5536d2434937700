"""The searches for hyperparameters, on fields made by hand; the normal distribution function."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfcx, log_ndtr

from probkit.core._one_kernel import as_one_kernel
from probkit.core._programs import _compile, _has_large_product
from probkit.inference.gaussian import _normal_cdf
from probkit.inference.gaussian._broyden import begin_root, follow, handed_over
from probkit.inference.gaussian._gp_methods import exact_engine, hybrid_engine
from probkit.inference.gaussian._learning import _judged
from probkit.inference.gaussian._quasi_newton import direction_of, no_pairs, with_pair
from probkit.inference.gaussian._search import advance, begin
from probkit.inference.gaussian._starts import another, starts


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def test_search_finds_the_minimum_of_a_valley():
    def fn(x):
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    look = jax.jit(jax.value_and_grad(fn))
    candidates = jnp.asarray([[3.0, 3.0], [-1.2, 1.0]])
    at = started(candidates)
    move = jax.jit(lambda at, v, g: advance(at, v, g, candidates)[0])
    for _ in range(80):
        at = move(at, *look(at.trial))
    np.testing.assert_allclose(at.x, 1.0, atol=1e-6)


def started(candidates):
    return jax.tree.map(jnp.asarray, begin(np.asarray(candidates)))


def root_of(field, start, steps: int):
    at = started(jnp.asarray([start]))
    at, _ = advance(at, jnp.asarray(0.0), field(at.trial), jnp.asarray([start]))
    at, root = handed_over(at), jax.tree.map(jnp.asarray, begin_root(len(start), at.x.dtype))
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


@pytest.mark.parametrize("d", [3, 200])
def test_directions_are_those_of_the_pairs(d: int):
    rng = np.random.default_rng(d)
    root = rng.normal(size=(d, d + 5))
    hessian = root @ root.T / d + np.eye(d)
    memory, pairs = jnp.asarray(no_pairs(d, np.float64)), []
    for _ in range(13):
        s = rng.normal(size=d)
        y = hessian @ s
        pairs.append((s, y))
        memory, learnt = with_pair(memory, jnp.asarray(s), jnp.asarray(y), jnp.asarray(True))
        assert bool(learnt)
        # A pair against which the gradient falls, and one that is not to be used, teach nothing.
        for pair, use in (((s, -y), True), ((y, s), False)):
            memory, learnt = with_pair(memory, *map(jnp.asarray, pair), jnp.asarray(use))
            assert not bool(learnt)
    s, y = pairs[-1]
    inverse = (s @ y) / (y @ y) * np.eye(d)
    for s, y in pairs[-10:]:
        left = np.eye(d) - np.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
    g = rng.normal(size=d)
    np.testing.assert_allclose(direction_of(jnp.asarray(g), memory), -inverse @ g, rtol=1e-9)


def test_directions_without_a_pair_are_steepest_descent():
    for length in (2.0, 0.1):
        g = jnp.full(3, length)
        direction = direction_of(g, jnp.asarray(no_pairs(3, np.float64)))
        np.testing.assert_allclose(direction, -g / max(float(jnp.linalg.norm(g)), 1.0))


def test_many_coordinates():
    def fn(x):
        return jnp.sum(jnp.cosh(x - 0.1 * jnp.arange(150) / 150)) + 0.5 * jnp.sum(x) ** 2

    look = jax.jit(jax.value_and_grad(fn))
    candidates = jnp.ones((1, 150))
    move = jax.jit(lambda at, v, g: advance(at, v, g, candidates)[0])
    at = started(candidates)
    for _ in range(40):
        at = move(at, *look(at.trial))
    np.testing.assert_allclose(jax.grad(fn)(at.x), 0.0, atol=1e-5)


def test_a_flat_direction_is_not_taken_for_an_end():
    """From the steep side of a narrow valley, along which there is much to be gained yet."""

    def fn(x):
        return 0.5 * (300.0 * x[0] ** 2 + 0.3 * x[1] ** 2)

    look = jax.jit(jax.value_and_grad(fn))
    candidates = jnp.asarray([[0.05, 0.6]])
    move = jax.jit(lambda at, v, g: advance(at, v, g, candidates)[0])
    at = started(candidates)
    while float(at.gain) > 1e-4:
        at = move(at, *look(at.trial))
    assert float(fn(at.x)) < 1e-3 and int(at.looks) < 20


def test_starts_are_spread():
    from scipy.stats import qmc

    points = np.asarray(starts(np.uint32(1), 64, 3, np.dtype(float)))
    assert points.shape == (64, 3) and np.all(np.abs(points) <= 2.0)
    apart = [np.random.default_rng(s).uniform(size=(64, 3)) for s in range(20)]
    assert qmc.discrepancy(points / 4 + 0.5) < min(qmc.discrepancy(a) for a in apart)
    other = np.asarray(starts(np.uint32(20), 64, 3, np.dtype(float)))
    assert not np.allclose(points, other)


def test_points_go_on_where_no_start_has_a_value():
    points = starts(np.uint32(3), 7, 2, np.dtype(float))
    for t in range(3):
        np.testing.assert_allclose(
            another(jnp.asarray(points[3]), jnp.int32(t)), points[4 + t], atol=1e-7
        )

    def fn(x):
        return jnp.where(x[0] > 1.9, jnp.sum((x - 1.95) ** 2), jnp.nan)

    look = jax.jit(jax.value_and_grad(fn))
    candidates = jnp.asarray([[-1.0, 0.3], [0.5, 0.2]])
    move = jax.jit(lambda at, v, g: advance(at, v, g, candidates)[0])
    at = started(candidates)
    for _ in range(45):
        at = move(at, *look(at.trial))
    np.testing.assert_allclose(at.x, 1.95, atol=1e-5)


@pytest.mark.parametrize("engine", [exact_engine(), hybrid_engine(1.0)], ids=["exact", "hybrid"])
def test_what_follows_a_look_is_one_kernel_beside_a_large_product(engine):
    """The library of products must find none inside the kernel, where it cannot stand."""
    candidates = np.linspace(-1.0, 1.0, 400).reshape(2, 200)
    root = begin_root(200, candidates.dtype) if engine.root else None
    scouting = np.asarray(engine.scout is not None)

    def program(judge, at, root, large, candidates, *rest):
        value = jnp.sum(large @ large)
        return judge(at, root, value, candidates[0], candidates, *rest)

    judge = functools.partial(_judged, engine)
    args = (begin(candidates), root, np.eye(200), candidates, scouting, np.asarray(1e-5))
    plain = jax.jit(functools.partial(program, judge))(*args)
    lowered = jax.jit(functools.partial(program, as_one_kernel(judge))).lower(*args)
    assert _has_large_product(lowered.as_text())
    found = _compile(lowered, lowered.as_text(), {})(*args)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
