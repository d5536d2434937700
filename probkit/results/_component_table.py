"""Diagnostics of every component of every site in one table, and the worst of them as checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probkit.core import Check

from ._diagnostics import MIN_DRAWS, diagnose, never_varies
from ._judging import Labels, judge, plain_label


@dataclass(frozen=True)
class _Part:
    """One site: its name, where its components start in the table, and its shape."""

    name: str
    start: int
    shape: tuple[int, ...]


class Table:
    """Diagnostics of every component of every site, flattened into one row of figures each."""

    def __init__(self, draws: Mapping[str, Any], labels: Labels) -> None:
        self.labels = labels
        self.parts: list[_Part] = []
        self.unread: list[str] = []
        self.chains = self.length = 0
        columns: dict[str, list[NDArray]] = {name: [] for name in _COLUMNS}
        still: list[NDArray] = []
        start = 0
        for name, values in draws.items():
            try:
                found, moved = _figures(values)
                if self.parts and np.shape(values)[:2] != (self.chains, self.length):
                    raise ValueError(
                        f"has {np.shape(values)[:2]} chains and draws, the sites before it "
                        f"{(self.chains, self.length)}"
                    )
            except Exception as error:  # one odd site must not hide the others
                self.unread.append(f"{name} ({type(error).__name__}: {error})")
                continue
            self.chains, self.length = np.shape(values)[:2]
            self.parts.append(_Part(name, start, np.shape(values)[2:]))
            start += found["r_hat"].size
            for key, figures in found.items():
                columns[key].append(figures)
            still.append(moved)
        self.columns = {
            key: np.concatenate(parts) if parts else np.zeros(0) for key, parts in columns.items()
        }
        self.still = np.concatenate(still) if still else np.zeros((0, 0), dtype=bool)

    def label(self, row: int) -> str:
        part = [p for p in self.parts if p.start <= row and np.prod(p.shape, dtype=int)][-1]
        index = np.unravel_index(row - part.start, part.shape) if part.shape else ()
        index = tuple(int(i) for i in index)
        try:
            return self.labels(part.name, index)
        except Exception:  # a name that fails must not cost the figure
            return plain_label(part.name, index)

    def worst(self, name: str, threshold: float, direction: str) -> Check:
        """The worst component, and a note on those that cannot be judged."""
        figures = self.columns[name]
        constant = self.columns["constant"].astype(bool)
        usable = ~constant & ~np.isnan(figures)
        note = self._note(constant, np.isnan(figures) & ~constant)
        if not usable.any():
            # Too few draws is a finding, and a bad one; nothing but constants is none at all.
            few = 0 < self.length < MIN_DRAWS
            why = note or "there is nothing to judge"
            if few:
                why = f"needs at least {MIN_DRAWS} draws a chain, found {self.length}: draw more"
            return Check(name, False if few else None, np.nan, threshold, "", why, direction)
        kept = np.where(usable, figures, -np.inf if direction == "<" else np.inf)
        row = int(kept.argmax() if direction == "<" else kept.argmin())
        # Said once, with the first check; the others leave out the same components.
        note = note if name == "r_hat" else ""
        return judge(name, figures[row], threshold, direction, self.label(row), note)

    def _note(self, constant: NDArray, missing: NDArray) -> str:
        notes = [
            f"{why}, not judged: {self._some(mask)}"
            for why, mask in (("never varies", constant), ("not finite", missing))
            if mask.any()
        ]
        notes += [f"not read: {name}" for name in self.unread]
        return "; ".join(notes)

    def _some(self, mask: NDArray) -> str:
        rows = np.flatnonzero(mask)
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        return ", ".join(self.label(int(row)) for row in rows[:3]) + more

    def non_finite(self) -> Check:
        counts = self.columns["non_finite"]
        if not counts.size:
            return Check("non_finite", None, float("nan"), 0.0, "", "there is nothing to judge")
        row = int(counts.argmax())
        where = self.label(row) if counts[row] else ""
        return judge("non_finite", counts.sum(), 0.0, "<", where)

    def stuck(self) -> Check:
        """Chains in which no component moves, of those that could have moved."""
        if self.length < MIN_DRAWS or not len(self.still):
            why = f"needs at least {MIN_DRAWS} draws a chain and a real-valued site"
            return Check("stuck_chains", None, float("nan"), 0.0, "", why)
        varies = ~self.columns["constant"].astype(bool)[self.columns["real"].astype(bool)]
        # Where some components vary, only those bear witness: a constant never moves. Where none
        # varies at all, every chain sits where it began.
        witness = self.still[varies] if varies.any() else self.still
        chains = np.flatnonzero(witness.all(axis=0))
        named = ", ".join(str(int(c)) for c in chains[:8])
        return judge(
            "stuck_chains", float(len(chains)), 0.0, "<", f"chain {named}" if named else ""
        )


_COLUMNS = ("r_hat", "ess_bulk", "ess_tail", "mcse", "constant", "non_finite", "real")


def _figures(values: ArrayLike) -> tuple[dict[str, NDArray], NDArray]:
    """Figures of one site's components, and which chains stand still (real-valued sites only)."""
    array = np.asarray(values)
    found = diagnose(array)
    count = found["r_hat"].size
    flat = array.reshape(*array.shape[:2], count)
    real = array.dtype.kind == "f"
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = flat.min(axis=1), flat.max(axis=1)
        mcse = found["mcse_mean"].reshape(count) / found["sd"].reshape(count)
    figures = {key: found[key].reshape(count) for key in ("r_hat", "ess_bulk", "ess_tail")}
    figures |= {
        "mcse": mcse,
        "constant": never_varies(array).reshape(count),
        "non_finite": np.sum(~np.isfinite(flat), axis=(0, 1)).astype(float),
        "real": np.full(count, real),
    }
    # A discrete site may rest on one value for a whole chain and be right.
    return figures, (low == high).T if real else np.zeros((0, array.shape[0]), dtype=bool)
