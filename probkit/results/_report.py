"""One HTML page about a posterior: verdict first, then what a careful reader asks for next.

The page is made from groups of datasets alone, so any file that a library wrote through ArviZ
can be reported on. A group that is missing leaves out its section, with one line on why. A model
of many components shows the worst by R-hat and ESS, and says so.

Cost: the diagnostics of every component once for the ranking and once for the verdict, then a
few tenths of a second for each of about a dozen pictures, however large the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _report_predictive as predictive
from . import _report_sampling as sampling
from ._diagnostics import ebfmi
from ._report_data import MAX_OBSERVATIONS, Component, ReportData
from ._report_facts import facts_body
from ._report_html import (
    Cell,
    Section,
    banner,
    figure,
    fixed,
    key,
    note,
    number,
    number_table,
    page,
    warn,
)
from ._report_mpl import ACCENT, CHAINS, WARN, house_style, require_matplotlib
from ._summary import summarise
from ._verdict import Verdict

if TYPE_CHECKING:
    import xarray

MAX_ROWS = 200
MAX_TRACES = 8
MAX_PAIRS = 4


def write_report(
    groups: Mapping[str, xarray.Dataset],
    path: str | os.PathLike[str],
    verdict: Verdict | None = None,
    graph_svg: str | None = None,
    title: str | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write one self-contained HTML page about a posterior.

    Args:
        groups: ArviZ group names to datasets; only ``posterior`` (dims chain, draw) is needed.
        path: the HTML file; its folder must exist.
        verdict: shown at the top; by default the one saved in ``attrs["verdict"]``, or else one
            judged from the groups.
        graph_svg: the model's graph as an ``<svg>`` element; by default ``attrs["model_graph"]``.
        title: heading of the page; by default ``attrs["title"]``, or "Posterior report".
        attrs: global attributes of the posterior, shown among the facts of the run.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is missing (the extra ``plots``).
        ValueError: no posterior group, or no numeric draws in it.
        FileNotFoundError: the folder does not exist.

    Example:
        >>> import numpy as np, tempfile, xarray as xr
        >>> x = np.random.default_rng(0).normal(size=(4, 100))
        >>> draws = xr.Dataset({"mu": (("chain", "draw"), x)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_report({"posterior": draws}, f"{folder}/r.html")
        ...     "<svg" in path.read_text(encoding="utf-8")
        True
    """
    return write_page(ReportData(groups, attrs), path, verdict, graph_svg, title)


def write_page(
    data: ReportData,
    path: str | os.PathLike[str],
    verdict: Verdict | None = None,
    graph_svg: str | None = None,
    title: str | None = None,
) -> Path:
    """As :func:`write_report`, from what was read already."""
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"report: the folder {str(target.parent)!r} does not exist; make it first."
        )
    require_matplotlib()
    target.write_text(_page_text(data, verdict, graph_svg, title), encoding="utf-8")
    return target


def _page_text(
    data: ReportData, verdict: Verdict | None, graph_svg: str | None, title: str | None
) -> str:
    heading = title or str(data.attrs.get("title") or "Posterior report")
    judged = data.verdict if verdict is None else verdict
    graph = graph_svg or data.attrs.get("model_graph")
    builders: list[tuple[str, str, Callable[[], str]]] = [
        ("summary", "Summary", lambda: _summary(data)),
        ("graph", "Model graph", lambda: _graph(graph)),
        ("trace", "Traces and ranks", lambda: _traces(data)),
        ("pairs", "Pairs and divergences", lambda: _pairs(data)),
        ("energy", "Energy", lambda: _energy(data)),
        ("ppc", "Predictive check", lambda: _ppc(data)),
        ("loo", "LOO-PIT and Pareto k", lambda: _loo(data)),
        ("facts", "Facts of the run", lambda: facts_body(data)),
    ]
    with house_style():
        sections = [Section(a, t, _guarded(build)) for a, t, build in builders]
    lead = (
        f"{_many(data.chains, 'chain')} of {_many(data.length, 'draw')}, "
        f"{_many(len(data.draws), 'variable')}, {_many(data.size, 'component')}"
    )
    notes = "".join(note(text) for text in data.notes)
    return page(heading, lead, banner(judged) + notes, sections)


def _guarded(build: Callable[[], str]) -> str:
    """A section's body; odd data must not cost the reader the rest of the page."""
    try:
        return build()
    except Exception as error:
        return warn(f"This part could not be made: {type(error).__name__}: {error}")


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s"


