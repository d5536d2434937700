"""A picture of a graph of random variables: an SVG, made without any program for drawing graphs.

Circles are latent variables, grey ones the leaves that data are likely to be given for, squares are
deterministic, small grey boxes are columns of data, and rounded boxes say along which dims the
nodes in them repeat. Colours are chosen to be read on a light and on a dark page.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from probkit.models._graph import consumers
from probkit.models._layers import Block, place
from probkit.models._nodes import Deterministic, Factor, Node, RandomVariable
from probkit.models._table import body, dims_text, parents_of

if TYPE_CHECKING:
    from probkit.models._model import Model

_LINE, _INK, _FILL, _SEEN, _DATA = "#768390", "#1f2328", "#ffffff", "#c9d1d9", "#e6e9ed"
_GAP, _PAD, _LAYER, _HEIGHT, _MARGIN = 24.0, 14.0, 92.0, 38.0, 12.0
_LETTER = 7.4
_BOWS = (0.0, 36.0, -36.0, 72.0, -72.0, 120.0, -120.0, 180.0, -180.0)


@dataclass(frozen=True)
class Vertex:
    """A node to draw: ``kind`` is latent, observed, deterministic, factor or data."""

    name: str
    kind: str
    dims: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, repr=False)
class Picture:
    """A drawn graph. Notebooks show it; ``svg`` is its text, ``save`` writes it to a file."""

    svg: str

    def __repr__(self) -> str:
        return "Picture: a notebook shows it, .save(path) keeps it, .svg is its text"

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write the picture to a file (by custom ``.svg``)."""
        target = Path(path)
        target.write_text(self.svg, encoding="utf-8")
        return target


def picture(model: Model) -> Picture:
    """The model's graph as a `Picture`.

    Example:
        >>> import probkit as pk
        >>> model = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1)))
        >>> picture(model).svg.startswith("<svg")
        True
    """
    nodes = model.nodes
    vertices: dict[str, Vertex] = {}
    edges: list[tuple[str, str]] = []
    for name, node in nodes.items():
        for parent in parents_of(node):
            if parent in node.sizes:
                continue
            if parent not in nodes and parent not in vertices:
                users = [nodes[k].dims + nodes[k].event_dims for k in consumers(parent, nodes)]
                vertices[parent] = Vertex(parent, "data", _shared(users), f"data {parent}")
            edges.append((parent, name))
        vertices[name] = _vertex(name, node, nodes)
    return draw(list(vertices.values()), edges)


