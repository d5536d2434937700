"""Where the nodes of a directed graph go in a picture: layers, order and places.

Layers are by longest path (Sugiyama, Tagawa and Toda 1981), sources pulled down to their children.
Nodes of one box (plate) move together: a box takes a range of layers and of places across, and no
other box or node that shares a layer with it may overlap it. Order within a layer and places of
boxes go to the mean of their neighbours, a few times over. Cost: O(sweeps x edges).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SWEEPS = 8


@dataclass(eq=False)
class Block:
    """Nodes that share a box; ``rows[layer]`` are their names from left to right."""

    key: str
    rows: dict[int, list[str]]
    x: float = 0.0
    width: float = 0.0

    @property
    def layers(self) -> tuple[int, int]:
        """First and last layer."""
        return min(self.rows), max(self.rows)

    def meets(self, other: Block, margin: int) -> bool:
        """Whether the two share a layer."""
        (a, b), (c, d) = self.layers, other.layers
        return a <= d + margin and c <= b + margin


def layers_of(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """A layer for each node, such that edges go down; ``names`` have parents first."""
    layer = dict.fromkeys(names, 0)
    for _ in names:
        moved = False
        for a, b in edges:
            if layer[b] <= layer[a]:
                layer[b], moved = layer[a] + 1, True
        if not moved:
            break
    children: dict[str, list[str]] = {n: [] for n in names}
    has_parent = {b for _, b in edges}
    for a, b in edges:
        children[a].append(b)
    for name in names:
        if name not in has_parent and children[name]:
            layer[name] = min(layer[k] for k in children[name]) - 1
    return layer


def place(
    names: Sequence[str],
    edges: Sequence[tuple[str, str]],
    boxes: Mapping[str, str],
    widths: Mapping[str, float],
    gap: float,
    pad: float,
) -> tuple[dict[str, float], dict[str, int], list[Block]]:
    """Centres across, layers down, and the blocks.

    Args:
        names: nodes, parents first.
        edges: pairs of names.
        boxes: the box of each node that has one.
        widths: the width of each node.
        gap: distance between neighbours. pad: room between a box and what is in it.
    """
    layer = layers_of(names, edges)
    blocks: dict[str, Block] = {}
    for name in names:
        key = boxes.get(name, f"node {name}")
        block = blocks.setdefault(key, Block(key, {}))
        block.rows.setdefault(layer[name], []).append(name)
    ordered = list(blocks.values())
    for block in ordered:
        rows = (sum(widths[n] + gap for n in row) - gap for row in block.rows.values())
        block.width = max(rows) + (2 * pad if block.key in boxes.values() else 0.0)
    near: dict[str, list[str]] = {n: [] for n in names}
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    x = {n: 0.0 for n in names}
    _pack(ordered, [float(i) for i in range(len(ordered))], gap)
    _spread(ordered, x, widths, gap)
    for _ in range(_SWEEPS):
        for block in ordered:
            for row in block.rows.values():
                row.sort(key=lambda n: _mean([x[k] for k in near[n]], x[n]))
        _spread(ordered, x, widths, gap)
        wanted = []
        for block in ordered:
            members = {n for row in block.rows.values() for n in row}
            outside = [x[k] for n in members for k in near[n] if k not in members]
            wanted.append(_mean(outside, block.x))
        _pack(ordered, wanted, gap)
        _spread(ordered, x, widths, gap)
    return x, layer, ordered


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _pack(blocks: list[Block], wanted: list[float], gap: float) -> None:
    """Centres near ``wanted`` without overlap: the mean of a pass from each side.

    Both passes keep the same order, and the constraints are differences, so their mean keeps them.
    """
    order = sorted(range(len(blocks)), key=lambda i: (wanted[i], blocks[i].layers[0], i))
    right = _pass(blocks, wanted, order, gap)
    left = _pass(blocks, [-w for w in wanted], order[::-1], gap)
    for i, block in enumerate(blocks):
        block.x = (right[i] - left[i]) / 2


def _pass(
    blocks: list[Block], wanted: list[float], order: list[int], gap: float
) -> dict[int, float]:
    found: dict[int, float] = {}
    for i in order:
        least = [
            found[j] + (blocks[j].width + blocks[i].width) / 2 + gap
            for j in found
            if blocks[i].meets(blocks[j], 0)
        ]
        found[i] = max([wanted[i], *least])
    return found


def _spread(
    blocks: list[Block], x: dict[str, float], widths: Mapping[str, float], gap: float
) -> None:
    """Nodes of every row side by side, in the middle of their block."""
    for block in blocks:
        for row in block.rows.values():
            left = block.x - (sum(widths[n] + gap for n in row) - gap) / 2
            for name in row:
                x[name] = left + widths[name] / 2
                left += widths[name] + gap
