"""Whether a model's rows can be taken in mini-batches: no site may need all of them at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probkit.models._markov import check_batch_dim
from probkit.models._nodes import Deterministic, RandomVariable

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram


def check_batch(program: GraphProgram, dim: str) -> None:
    """Raise a ValueError if the log density along ``dim`` is not a sum over its rows."""
    if program.imputed or program.summed:
        raise ValueError(
            "mini-batches: a model with imputed entries or summed-out variables needs all of "
            "its rows; fill the holes, or use a method without mini-batches"
        )
    check_batch_dim(program.nodes, dim)
    _check_named(program, dim)
    _check_joint(program, dim)
    rows = {k for k, axes in program.data_dims.items() if dim in axes}
    for name, node in program.nodes.items():
        if name in program.barren:
            continue
        users = [p for p in node.parents if p in rows and p not in node.sizes]
        if dim in program.facts[name].dims if name in program.facts else False:
            rows.add(name)
        elif users and isinstance(node, Deterministic) and not node.dims:
            rows.add(name)  # without declared dims it may well have one entry a row
        elif users:
            raise ValueError(
                f"mini-batches along {dim!r}: site {name!r} has no dim {dim!r}, but depends on all "
                f"of its rows through {users[0]!r}, so that a part of them does not suffice; give "
                f"it dims={dim!r}, pass what it computes of the rows as data, or take all rows"
            )


def _check_joint(program: GraphProgram, dim: str) -> None:
    """No draw of one distribution may run along the rows: its density is no sum over them."""
    for name, facts in program.facts.items():
        if isinstance(program.nodes[name], RandomVariable):
            if dim in facts.dims[len(facts.batch_shape) :]:
                raise ValueError(
                    f"mini-batches along {dim!r}: site {name!r} is one draw along it (a "
                    f"{facts.distribution}) and needs all of its rows; take all rows, or a method "
                    "for Gaussian processes that takes batches itself"
                )


def _check_named(program: GraphProgram, dim: str) -> None:
    unnamed = [
        k
        for k, axes in program.data_dims.items()
        if None in axes and program.sizes[dim] in program.plan.columns.get(k, ((),))[0]
    ]
    if unnamed:
        raise ValueError(
            f"mini-batches along {dim!r}: it is not known which axis of data {unnamed[0]!r} "
            f"are its rows; name them with dims={{{unnamed[0]!r}: (...)}}"
        )
