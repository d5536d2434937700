"""One-kernel compilation: the same numbers as the ordinary way, and no aborts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

import probkit as pk
from probkit import dist
from probkit.core import _one_kernel, _programs
from probkit.core._one_kernel import as_one_kernel, fits_one_kernel
from probkit.core._scatter_loops import with_scatters_as_loops


def both(fn, *args):
    plain = jax.jit(fn)(*args)
    marked = jax.jit(lambda *a: as_one_kernel(fn)(*a)).lower(*args)
    kernel = marked.compile(compiler_options=_programs.NO_LIBRARY)
    assert "small_call" in str(kernel.as_text())
    return plain, kernel(*args)


def same(fn, *args):
    plain, kernel = both(fn, *args)
    assert jax.tree.structure(plain) == jax.tree.structure(kernel)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


def test_loops_branches_and_trees():
    def fn(point, n):
        def body(c):
            i, x = c
            return i + 1, jax.lax.cond(x["a"].sum() > 0, lambda y: y * 0.9, jnp.sin, x["a"])

        def step(c):
            i, a = body(c)
            return i, {"a": a, "b": c[1]["b"] + jnp.exp(-a).sum()}

        return jax.lax.while_loop(lambda c: c[0] < n, step, (0, point))

    same(fn, {"a": jnp.arange(3.0), "b": jnp.float32(0)}, 17)


def test_operands_that_nobody_reads_are_no_abort():
    def fn(used, unused, empty, whole, flag):
        return used * 2, whole

    same(fn, jnp.ones(3), jnp.ones((2, 2)), jnp.zeros((0, 4)), jnp.arange(3), jnp.asarray(True))


def test_values_of_the_enclosing_program_become_operands():
    def outer(x, y):
        captured = jnp.cos(y)
        return as_one_kernel(lambda a: a + captured + jnp.arange(2.0))(x)

    x, y = jnp.ones(2), jnp.ones(2)
    np.testing.assert_allclose(jax.jit(outer)(x, y), x + np.cos(1) + np.arange(2), rtol=1e-6)


def test_random_numbers_are_the_same():
    def fn(key):
        a, b = jax.random.split(key)
        return jax.random.normal(a, (5,)), jax.random.uniform(b, (3,))

    same(fn, jax.random.key(3))


@pytest.mark.parametrize("mode", ["drop", "clip", "promise_in_bounds"])
@pytest.mark.parametrize("how", ["add", "set"])
def test_scatters_become_loops(mode, how):
    index = jnp.array([0, 2, 2, 1]) if how == "add" else jnp.array([0, 3, 1, 2])
    if mode != "promise_in_bounds":
        index = index.at[0].set(9)

    def fn(x, rows):
        one = getattr(x.at[index], how)(rows, mode=mode)
        two = getattr(x.at[:, index % 2], how)(1.5, mode=mode, unique_indices=False)
        return one, two if how == "add" else one

    x, rows = jnp.arange(12.0).reshape(4, 3), jnp.arange(12.0).reshape(4, 3) - 3
    same(fn, x, rows)
    looped = with_scatters_as_loops(jax.make_jaxpr(fn)(x, rows))
    assert "scatter" in str(jax.make_jaxpr(fn)(x, rows)) and "scatter" not in str(looped)


def test_gradient_of_groups():
    group = jnp.array([0, 1, 1, 2, 0])

    def fn(a, b):
        return jax.value_and_grad(lambda a, b: jnp.sum((a[group] * b[group, 1]) ** 2), (0, 1))(a, b)

    same(fn, jnp.arange(3.0), jnp.ones((3, 2)))


def test_scatters_inside_a_checkpoint():
    group = jnp.array([0, 1, 1, 2, 0])
    density = jax.checkpoint(lambda a: jnp.sum(jnp.sin(a[group]) ** 2))
    same(lambda a: jax.value_and_grad(density)(a), jnp.arange(3.0))


def fits(fn, *args):
    lowered = jax.jit(fn).lower(*args)
    return fits_one_kernel(lowered, lowered.as_text())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="one kernel is for CPUs")
def test_what_fits():
    x = jnp.ones(4)
    assert fits(lambda x: jnp.sum(jax.scipy.special.gammaln(x)), x)
    assert not fits(jnp.sort, x)
    assert not fits(lambda x: jnp.linalg.cholesky(jnp.diag(x)), x)
    assert not fits(lambda x: jnp.sum(x[:, None] * x), jnp.ones(4096))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="one kernel is for CPUs")
@pytest.mark.parametrize("method", [pk.NUTS, pk.HMC])
def test_draws_are_those_of_the_ordinary_program(method, monkeypatch):
    group, rng = np.repeat(np.arange(3), 4), np.random.default_rng(0)
    model = pk.Model(
        mu=dist.Normal(0, 1),
        a=pk.rv(lambda mu: dist.Normal(mu, 1), dims="group"),
        y=pk.rv(lambda a, group: dist.Normal(a[group], 1)),
    )
    data = {"y": rng.normal(size=12), "group": group}
    how = method(draws=60, warmup=60, chains=2)
    found = []
    for most in (_one_kernel._MOST_BYTES, -1):
        monkeypatch.setattr(_one_kernel, "_MOST_BYTES", most)
        found.append(pk.fit(model, data, method=how, seed=1, progress=False))
    one, ordinary = found
    np.testing.assert_array_equal(one.stats["n_steps"][:, :5], ordinary.stats["n_steps"][:, :5])
    np.testing.assert_allclose(one.values["a"][:, :5], ordinary.values["a"][:, :5], atol=1e-3)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="one kernel is for CPUs")
def test_what_cannot_be_one_kernel_is_compiled_the_ordinary_way(monkeypatch):
    tried = []

    def compile_and_tell(lowered, text, options):
        try:
            made = ordinary(lowered, text, options)
        except jax.errors.JaxRuntimeError:
            tried.append("refused")
            raise
        tried.append("made")
        return made

    monkeypatch.setenv("PROBKIT_CACHE", "off")  # an earlier run's program would not be compiled
    ordinary = _programs._compile
    monkeypatch.setattr(_programs, "fits_one_kernel", lambda *_: True)
    monkeypatch.setattr(_programs, "_compile", compile_and_tell)
    model = pk.Model(x=dist.Normal(jnp.zeros(3), 1), f=pk.factor(lambda x: jnp.sort(x)[0]))
    method = pk.NUTS(draws=20, warmup=20, chains=2)
    assert pk.fit(model, {}, method=method, progress=False).values["x"].shape == (2, 20, 3)
    assert tried[tried.index("refused") + 1] == "made"


def test_an_update_with_a_function_of_its_own_is_not_taken_for_a_set():
    x = np.linspace(0.1, 2.0, 8).astype(np.float32)
    fn = lambda b: b * jnp.asarray(x).at[jnp.array([0, 1])].apply(jnp.exp)  # noqa: E731
    closed = jax.make_jaxpr(fn)(jnp.float32(2.0))
    (found,) = jaxpr_as_fun(with_scatters_as_loops(closed))(jnp.float32(2.0))
    np.testing.assert_allclose(found, fn(jnp.float32(2.0)), rtol=1e-6)
