"""Random neural networks: an equinox module becomes one site an array, and their assembly."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
from numpyro.distributions import Distribution

from probkit.models._nodes import Deterministic, Module, Node, RandomVariable, rv


def expand_module(name: str, node: Module) -> dict[str, Node]:
    """Nodes for every floating array of the module, and a hidden node that puts them together."""
    arrays, rest = eqx.partition(node.module, eqx.is_inexact_array)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(arrays)
    if not leaves:
        raise ValueError(
            f"site {name!r}: the module has no floating arrays to put a prior on; "
            "use it inside a node's function instead"
        )
    nodes: dict[str, Node] = {}
    for path, array in leaves:
        site = name + jax.tree_util.keystr(path)
        nodes[site] = _site(site, node.prior, jax.tree_util.keystr(path), array)
    order = tuple(nodes)

    def assemble(*values: Any) -> Any:
        return eqx.combine(jax.tree_util.tree_unflatten(treedef, list(values)), rest)

    nodes[name] = Deterministic(assemble, order, by_keyword=False, hidden=True)
    return nodes


def _site(site: str, prior: Any, path: str, array: jax.Array) -> RandomVariable:
    d = prior if isinstance(prior, Distribution) else prior(path, array)
    if not isinstance(d, Distribution):
        raise TypeError(
            f"site {site!r}: expected the module's prior to be a distribution, "
            f"found {type(d).__name__}"
        )
    shape = d.batch_shape + d.event_shape
    if shape == tuple(array.shape):
        return rv(d)
    if d.event_shape or len(d.batch_shape) > array.ndim:
        raise ValueError(
            f"site {site!r}: a prior of shape {shape} does not fit an array of shape {array.shape}"
        )
    return rv(d.expand(array.shape))
