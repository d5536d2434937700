"""Functions whose batches are loops: values and derivatives are those of the plain function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probkit.core._abreast import each_chain, one_by_one


def plain(x: Any, rest: Any) -> Any:
    return jnp.sum(jnp.sin(x) * rest["a"]) + jnp.prod(x)


REST = {"a": np.arange(3.0, dtype=np.float32)}
X = np.linspace(0.1, 1.4, 6, dtype=np.float32).reshape(2, 3)


def test_batches_and_derivatives_are_those_of_the_function():
    def everything(fn: Any, points: Any, rest: Any) -> Any:
        here = lambda x: fn(x, rest)  # noqa: E731
        return (
            jax.vmap(here)(points),
            jax.vmap(jax.value_and_grad(here))(points),
            jax.hessian(here)(points[0]),
            jax.vmap(jax.hessian(here))(points),
            jax.grad(lambda s: jnp.mean(jax.vmap(lambda x: here(s * x))(points)))(1.3),
        )

    found = jax.jit(lambda x, r: everything(one_by_one(plain), x, r))(X, REST)
    known = jax.jit(lambda x, r: everything(plain, x, r))(X, REST)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, known)


def test_a_batch_is_a_loop():
    text = str(jax.make_jaxpr(jax.vmap(lambda x: one_by_one(plain)(x, REST)))(X))
    assert "scan" in text
    assert "scan" not in str(jax.make_jaxpr(jax.vmap(lambda x: plain(x, REST)))(X))


def factor(key, state):
    inner = jax.jit(lambda m: jnp.linalg.cholesky(m + jnp.eye(3)))
    return {"m": jax.lax.cond(state["m"][0, 0] > 0, inner, jnp.sin, state["m"])}


def scale(key, state):
    return {"m": state["m"] * jax.random.uniform(key)}


def test_many_chains_are_vectorised_but_never_their_factorisations():
    """A batch of factorisations may stop a process for ever, see `each_chain`."""
    state = {"m": jnp.ones((17, 3, 3))}
    keys = jax.random.split(jax.random.key(0), 17)
    for step in (factor, scale):
        many = jax.make_jaxpr(lambda k, s, step=step: each_chain(step, k, s))(keys, state)
        assert ("f32[17,3,3] = cholesky" not in str(many)) and ("scan" in str(many)) == (
            step is factor
        )
        found = jax.jit(lambda k, s, step=step: each_chain(step, k, s))(keys, state)
        alone = [step(k, {"m": state["m"][i]})["m"] for i, k in enumerate(keys)]
        np.testing.assert_allclose(found["m"], np.stack(alone), rtol=1e-6)
