"""The order of a Model's graph: who comes before whom, and what depends on what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from probkit.models._nodes import Node


def topological_order(nodes: Mapping[str, Node]) -> tuple[str, ...]:
    """Names with parents first; among equals the order of declaration.

    Raises:
        ValueError: the graph has a cycle; the message shows it.
    """
    done: dict[str, None] = {}
    for name in nodes:
        _visit(name, nodes, done, [])
    return tuple(done)


def _visit(name: str, nodes: Mapping[str, Node], done: dict[str, None], path: list[str]) -> None:
    if name in done:
        return
    if name in path:
        cycle = " -> ".join([*path[path.index(name) :], name])
        raise ValueError(
            f"site {name!r}: the graph has a cycle, {cycle} (each name is a parent of the next); a "
            "variable cannot depend on itself: remove one of these parents, or declare a chain "
            "over time with pk.markov"
        )
    for parent in nodes[name].parents:
        # A variable's own name among its parents is a cycle of length one.
        if parent in nodes and parent not in nodes[name].sizes:
            _visit(parent, nodes, done, [*path, name])
    done[name] = None


def consumers(name: str, nodes: Mapping[str, Node]) -> list[str]:
    """Nodes that have ``name`` as a parent."""
    return [k for k, n in nodes.items() if name in n.parents and name not in n.sizes]


def dims_of_consumers(name: str, nodes: Mapping[str, Node]) -> list[str]:
    """Dims of the nodes that use ``name``; through nodes that have none, of those that use them."""
    found: dict[str, None] = {}
    for consumer in consumers(name, nodes):
        own = nodes[consumer].dims + nodes[consumer].event_dims
        for dim in own or dims_of_consumers(consumer, nodes):
            found[dim] = None
    return list(found)


def reaches(start: Iterable[str], nodes: Mapping[str, Node], stop: Iterable[str]) -> set[str]:
    """Nodes that depend on any of ``start`` through nodes outside ``stop`` (``start`` excluded)."""
    blocked = set(stop)
    frontier = list(start)
    found: set[str] = set()
    while frontier:
        for child in consumers(frontier.pop(), nodes):
            if child not in found:
                found.add(child)
                if child not in blocked:
                    frontier.append(child)
    return found