def _summary(data: ReportData) -> str:
    shown = data.all_or_worst(MAX_ROWS)
    table = summarise({str(i): c.draws for i, c in enumerate(shown)})
    least = 100.0 * data.chains
    rows = []
    names = [str(name) for name in table.columns]
    for component, values in zip(shown, table.to_numpy(dtype=float), strict=True):
        row = dict(zip(names, map(float, values), strict=True))
        cells = [
            _summary_cell(name, value, row["sd"], row["mcse_mean"], least)
            for name, value in row.items()
        ]
        rows.append((component.label, cells))
    words = (
        f"The {MAX_ROWS} components with the worst R-hat and ESS, of {data.size:,}. "
        if len(shown) < data.size
        else ""
    )
    head = ["", *map(_column_title, names)]
    return note(words + "Click on a heading to sort.") + number_table(head, rows)


def _summary_cell(name: str, value: float, scale: float, error: float, least: float) -> Cell:
    if name.startswith("ess"):
        return Cell(value, "–" if np.isnan(value) else f"{value:.0f}", value < least)
    if name == "r_hat":
        return Cell(value, "–" if np.isnan(value) else f"{value:.3f}", value >= 1.01)
    if name.startswith("mcse"):
        return Cell(value, fixed(value, 10 * value), error > 0.1 * scale)
    return Cell(value, fixed(value, scale))


def _column_title(name: str) -> str:
    plain = {"r_hat": "R-hat", "ess_bulk": "ESS bulk", "ess_tail": "ESS tail"}
    plain |= {"mcse_mean": "MCSE mean", "mcse_sd": "MCSE sd"}
    if name.startswith(("hdi", "eti")) and "_" in name:
        kind, side = name.split("_")
        return f"{kind[3:]}% {kind[:3].upper()} {side}"
    return plain.get(name, name)


def _graph(svg: Any) -> str:
    if not isinstance(svg, str) or "<svg" not in svg:
        return note("Left out: no model graph was given or saved with the draws.")
    return f'<figure class="graph">{svg[svg.index("<svg") :]}</figure>'


def _traces(data: ReportData) -> str:
    shown = data.telling(MAX_TRACES)
    if not shown:
        return note("Left out: no component varies.")
    diverging = _diverging(data)
    chains = min(data.chains, sampling.MAX_CHAINS)
    legend = "".join(key(CHAINS[i], f"chain {i}") for i in range(chains))
    legend += key(WARN, "divergence") if diverging is not None and diverging.any() else ""
    words = f"The {len(shown)} that mix worst, each variable represented first. " * (
        len(shown) < data.size
    )
    if chains < data.chains:
        words += f"The first {chains} of {data.chains} chains. "
    words += "Left: density. Middle: the draws in order. " if chains > 1 else ""
    words += (
        "Right: ranks of each chain among all draws, level along the dashed line when chains agree."
        if chains > 1
        else "Left: density. Right: the draws in order; ranks would compare chains, and there is "
        "one."
    )
    parts = [note(words), f'<p class="caption">{legend}</p>']
    for component in shown:
        parts.append(_trace_heading(component))
        parts.append(figure(sampling.trace_picture(component, diverging)))
    return "\n".join(parts)


def _trace_heading(component: Component) -> str:
    from html import escape

    figures = f"R-hat {component.r_hat:.3f}, bulk ESS {component.ess:.0f}"
    if np.isnan(component.r_hat):
        figures = "no R-hat"
    return f"<h3>{escape(component.label)}<small>{figures}</small></h3>"


def _diverging(data: ReportData) -> Any:
    """Divergences of shape (chain, draw), where they belong to the draws shown."""
    found = data.stats.get("diverging")
    if found is None or found.shape != (data.chains, data.length):
        return None
    return found.astype(bool)


def _pairs(data: ReportData) -> str:
    shown = data.telling(MAX_PAIRS)
    if len(shown) < 2:
        return note("Left out: it takes two components that vary.")
    diverging = _diverging(data)
    count = 0 if diverging is None else int(diverging.sum())
    legend = key(ACCENT, "draws") + (key(WARN, f"{count} divergent") if count else "")
    words = f"The {len(shown)} that mix worst, each variable represented first. " * (
        len(shown) < data.size
    )
    if diverging is None:
        words += "The file does not say which draws diverged."
    elif count:
        words += "Divergences that crowd in one place show where the sampler could not go."
    else:
        words += "No draw diverged."
    picture = figure(sampling.pair_picture(shown, diverging))
    return f'{note(words)}<p class="caption">{legend}</p>{picture}'


