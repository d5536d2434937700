r"""A Gaussian process at new rows, given its values at the rows it was fitted to.

With ``L L' = K + j I`` at the old points, ``A = L^{-1} k(X, X*)`` and the residual ``r = f - m``,

    f* | f ~ N(m* + A' L^{-1} r,  K** - A' A)

(Rasmussen and Williams 2006, equation 2.19, with ``f`` in place of noisy observations), for the
hyperparameters of each draw. A joint draw takes a Cholesky factor of the second matrix, O(n*^3);
beyond `_JOINT` new rows it is taken block by block, so that memory stays O(n^2 + n `_JOINT`), and
rows of different blocks are independent given ``f``. Predictive densities need the variances alone,
the diagonal, and integrate over each row's own normal (`probkit.models._normal_mean`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.models._gp import processes
from probkit.models._nodes import Deterministic
from probkit.models._normal_mean import NODES
from probkit.models._sites import call
from probkit.models.kernels._kernel import Kernel, cross_covariance, diagonal

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram
    from probkit.models._plan import View

_JOINT = 1024
_ATTEMPTS = 7


def residuals(program: GraphProgram, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
    """``f - m`` at the rows of a program, by process, given values of all latent sites."""
    view = program.view(arrays)
    env: dict[str, Any] = {**values, **view.observed}
    for name, node in program.nodes.items():
        if isinstance(node, Deterministic) and name not in env:
            if all(p in env or p not in program.nodes for p in node.parents):
                env[name] = call(name, node, program.arguments(name, env, view))
    return {
        name: values[name] - node.process.mean_of(program.arguments(name, env, view))
        for name, node in processes(program.nodes).items()
        if name in values
    }


def workspace(program: GraphProgram, arrays: dict) -> int:
    """Array elements that one evaluation holds for its processes."""
    total = 0
    for name in processes(program.nodes):
        n = program.facts[name].shape[0]
        moved = arrays.get("process", {}).get(name)
        if moved is None:
            total += n * n
        else:
            total += len(moved) * (len(moved) + n) + min(n, _JOINT) ** 2 + NODES * n
    return total


def conditional_draw(
    program: GraphProgram,
    key: Array,
    name: str,
    env: Mapping,
    residual: Array,
    arrays: dict,
    view: View,
) -> Array:
    """A draw of a process at the program's rows given its residual at the old ones, ``(n*,)``."""
    solved = _Conditional(program, name, env, residual, arrays, view)
    n = len(solved.x)
    if n <= _JOINT:
        return solved.draw(key, solved.x, solved.mean)
    blocks = math.ceil(n / _JOINT)
    index = jnp.minimum(jnp.arange(blocks * _JOINT), n - 1).reshape(blocks, _JOINT)
    keys = jax.random.split(key, blocks)
    out = jax.lax.map(lambda a: solved.draw(a[0], solved.x[a[1]], solved.mean[a[1]]), (keys, index))
    return out.reshape(-1)[:n]


def conditional_moments(
    program: GraphProgram, name: str, env: Mapping, residual: Array, arrays: dict, view: View
) -> tuple[Array, Array]:
    """Mean and standard deviation of each new row given the residual, ``(n*,)`` each."""
    return _Conditional(program, name, env, residual, arrays, view).moments()


class _Conditional:
    """What draws and moments at new rows share: the old rows' factor."""

    def __init__(
        self,
        program: GraphProgram,
        name: str,
        env: Mapping,
        residual: Array,
        arrays: dict,
        view: View,
    ):
        process: Any = program.nodes[name].fn
        values = program.arguments(name, env, view)
        self.kernel: Kernel = process.kernel_of(values)
        self.x, self.mean = process.points(values), process.mean_of(values)
        self.old = jnp.asarray(arrays["process"][name], self.x.dtype)
        gram = cross_covariance(self.kernel, self.old, self.old)
        # Values at inducing points were drawn with a jitter of their own.
        share = arrays.get("process_jitter", {}).get(name)
        noise = process.noise(gram) if share is None else share * jnp.mean(jnp.diagonal(gram))
        self.tril = robust_cholesky(gram, noise)
        self.white = _solve(self.tril, residual)

    def draw(self, key: Array, x: Array, mean: Array) -> Array:
        a = _solve(self.tril, cross_covariance(self.kernel, self.old, x))
        cov = cross_covariance(self.kernel, x, x) - a.T @ a
        scale = jnp.mean(diagonal(self.kernel, x))
        tril = robust_cholesky(cov, len(x) * float(jnp.finfo(cov.dtype).eps) * scale)
        return mean + a.T @ self.white + tril @ jax.random.normal(key, (len(x),), cov.dtype)

    def moments(self) -> tuple[Array, Array]:
        def block(index: Array) -> tuple[Array, Array]:
            x = self.x[index]
            a = _solve(self.tril, cross_covariance(self.kernel, self.old, x))
            variance = diagonal(self.kernel, x) - jnp.sum(a * a, axis=0)
            return self.mean[index] + a.T @ self.white, jnp.sqrt(jnp.maximum(variance, 0.0))

        n = len(self.x)
        if n <= _JOINT:
            return block(jnp.arange(n))
        blocks = math.ceil(n / _JOINT)
        index = jnp.minimum(jnp.arange(blocks * _JOINT), n - 1).reshape(blocks, _JOINT)
        mean, sd = jax.lax.map(block, index)
        return mean.reshape(-1)[:n], sd.reshape(-1)[:n]


def robust_cholesky(matrix: Array, jitter: Array | float) -> Array:
    """A Cholesky factor with the least jitter, of ``jitter * 100^k``, that gives a finite one.

    NaN if the matrix is not positive definite even with 1e12 times the jitter.
    """
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)

    def factor(noise: Array) -> Array:
        return jnp.linalg.cholesky(matrix + noise * eye)

    def again(carry: tuple) -> tuple:
        count, noise, _ = carry
        noise = jnp.maximum(100.0 * noise, least)
        return count + 1, noise, factor(noise)

    def failed(carry: tuple) -> Array:
        return (carry[0] < _ATTEMPTS) & ~jnp.isfinite(carry[2][-1, -1])

    noise = jnp.asarray(jitter, matrix.dtype)
    least = jnp.finfo(matrix.dtype).eps * jnp.mean(jnp.abs(jnp.diagonal(matrix)))
    return jax.lax.while_loop(failed, again, (0, noise, factor(noise)))[2]


def _solve(tril: Array, b: Array) -> Array:
    return jax.scipy.linalg.solve_triangular(tril, b, lower=True)
