"""Constant arrays that a site's function may index with values known only to the compiler."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class HostArray(np.ndarray):
    """A NumPy array, save that ``table[index]`` with a traced index is JAX's.

    Columns are plain arrays while a model is inspected, so that their values can be checked; a
    table among them is indexed by latent codes all the same.
    """

    def __getitem__(self, index: Any) -> Any:
        if any(isinstance(x, Tracer) for x in jax.tree.leaves(index)):
            return jnp.asarray(np.asarray(self))[index]
        return super().__getitem__(index)


def host_array(value: Any) -> Any:
    """A NumPy array with axes as a `HostArray`; anything else as it is."""
    return value.view(HostArray) if type(value) is np.ndarray and value.ndim else value