def _shared(dims: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The dims of a column, as far as its users tell: those of its only kind of user."""
    return dims[0] if dims and all(set(d) == set(dims[0]) for d in dims) else ()


def _vertex(name: str, node: Node, nodes: Mapping[str, Node]) -> Vertex:
    dims = node.dims + node.event_dims
    if isinstance(node, RandomVariable):
        kind = "latent" if consumers(name, nodes) else "observed"
        sign = "~"
    else:
        kind = "factor" if isinstance(node, Factor) else "deterministic"
        sign = "|=" if isinstance(node, Factor) else "="
    if isinstance(node, Deterministic) and node.hidden:
        dims = ()
    return Vertex(name, kind, dims, f"{name} {sign} {body(node)} {dims_text(node)}".strip())


def draw(vertices: Sequence[Vertex], edges: Sequence[tuple[str, str]]) -> Picture:
    """A picture of vertices (parents first) and edges from parents to children."""
    known = {v.name: v for v in vertices}
    kept = list(dict.fromkeys((a, b) for a, b in edges if a in known and b in known))
    widths = {v.name: _width(v) for v in vertices}
    boxes = {v.name: " × ".join(sorted(v.dims)) for v in vertices if v.dims}
    labels = {v.name: " × ".join(v.dims) for v in vertices if v.dims}
    x, layer, blocks = place(list(known), kept, boxes, widths, _GAP, _PAD)
    y = {n: (layer[n] - min(layer.values())) * _LAYER for n in known}
    parts = []
    plates = [b for b in blocks if b.key in boxes.values()]
    for block in plates:
        parts.append(_plate(block, y, labels))
    for a, b in kept:
        parts.append(_edge(a, b, known, x, y, widths))
    for v in vertices:
        parts.append(_shape(v, x[v.name], y[v.name], widths[v.name]))
    left = min(b.x - b.width / 2 for b in blocks) - _MARGIN - _PAD
    right = max(b.x + b.width / 2 for b in blocks) + _MARGIN + _PAD
    top = -_HEIGHT / 2 - _PAD - _MARGIN
    bottom = max(y.values()) + _HEIGHT / 2 + _PAD + _MARGIN + 16
    width, height = right - left, bottom - top
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="{left:.1f} {top:.1f} {width:.1f} {height:.1f}" role="img" '
        'font-family="ui-sans-serif, system-ui, Helvetica, Arial, sans-serif" font-size="13" '
        'style="max-width:100%;height:auto">'
        "<title>Graph of the model</title>"
        '<defs><marker id="probkit-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0.8 L8 4 L0 7.2 z" fill="{_LINE}"/></marker>'
        "</defs>" + "".join(parts) + "</svg>"
    )


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _width(v: Vertex) -> float:
    text = len(_short(v.name)) * _LETTER
    if v.kind == "data":
        return text + 14
    return max(44.0, text + (18 if v.kind in ("deterministic", "factor") else 30))


def _plate(block: Block, y: Mapping[str, float], labels: Mapping[str, str]) -> str:
    members = [n for row in block.rows.values() for n in row]
    top = min(y[n] for n in members) - _HEIGHT / 2 - _PAD
    bottom = max(y[n] for n in members) + _HEIGHT / 2 + _PAD + 12
    label = html.escape(labels[members[0]])
    least = len(labels[members[0]]) * 6.6 + 16
    width = max(block.width, least)
    left = block.x - width / 2
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}" '
        f'rx="10" fill="{_LINE}" fill-opacity="0.08" stroke="{_LINE}"/>'
        f'<text x="{left + width - 8:.1f}" y="{bottom - 6:.1f}" text-anchor="end" font-size="12" '
        f'fill="{_LINE}">{label}</text>'
    )


def _shape(v: Vertex, x: float, y: float, width: float) -> str:
    name, title = html.escape(_short(v.name)), f"<title>{html.escape(v.text or v.name)}</title>"
    ink, size = _INK, 13
    if v.kind == "data":
        shape = (
            f'<rect x="{x - width / 2:.1f}" y="{y - 11:.1f}" width="{width:.1f}" height="22" '
            f'rx="3" fill="{_DATA}"/>'
        )
        ink, size = "#57606a", 12
    elif v.kind in ("deterministic", "factor"):
        fill = _INK if v.kind == "factor" else _FILL
        ink = _FILL if v.kind == "factor" else _INK
        shape = (
            f'<rect x="{x - width / 2:.1f}" y="{y - _HEIGHT / 2 + 3:.1f}" width="{width:.1f}" '
            f'height="{_HEIGHT - 6:.1f}" fill="{fill}" stroke="{_LINE}" stroke-width="1.4"/>'
        )
    else:
        fill = _SEEN if v.kind == "observed" else _FILL
        shape = (
            f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{width / 2:.1f}" ry="{_HEIGHT / 2:.1f}" '
            f'fill="{fill}" stroke="{_LINE}" stroke-width="1.4"/>'
        )
    return (
        f"<g>{title}{shape}"
        f'<text x="{x:.1f}" y="{y + 4.5:.1f}" text-anchor="middle" font-size="{size}" '
        f'fill="{ink}">{name}</text></g>'
    )


def _edge(
    a: str,
    b: str,
    known: Mapping[str, Vertex],
    x: Mapping[str, float],
    y: Mapping[str, float],
    widths: Mapping[str, float],
) -> str:
    """A curve from a parent down to a child, bowed sideways where it would cross another node."""
    toward = x[b] - x[a]
    start = _border(known[a], x[a], y[a], widths[a], toward, 1)
    end = _border(known[b], x[b], y[b], widths[b], -toward, -1)
    others = [n for n in known if n not in (a, b)]
    best = min(
        _BOWS, key=lambda bow: (_hits(_curve(start, end, bow), others, x, y, widths), abs(bow))
    )
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = _curve(start, end, best)
    return (
        f'<path d="M{x0:.1f} {y0:.1f} C{x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f} {x3:.1f} {y3:.1f}" '
        f'fill="none" stroke="{_LINE}" stroke-width="1.4" marker-end="url(#probkit-arrow)"/>'
    )


def _border(
    v: Vertex, x: float, y: float, width: float, toward: float, side: int
) -> tuple[float, float]:
    """Where an edge meets a node: on its lower (1) or upper (-1) side, leaning to the other end."""
    reach = 0.36 * width
    lean = max(-reach, min(reach, 0.2 * toward))
    if v.kind == "data":
        return x + lean, y + side * 11.0
    if v.kind in ("deterministic", "factor"):
        return x + lean, y + side * (_HEIGHT / 2 - 3)
    return x + lean, y + side * _HEIGHT / 2 * (1 - (2 * lean / width) ** 2) ** 0.5


def _curve(start: tuple, end: tuple, bow: float) -> tuple:
    drop = (end[1] - start[1]) / 3
    return (
        start,
        (start[0] + (end[0] - start[0]) * 0.15 + bow, start[1] + drop),
        (end[0] - (end[0] - start[0]) * 0.15 + bow, end[1] - drop),
        end,
    )


def _hits(
    curve: tuple,
    others: Sequence[str],
    x: Mapping[str, float],
    y: Mapping[str, float],
    widths: Mapping[str, float],
) -> int:
    """How many points of a curve fall on other nodes."""
    count = 0
    for i in range(1, 20):
        t = i / 20
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        px = sum(w * p[0] for w, p in zip(weights, curve, strict=True))
        py = sum(w * p[1] for w, p in zip(weights, curve, strict=True))
        count += any(
            abs(px - x[n]) < widths[n] / 2 + 4 and abs(py - y[n]) < _HEIGHT / 2 + 2 for n in others
        )
    return count
