"""Functions whose batches are loops: values and derivatives are those of the plain function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probkit.core._abreast import one_by_one


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
