"""The last part of the report: how the sampler ran, the attributes, and the groups there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._diagnostics import ebfmi
from ._report_data import ReportData
from ._report_html import Cell, note, number, number_table, text_table

_HIDDEN_ATTRS = {"verdict", "model_graph", "probkit_encoding"}


def facts_body(data: ReportData) -> str:
    """Statistics of the sampler by chain, the attributes, and what the groups hold."""
    parts = []
    by_chain = _chain_rows(data)
    if by_chain:
        head, rows = by_chain
        parts.append(number_table(head, rows, sortable=False))
    else:
        parts.append(note("There is no group sample_stats, so nothing is known of the sampler."))
    facts = _attr_rows(data)
    if facts:
        parts.append("<h3>Attributes</h3>" + text_table(("", ""), facts))
    groups = [
        (name, ", ".join(f"{v} {tuple(ds[v].sizes.values())}" for v in list(ds)[:12]))
        for name, ds in data.groups.items()
    ]
    parts.append("<h3>Groups</h3>" + text_table(("", ""), groups))
    return "\n".join(parts)


def _chain_rows(data: ReportData) -> tuple[list[str], list[tuple[str, list[Cell]]]] | None:
    """Statistics of the sampler, one row a chain."""
    columns: list[tuple[str, Any, Callable[[float], str]]] = []
    for name, title, reduce, show in (
        ("diverging", "divergences", np.sum, "{:.0f}"),
        ("acceptance_rate", "mean acceptance", np.mean, "{:.3f}"),
        ("step_size", "mean step size", np.mean, "{:.3g}"),
        ("tree_depth", "mean tree depth", np.mean, "{:.2f}"),
        ("n_steps", "leapfrog steps", np.sum, "{:.0f}"),
        ("reached_max_treedepth", "at greatest depth", np.sum, "{:.0f}"),
    ):
        if name in data.stats:
            columns.append((title, reduce(data.stats[name].astype(float), axis=1), show.format))
    if "energy" in data.stats:
        columns.append(("E-BFMI", ebfmi(data.stats["energy"]), "{:.2f}".format))
    if not columns:
        return None
    rows = [
        (f"chain {i}", [Cell(float(v[i]), show(float(v[i]))) for _, v, show in columns])
        for i in range(len(columns[0][1]))
    ]
    return ["", *(title for title, _, _ in columns)], rows


def _attr_rows(data: ReportData) -> list[tuple[str, str]]:
    """Attributes of the file, then of posterior and sample_stats, each name once."""
    found: dict[str, str] = {}
    sources = [data.attrs]
    sources += [data.groups[g].attrs for g in ("posterior", "sample_stats") if g in data.groups]
    for source in sources:
        for name, value in source.items():
            if str(name) not in _HIDDEN_ATTRS:
                text = (
                    number(float(value)) if isinstance(value, float | np.floating) else str(value)
                )
                found.setdefault(str(name), text if len(text) <= 300 else text[:297] + "...")
    return list(found.items())
