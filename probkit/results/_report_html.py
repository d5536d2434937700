"""The page of the report: its style, its tables, its banner. Strings in, one HTML string out.

The page is one file without anything from outside: colours by CSS variables for light, dark and
print, and one small script that sorts tables (the page is complete without it). A content policy
allows that script only, so nothing that arrives in a name, an attribute or a graph can run.
Everything that is not a finished SVG is escaped here.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ._verdict import Check, Verdict

_TITLES = {
    "r_hat": "R-hat: do the chains agree?",
    "ess_bulk": "Bulk ESS: independent draws for the centre",
    "ess_tail": "Tail ESS: independent draws for the tails",
    "mcse": "Monte Carlo error of the mean, in posterior sd",
    "divergences": "Divergent transitions",
    "e_bfmi": "E-BFMI: does the energy mix?",
    "tree_depth": "Trajectories cut short",
    "non_finite": "Draws that are not finite",
    "stuck_chains": "Chains that do not move",
    "k_hat": "Pareto k-hat of the approximation",
    "ess_ratio": "Importance ESS over draws",
    "loo_k": "Observations with a high Pareto k in LOO",
}

STYLE = """
:root { color-scheme: light dark; --ink:#1c2430; --muted:#5b6675; --grid:#c9d0d9; --card:#ffffff;
  --page:#f4f6f8; --line:#e1e6eb; --good:#16794c; --goodbg:#e3f4ea; --bad:#b3261e; --badbg:#fdeae8;
  --warnbg:#fff3d6; --link:#2563ab; }
@media (prefers-color-scheme: dark) { :root { --ink:#e8ecf1; --muted:#9aa6b5; --grid:#465160;
  --card:#1b2129; --page:#12161b; --line:#2d3641; --good:#5fd39a; --goodbg:#143325; --bad:#ff8f86;
  --badbg:#41201e; --warnbg:#45381a; --link:#7db4f0; } }
@media print { :root { color-scheme: light; --ink:#000; --muted:#444; --grid:#bbb; --card:#fff;
  --page:#fff; --line:#ccc; --good:#16794c; --goodbg:#eef7f1; --bad:#b3261e; --badbg:#fbefee;
  --warnbg:#fff8e6; --link:#000; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin:0; background:var(--page); color:var(--ink); line-height:1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.6rem; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 6px; }
h3 { font-size: .93rem; margin: 18px 0 2px; font-weight: 600; overflow-wrap: anywhere; }
h3 small { font-weight: 400; color: var(--muted); margin-left: 10px; }
p { margin: 4px 0 10px; } .lead, .note, .caption { color: var(--muted); font-size: .88rem; }
nav { display:flex; flex-wrap:wrap; gap: 4px 16px; margin: 14px 0; font-size:.88rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
section, .verdict { background:var(--card); border:1px solid var(--line); border-radius:10px;
  padding: 18px 20px; margin: 14px 0; }
.verdict { border-left: 8px solid var(--muted); } .verdict h2 { font-size:1.25rem; }
.verdict.good { border-left-color: var(--good); background: var(--goodbg); }
.verdict.bad { border-left-color: var(--bad); background: var(--badbg); }
.good h2 { color: var(--good); } .bad h2 { color: var(--bad); }
.verdict ul { margin: 8px 0; padding-left: 0; list-style: none; }
.verdict li { margin: 8px 0; padding: 9px 12px; background: var(--card); border-radius: 7px; }
.verdict li p { margin: 2px 0 0; font-size: .92rem; }
details summary { cursor: pointer; color: var(--muted); font-size: .9rem; }
.scroll { overflow-x: auto; max-height: 560px; overflow-y: auto; border: 1px solid var(--line);
  border-radius: 7px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .85rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
table.text td, table.text th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.text td:first-child { white-space: nowrap; width: 1%; }
td { border-top: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: var(--card); color: var(--muted);
  font-weight: 600; z-index: 1; box-shadow: 0 1px 0 var(--line); }
tbody th { font-weight: 500; text-align: left; border-top: 1px solid var(--line); }
table.sortable thead th { padding: 0; }
th button { all: unset; cursor: pointer; padding: 6px 10px; display:block; text-align: inherit; }
th button:focus-visible { outline: 2px solid var(--link); outline-offset: -2px; }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: .7em; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: .7em; }
.flag { color: var(--bad); font-weight: 650; }
.key { display:inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 5px;
  vertical-align: -1px; } .entry { white-space: nowrap; margin-right: 10px; }
figure { margin: 0; overflow-x: auto; } svg { max-width: 100%; height: auto; display: block;
  margin: 0 auto; } .graph svg { max-height: 640px; }
.warn { background: var(--warnbg); border-radius: 7px; padding: 7px 12px; font-size: .9rem; }
footer { color: var(--muted); font-size: .8rem; margin-top: 20px; }
@media (max-width: 640px) { main { padding: 14px 10px; } section, .verdict { padding: 12px; }
  figure svg { max-width: none; min-width: 600px; } }
@media print { main { max-width: none; padding: 0; } nav, th button::after { display: none; }
  section, .verdict { border: 0; padding: 0; margin: 18px 0; }
  .verdict { border-left: 8px solid; padding-left: 14px; }
  .scroll { max-height: none; overflow: visible; border: 0; } table { font-size: 8pt; }
  th, td { padding: 2px 5px; } figure, tr, li { break-inside: avoid; }
  h2, h3 { break-after: avoid; } body { -webkit-print-color-adjust: exact;
  print-color-adjust: exact; } thead th { position: static; } }
"""

SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("thead th").forEach(function (head, column) {
    head.querySelector("button").addEventListener("click", function () {
      var up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach(function (h) { h.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      var body = table.tBodies[0];
      Array.from(body.rows).sort(function (a, b) {
        var x = a.cells[column].dataset.v, y = b.cells[column].dataset.v;
        var p = parseFloat(x), q = parseFloat(y), order;
        if (column === 0) { order = x - y; }
        else if (isNaN(p) || isNaN(q)) { return isNaN(p) - isNaN(q); }
        else { order = p - q; }
        return up ? order : -order;
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
});
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: ``body`` is finished HTML."""

    anchor: str
    title: str
    body: str


def page(title: str, lead: str, verdict: str, sections: Iterable[Section]) -> str:
    """The whole document."""
    parts = list(sections)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in parts)
    body = "\n".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>\n{s.body}</section>' for s in parts
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{verdict}\n'
        f"<nav>{links}</nav>\n{body}\n<footer>Written by probkit. This page needs nothing from "
        f"outside itself.</footer>\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def banner(verdict: Verdict) -> str:
    """The verdict: its headline, the failed checks with advice, and all checks in a fold."""
    kind = "good" if verdict.ok else "bad"
    failed = "".join(
        f"<li><strong>{escape(_TITLES.get(c.name, c.name))}</strong> "
        f'<span class="flag">{number(c.value)}</span> (needs {_need(c)})'
        f"{': ' + escape(c.where) if c.where else ''}<p>{escape(_sentence(c.advice))}</p></li>"
        for c in verdict.failed
    )
    status = f"<p>How the run ended: {escape(verdict.status)}.</p>" if verdict.status else ""
    rows = [
        (
            _TITLES.get(c.name, c.name),
            {True: "passed", False: "failed", None: "not judged"}[c.ok],
            number(c.value),
            _need(c),
            "; ".join(filter(None, (c.where, c.advice if c.ok is not False else ""))),
        )
        for c in verdict.checks
    ]
    table = text_table(("Check", "Result", "Figure", "Needs", "Where, and remarks"), rows)
    body = f"<ul>{failed}</ul>" if failed else ""
    count = f"all {len(rows)} checks" if len(rows) != 1 else "the one check"
    return (
        f'<div class="verdict {kind}" id="verdict"><h2>{escape(verdict.headline())}</h2>{status}'
        f"{body}<details><summary>{count}</summary>{table}</details></div>"
    )


def _need(check: Check) -> str:
    if check.threshold == 0 and check.direction == "<":
        return "0"
    return f"{check.direction} {number(check.threshold)}"


def _sentence(text: str) -> str:
    text = text.strip()
    end = "" if not text or text[-1] in ".!?" else "."
    return text[:1].upper() + text[1:] + end


def note(text: str) -> str:
    """A muted line."""
    return f'<p class="note">{escape(text)}</p>'


def warn(text: str) -> str:
    """A line that asks for attention."""
    return f'<p class="warn">{escape(text)}</p>'


def figure(svg: str) -> str:
    """A finished SVG in the page."""
    return f"<figure>{svg}</figure>"


def key(color: str, text: str) -> str:
    """An entry of a legend."""
    mark = f'<span class="key" style="background:{color}"></span>'
    return f'<span class="entry">{mark}{escape(text)}</span> '


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of words."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    head_html = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table class="text">{head_html}<tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Cell:
    """A number in a table: what is sorted, what is shown, and whether it stands out."""

    value: float
    text: str
    flag: bool = False


def number_table(
    head: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]], sortable: bool = True
) -> str:
    """A table of numbers with a label in front of each row; a click on a head sorts."""
    wrap = (lambda h: f'<button type="button">{h}</button>') if sortable else (lambda h: h)
    top = "".join(f'<th scope="col">{wrap(escape(h))}</th>' for h in head)
    lines = []
    for position, (label, cells) in enumerate(rows):
        tds = "".join(
            f'<td data-v="{float(cell.value)!r}"{" class=flag" if cell.flag else ""}>'
            f"{escape(cell.text)}</td>"
            for cell in cells
        )
        lines.append(f'<tr><th scope="row" data-v="{position}">{escape(label)}</th>{tds}</tr>')
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def number(value: float, digits: int = 4) -> str:
    """A figure for reading: whole numbers whole, others to a few digits, NaN as a dash."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{int(value)}"
    return f"{value:.0f}" if 100 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def fixed(value: float, scale: float) -> str:
    """A figure with as many decimals as make three digits of ``scale`` (a standard deviation)."""
    if not math.isfinite(value) or not math.isfinite(scale) or scale <= 0:
        return number(value)
    decimals = 2 - math.floor(math.log10(scale))
    if decimals > 6 or abs(value) >= 1e7:
        return f"{value:.4g}"
    text = f"{value:.{max(decimals, 0)}f}"
    return text.removeprefix("-") if float(text) == 0 else text