def _energy(data: ReportData) -> str:
    energy = data.stats.get("energy")
    if energy is None:
        found = "no entry energy in" if "sample_stats" in data.groups else "no group"
        return note(f"Left out: there is {found} sample_stats.")
    if not np.isfinite(energy).any() or np.nanmax(energy) == np.nanmin(energy):
        return note("Left out: the energies do not vary or are not finite.")
    words = (
        "Where the changes are much narrower than the energies themselves, the sampler explores "
        "the tails slowly. E-BFMI by chain: "
    )
    words += ", ".join(f"{value:.2f}" for value in ebfmi(energy)) + " (above 0.3 is good)."
    return note(words) + figure(sampling.energy_picture(energy.astype(np.float64)))


def _ppc(data: ReportData) -> str:
    missing = [g for g in ("posterior_predictive", "observed_data") if g not in data.groups]
    if missing:
        return note(f"Left out: there is no group {' or '.join(missing)}.")
    found, notes = predictive.matched_predictions(data)
    parts = [note(text) for text in notes]
    if found:
        parts.insert(
            0,
            note(
                "Left: all observations and replicated data sets. Right: each observation with "
                "its 50 and 90 % predictive intervals (for zeros and ones: the share of ones, by "
                "predicted probability, with 90 % intervals); red ones lie outside."
            ),
        )
    for predicted in found:
        parts.append(_predicted_heading(predicted))
        parts.append(figure(predictive.ppc_picture(predicted)))
        rows = [
            (
                name,
                [
                    *(Cell(v, number(v, 3)) for v in (value, low, high)),
                    Cell(share, f"{share:.2f}", share < 0.025 or share > 0.975),
                ],
            )
            for name, value, low, high, share in predictive.statistics_rows(predicted)
        ]
        head = ["", "observed", "replicated 5 %", "replicated 95 %", "P(replicated > observed)"]
        parts.append(number_table(head, rows, sortable=False))
    return "\n".join(parts)


def _predicted_heading(predicted: predictive.Predicted) -> str:
    from html import escape

    count = predicted.observed.size
    limit = predictive.MAX_INTERVALS
    cut = count > limit and not predictive.is_binary(predicted)
    few = f", {limit} of them on the right" if cut else ""
    return f"<h3>{escape(predicted.name)}<small>{_many(count, 'observation')}{few}</small></h3>"


def _loo(data: ReportData) -> str:
    if "log_likelihood" not in data.groups:
        return note("Left out: there is no group log_likelihood.")
    if not data.loo:
        return note("Left out: no pointwise log likelihood (chain, draw, observation) was found.")
    return "\n".join(_loo_of(data, name) for name in data.loo)


def _loo_of(data: ReportData, name: str) -> str:
    from html import escape

    result, kept = data.loo[name]
    parts = [f"<h3>{escape(name)}<small>{escape(str(result))}</small></h3>"]
    total = int(np.prod(data.log_likelihood[name].shape[2:]))
    if kept.size == MAX_OBSERVATIONS < total:
        parts.append(note(f"From {kept.size:,} of {total:,} observations, evenly spaced."))
    missing = [
        g
        for g in ("posterior_predictive", "observed_data")
        if g not in data.groups or name not in data.groups[g]
    ]
    if missing:
        parts.append(note(f"LOO-PIT left out: {name} is not in {' nor in '.join(missing)}."))
    else:
        parts.append(_pit(data, name))
    parts.append(
        note(
            "Pareto k of each observation: from the dashed line up, leaving that one out changes "
            "the posterior too much for the estimate."
        )
    )
    parts.append(figure(predictive.khat_picture(result.khat, result.good_k, name)))
    return "\n".join(parts)


def _pit(data: ReportData, name: str) -> str:
    try:
        pit = predictive.loo_pit(data, name)
    except ValueError as error:
        return note(f"LOO-PIT left out: {error}.")
    picture, inside = predictive.loo_pit_picture(pit, name)
    words = (
        "LOO-PIT: how each observation ranks in its leave-one-out prediction, as distance from "
        "uniform, with a 95 % band for the whole curve. "
    )
    words += (
        "It stays in the band: calibrated as far as these data can tell."
        if inside
        else "It leaves the band: predictions are too wide where the curve goes from below to "
        "above, too narrow where from above to below, and shifted where it stays on one side."
    )
    return note(words) + figure(picture)
