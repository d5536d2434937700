"""A Model as a table: one line a node, as one would write the model on paper."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from probkit.models._nodes import Deterministic, Factor, Node, RandomVariable

if TYPE_CHECKING:
    from probkit.models._model import Model

_GAP = 5
_SIGNS = {"variable": "~", "deterministic": "=", "factor": "|="}


def kind_of(node: Node) -> str:
    """``variable``, ``deterministic`` or ``factor``."""
    if isinstance(node, RandomVariable):
        return "variable"
    return "factor" if isinstance(node, Factor) else "deterministic"


def parents_of(node: Node) -> list[str]:
    """The parents a reader knows: not the sizes of dims that a node asks for by itself."""
    return [p for p in node.parents if p not in node.sizes or p.isidentifier()]


def body(node: Node) -> str:
    """``Normal(0, 5)`` where the distribution is known, else ``f(parents)``."""
    if isinstance(node, RandomVariable) and node.text:
        return node.text
    if isinstance(node, Deterministic) and node.hidden:
        return f"module of {len(node.parents)} arrays"
    text = f"f({', '.join(parents_of(node))})"
    return text + "  likelihood" if isinstance(node, Factor) and node.likelihood else text


def dims_text(node: Node) -> str:
    """``[school]``; the axes of one draw of a multivariate variable come after a semicolon."""
    batch, event = ", ".join(node.dims), ", ".join(node.event_dims)
    if not batch and not event:
        return ""
    return f"[{batch}]" if not event else f"[{batch}; {event}]" if batch else f"[; {event}]"


def rows(model: Model) -> list[tuple[str, str, str, str]]:
    """Name, sign, body and dims of every node, in the order of declaration."""
    out = []
    for name, node in model._nodes.items():
        out.append((name, _SIGNS[kind_of(node)], body(node), dims_text(node)))
    return out


def table(model: Model) -> str:
    """The model as text: ``~`` for variables, ``=`` for deterministics, ``|=`` for factors.

    Example:
        >>> import probkit as pk
        >>> print(table(pk.Model(
        ...     a=pk.dist.Normal(0, 1),
        ...     twice=pk.deterministic(lambda a: 2 * a),
        ...     soft=pk.factor(lambda a: -abs(a)),
        ... )))
        a      ~  Normal(0, 1)
        twice  =  f(a)
        soft   |= f(a)
    """
    lines = rows(model)
    names = max(len(name) for name, *_ in lines)
    signs = max(len(sign) for _, sign, *_ in lines)
    bodies = max((len(text) for *_, text, dims in lines if dims), default=0)
    out = []
    for name, sign, text, dims in lines:
        line = f"{name:<{names}}  {sign:<{signs}} {text}"
        if dims:
            line += " " * (bodies - len(text) + _GAP) + dims
        out.append(line)
    return "\n".join(out)


def html_table(model: Model) -> str:
    """The model as an HTML table, for notebooks."""
    cells = []
    for line in rows(model):
        parts = (html.escape(part) for part in line)
        cells.append(
            "<tr>"
            + "".join(f'<td style="text-align:left;padding:1px 8px">{p}</td>' for p in parts)
            + "</tr>"
        )
    return (
        '<table class="probkit-model" style="font-family:monospace;border-collapse:collapse">'
        + "".join(cells)
        + "</table>"
    )
