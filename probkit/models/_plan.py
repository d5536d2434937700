"""What a program is compiled for, and the arrays of one evaluation of it."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Batch
from probkit.models._nodes import Node


@dataclass(frozen=True, eq=False)
class Plan:
    """What a program is compiled for: the graph, sizes, names, shapes and dtypes; never values."""

    nodes: dict[str, Node]
    sizes: dict[str, int]
    columns: dict[str, tuple]
    data_dims: dict[str, tuple[str | None, ...]]
    observed: dict[str, tuple]
    missing: dict[str, int]
    style: dict[str, str]
    dtype: str

    def key(self) -> tuple:
        """Hashable; the model itself is not in it, since each model keeps its own programs."""
        return tuple(
            tuple(sorted((k, v) for k, v in part.items()))
            for part in (self.sizes, self.columns, self.observed, self.missing, self.style)
        ) + (tuple(sorted((k, str(v)) for k, v in self.data_dims.items())), self.dtype)


@dataclass(frozen=True, eq=False)
class View:
    """The arrays of one evaluation: all rows, or a mini-batch of them along one dim."""

    data: dict[str, Array]
    observed: dict[str, Array]
    index: dict[str, Array]
    centred: dict[str, Array]
    sizes: dict[str, int]
    batch: Batch | None = None
    factor: float = 1.0

    def rows(self, value: Array, dims: tuple[str | None, ...]) -> Array:
        """The rows of the batch of an array with these dims."""
        if self.batch is None or self.batch.dim not in dims:
            return value
        return jnp.take(value, self.batch.index, axis=dims.index(self.batch.dim))

    def scale(self, dims: tuple[str, ...]) -> float:
        """Rows in the data / rows in the batch, for a site with these dims."""
        return self.factor if self.batch is not None and self.batch.dim in dims else 1.0


def missing_dim(name: str, dims: tuple[str, ...]) -> str:
    """The dim of the imputed entries of a variable: ``y_missing_obs``."""
    return "_".join((name, "missing", *dims))
