"""Small helpers for pytrees of arrays: dtypes that do not drift, a flat view of a dictionary."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from probkit.core._config import setting


def strong(tree: PyTree) -> PyTree:
    """Every leaf as an array without a weak type.

    A loop's carry whose weak types differ from what the loop's body returns makes the program
    compile twice; normalising the first carry makes that impossible.
    """
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), tree)


@contextlib.contextmanager
def in_precision(dtype: Any) -> Iterator[None]:
    """JAX's floating precision set to that of ``dtype``, whatever the caller's setting."""
    wide = np.dtype(dtype) == np.float64
    if wide == bool(setting("jax_enable_x64")):
        yield
    else:
        with jax.enable_x64(wide):
            yield


def shapes_of(tree: PyTree) -> tuple:
    """Hashable description of a tree of arrays: structure, shapes and dtypes."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, tuple((np.shape(x), np.dtype(jnp.result_type(x)).name) for x in leaves)


class Flat:
    """A bijection between a dictionary of arrays of fixed shapes and one flat vector.

    Sites lie one after the other in the order of ``shapes``; ``ravel`` and ``unravel`` trace to a
    concatenation and to static slices. Both cost O(d).
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = dict(shapes)
        self.sizes = {k: math.prod(s) for k, s in self.shapes.items()}
        self.size = sum(self.sizes.values())
        self.offsets: dict[str, int] = {}
        position = 0
        for name, size in self.sizes.items():
            self.offsets[name] = position
            position += size

    def ravel(self, tree: Mapping[str, Any]) -> Array:
        """The dictionary's arrays as one vector of length ``size``."""
        if not self.shapes:
            return jnp.zeros((0,))
        return jnp.concatenate([jnp.ravel(jnp.asarray(tree[k])) for k in self.shapes])

    def unravel(self, vector: Array) -> dict[str, Array]:
        """The dictionary that ``ravel`` made the vector from."""
        return {
            k: jax.lax.slice(
                vector, (self.offsets[k],), (self.offsets[k] + self.sizes[k],)
            ).reshape(shape)
            for k, shape in self.shapes.items()
        }

    def unravel_host(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """``unravel`` for host arrays with any leading axes; nothing is compiled."""
        lead = array.shape[:-1]
        return {
            k: array[..., self.offsets[k] : self.offsets[k] + self.sizes[k]].reshape(lead + shape)
            for k, shape in self.shapes.items()
        }

    def labels(self) -> list[str]:
        """A name for each coordinate of the vector, such as ``theta[3]``."""
        out = []
        for name, shape in self.shapes.items():
            for index in np.ndindex(*shape):
                out.append(name + (f"[{','.join(map(str, index))}]" if index else ""))
        return out
