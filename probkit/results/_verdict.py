"""The verdict on a posterior: what was checked, what was found, and what to do about it.

A `Verdict` is a tuple of `Check` entries with a headline; it prints as plain text in a terminal
and as a small table in a notebook, and imports nothing heavy, because the first fit of a session
ends in printing one. The checks themselves, and their thresholds, are in `_checks`.

A verdict is good if something was judged and nothing that was judged failed. A check that could
not be judged (every component constant, a statistic that is not finite) does not make it bad; the
headline counts those.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ._checks import Check as Check
from ._checks import Labels as Labels
from ._checks import importance_checks as importance_checks
from ._checks import loo_checks as loo_checks
from ._checks import mcmc_checks as mcmc_checks
from ._checks import plain_label as plain_label

_TITLES = {
    "r_hat": "R-hat",
    "ess_bulk": "ESS bulk",
    "ess_tail": "ESS tail",
    "divergences": "divergences",
    "k_hat": "k-hat",
    "ess_ratio": "ESS/N",
    "modes": "lost modes",
    "loo_k": "high LOO k",
}
_COUNTS = {"divergences", "loo_k"}


@dataclass(frozen=True)
class Verdict:
    """All checks of a posterior. ``print`` it: one headline, then one line a check.

    Attributes:
        checks: the entries; ``verdict["r_hat"]`` is one of them.
        status: how the run ended, in words, where it did not do all of its steps.
        notes: figures that have no threshold (the ELBO with its error, for one), in words.

    Example:
        >>> verdict = Verdict((Check("r_hat", False, 1.2, 1.01, "theta[3]", "run longer"),))
        >>> verdict.ok, verdict["r_hat"].where
        (False, 'theta[3]')
        >>> print(verdict)
        NOT OK: 1 of 1 checks failed
          FAIL  r_hat         1.2  (needs < 1.01)  theta[3]
                run longer
    """

    checks: tuple[Check, ...] = field(default=())
    status: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether something was judged, and nothing that was judged failed."""
        judged = [check.ok for check in self.checks if check.ok is not None]
        return bool(judged) and all(judged)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.ok is False)

    @property
    def unjudged(self) -> tuple[Check, ...]:
        """The checks that could not be judged."""
        return tuple(check for check in self.checks if check.ok is None)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __contains__(self, name: object) -> bool:
        return any(check.name == name for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        from probkit.core._errors import listing, nearest

        names = [check.name for check in self.checks]
        raise KeyError(
            f"Verdict: no check named {name!r}.{nearest(name, names)} Checks: {listing(names)}."
        )

    def headline(self) -> str:
        """The verdict in one line."""
        failed, unjudged = len(self.failed), len(self.unjudged)
        if failed:
            text = f"NOT OK: {failed} of {len(self.checks)} checks failed"
        elif unjudged == len(self.checks):
            text = "NOT OK: nothing could be judged"
        else:
            found = ", ".join(_mention(c) for c in self.checks if c.name in _TITLES and c.ok)
            text = "OK: nothing found wrong" + (f" ({found})" if found else "")
        return text + (f"; {unjudged} not judged" if 0 < unjudged < len(self.checks) else "")

    def __str__(self) -> str:
        lines = [self.headline()]
        if self.status:
            lines.append(f"  run: {self.status}")
        lines += [f"  {note}" for note in self.notes]
        width = max((len(_figure(c)) for c in self.checks), default=0)
        for check in self.checks:
            mark = {True: "ok  ", False: "FAIL", None: "--  "}[check.ok]
            line = f"  {mark}  {check.name:<12}{_figure(check):>{width + 2}}  ({_needs(check)})"
            lines.append(line + (f"  {check.where}" if check.where else ""))
            if check.advice:
                indent = " " * 8
                lines += textwrap.wrap(
                    check.advice, 100, initial_indent=indent, subsequent_indent=indent
                )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colour = "#1a7f37" if self.ok else "#c62828"
        rows = "".join(_html_row(check) for check in self.checks)
        words = ([f"run: {self.status}"] if self.status else []) + list(self.notes)
        status = "".join(f"<p>{html.escape(text)}</p>" for text in words)
        return (
            f"<div class='pk-verdict'><p><b style='color:{colour}'>"
            f"{html.escape(self.headline())}</b></p>{status}"
            "<table><thead><tr><th></th><th>check</th><th>figure</th><th>needs</th><th>where</th>"
            f"<th>advice</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )


def _number(value: float, digits: int = 4) -> str:
    if np.isnan(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.0f}" if 100 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def _figure(check: Check) -> str:
    """The figure with enough digits to tell it from its threshold."""
    for digits in (4, 6, 8):
        text = _number(check.value, digits)
        if text != _number(check.threshold, digits) or check.value == check.threshold:
            break
    return text


def _needs(check: Check) -> str:
    if check.threshold == 0 and check.direction == "<":
        return "needs 0"
    return f"needs {check.direction} {_number(check.threshold)}"


def _mention(check: Check) -> str:
    title = _TITLES[check.name]
    return f"{_figure(check)} {title}" if check.name in _COUNTS else f"{title} {_figure(check)}"


def _html_row(check: Check) -> str:
    mark, colour = {
        True: ("ok", "#1a7f37"),
        False: ("FAIL", "#c62828"),
        None: ("not judged", "#777"),
    }[check.ok]
    cells = (check.name, _figure(check), _needs(check), check.where, check.advice)
    body = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr><td style='color:{colour}'>{mark}</td>{body}</tr>"
