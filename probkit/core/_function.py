"""A Target for a plain log density: no model, no names beyond those of the point's dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core._target import Batch, Program, Site, Target, Terms


class FunctionProgram(Program):
    """The static half of a Target made from a function; the unconstrained space is its own."""

    def __init__(self, fn: Callable, example: Mapping[str, np.ndarray], with_data: bool):
        super().__init__()
        self._fn = fn
        self._with_data = with_data
        self.shapes = {k: tuple(v.shape) for k, v in example.items()}
        self.sizes = {}
        self.data_dims = {}
        self.dtype = np.dtype(jnp.result_type(float))
        self.sites = {}
        for name, shape in self.shapes.items():
            dims = tuple(f"{name}_dim_{i}" for i in range(len(shape)))
            self.sizes.update(zip(dims, shape, strict=True))
            self.sites[name] = Site(name, "latent", dims, shape, "real", "")

    def evaluate(self, z: Mapping[str, Array], arrays: dict, batch: Batch | None = None) -> Terms:
        if batch is not None:
            raise ValueError(
                "a Target made from a function has no likelihood terms to take mini-batches of; "
                "declare a Model instead"
            )
        args = (z, arrays["data"]) if self._with_data else (z,)
        return Terms({"log_density": jnp.asarray(self._fn(*args), self.dtype)}, {})

    def pointwise(self, z: Mapping[str, Array], values: Mapping[str, Array], arrays: dict) -> dict:
        return {}

    def constrain(self, key: Array, z: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        return dict(z)

    def unconstrain(self, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        return {k: jnp.asarray(values[k], self.dtype) for k in self.shapes}

    def simulate(self, key: Array, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        return {}

    def score(self, key: Array, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        return {}

    def prior_point(self, key: Array, arrays: dict) -> dict[str, Array]:
        keys = jax.random.split(key, max(len(self.shapes), 1))
        return {
            name: jax.random.uniform(k, shape, self.dtype, -2.0, 2.0)
            for k, (name, shape) in zip(keys, self.shapes.items(), strict=False)
        }


def function_target(fn: Callable, example: Mapping[str, Any], data: Any) -> Target:
    """See `Target.from_log_density`."""
    if not isinstance(example, Mapping) or not example:
        raise TypeError(
            "Target.from_log_density: expected `example` to be a non-empty dictionary of arrays, "
            f"found {type(example).__name__}; wrap a single array as {{'x': array}}"
        )
    point = {k: np.asarray(v) for k, v in example.items()}
    program = FunctionProgram(fn, point, data is not None)
    arrays = {} if data is None else {"data": jax.tree.map(np.asarray, data)}
    prior = jax.eval_shape(lambda z, a: program.evaluate(z, a).prior, point, arrays)
    shape = prior["log_density"].shape
    if shape != ():
        raise ValueError(
            f"Target.from_log_density: expected fn to return a scalar, found shape {shape}; "
            "sum the terms of the log density"
        )
    return Target(program, arrays)
