"""What the report needs from groups of datasets, computed once: draws, statistics, verdict, LOO.

Groups come from any library that writes through ArviZ, so names of statistics are brought to one
vocabulary, sites that are not numbers are set aside by name, and what is missing is said in
words (``notes``) instead of raised. Only a posterior without draws is an error.

Cost: the diagnostics of all components, O(components x draws), and one Pareto fit for each of at
most ``MAX_OBSERVATIONS`` observations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._diagnostics import diagnose
from ._psis import Loo, loo
from ._verdict import Check, Verdict, loo_checks, mcmc_checks

if TYPE_CHECKING:
    import xarray

MAX_OBSERVATIONS = 2000

# One name for what the samplers call differently (old ArviZ files, nutpie, Stan's own columns).
_STAT_NAMES = {
    "accept_stat": "acceptance_rate",
    "depth": "tree_depth",
    "lp__": "lp",
    "logp": "lp",
    "maxdepth_reached": "reached_max_treedepth",
    "mean_tree_accept": "acceptance_rate",
    "n_leapfrog": "n_steps",
    "stepsize": "step_size",
    "treedepth": "tree_depth",
    "tree_size": "n_steps",
}


def verdict_to_json(verdict: Verdict) -> str:
    """A verdict as text, for the global attribute ``verdict`` of a saved file."""
    checks = [asdict(c) for c in verdict.checks]
    return json.dumps({"status": verdict.status, "notes": verdict.notes, "checks": checks})


def verdict_from_json(text: str) -> Verdict:
    """Undo :func:`verdict_to_json`."""
    found = json.loads(text)
    checks = tuple(Check(**check) for check in found["checks"])
    return Verdict(checks, found["status"], tuple(found.get("notes", ())))


@dataclass(frozen=True)
class Component:
    """One scalar of a site: its label, its draws (chain, draw), and two of its diagnostics."""

    site: str
    label: str
    draws: NDArray
    r_hat: float
    ess: float


class ReportData:
    """Groups of datasets, read for the report.

    Args:
        groups: ArviZ group names to datasets.
        attrs: global attributes of the file they come from.

    Raises:
        ValueError: no posterior group, or one in which no variable has numeric draws.
    """

    def __init__(
        self, groups: Mapping[str, xarray.Dataset], attrs: Mapping[str, Any] | None = None
    ) -> None:
        if "posterior" not in groups:
            raise ValueError(
                "report: expected a group 'posterior', found "
                f"{', '.join(map(repr, groups)) or 'no groups'}; a report needs posterior draws."
            )
        self.groups = dict(groups)
        self.attrs = dict(attrs or {})
        self.notes: list[str] = []
        self._posterior = _with_chains(self.groups["posterior"])
        self.draws, skipped = numeric_draws(self._posterior)
        if not self.draws:
            raise ValueError(
                "report: no variable of the group 'posterior' has draws; expected numbers with "
                f"dims chain and draw, found {_shapes(self._posterior)}."
            )
        if skipped:
            self.notes.append("Left out, as they are not draws of numbers: " + ", ".join(skipped))
        self.chains, self.length = next(iter(self.draws.values())).shape[:2]

    def label(self, site: str, index: tuple[int, ...]) -> str:
        """``theta[Choate]``: a component by its coordinates, or positions where it has none."""
        return component_label(self._posterior[site], index)

    @cached_property
    def stats(self) -> dict[str, NDArray]:
        """Statistics of shape (chain, draw) under this package's names."""
        if "sample_stats" not in self.groups:
            return {}
        group = _with_chains(self.groups["sample_stats"])
        found = {
            str(name): values.transpose("chain", "draw").values
            for name, values in group.items()
            if set(values.dims) == {"chain", "draw"} and values.dtype.kind in "iufb"
        }
        for name in list(found):
            found.setdefault(_STAT_NAMES.get(name, name), found[name])
        return found

    @cached_property
    def _ranked(self) -> list[tuple[float, str, int, float, float]]:
        """Every component with its trouble, R-hat and ESS, in the file's order."""
        out = []
        for site, values in self.draws.items():
            figures = diagnose(values.astype(np.float64))
            r_hat, ess = figures["r_hat"].ravel(), figures["ess_bulk"].ravel()
            broken = ~np.isfinite(values).all(axis=(0, 1)).ravel()
            excess = np.nan_to_num((r_hat - 1) / 0.01, nan=0.0, posinf=np.inf)
            lack = np.where(ess > 0, 100.0 * self.chains / np.where(ess > 0, ess, 1), 0.0)
            trouble = np.where(broken, np.inf, np.maximum(excess, lack))
            out += [
                (float(trouble[i]), site, i, float(r_hat[i]), float(ess[i]))
                for i in range(r_hat.size)
            ]
        return out

    @property
    def size(self) -> int:
        """The number of scalar components of the posterior."""
        return len(self._ranked)

    def all_or_worst(self, limit: int) -> list[Component]:
        """All components in the file's order, or the ``limit`` worst by R-hat and ESS."""
        if self.size <= limit:
            return [self._component(row) for row in self._ranked]
        worst = sorted(self._ranked, key=lambda row: -row[0])[:limit]
        return [self._component(row) for row in worst]

    def telling(self, limit: int) -> list[Component]:
        """At most ``limit`` components that vary: the worst of each site first, then the rest."""
        ranked = sorted(self._ranked, key=lambda row: -row[0])
        first: dict[str, Any] = {}
        for row in ranked:
            first.setdefault(row[1], row)
        order = [*first.values(), *(row for row in ranked if first[row[1]] is not row)]
        found: list[Component] = []
        for row in order:
            component = self._component(row)
            values = component.draws[np.isfinite(component.draws)]
            # A quantity and its copy (theta and theta_base under one name) would fill the plot.
            copy = any(np.array_equal(component.draws, other.draws) for other in found)
            if values.size and np.ptp(values) > 0 and not copy:
                found.append(component)
            if len(found) == limit:
                break
        return found

    def _component(self, row: tuple[float, str, int, float, float]) -> Component:
        _, site, flat, r_hat, ess = row
        values = self.draws[site]
        index = tuple(int(i) for i in np.unravel_index(flat, values.shape[2:]))
        draws = values[(slice(None), slice(None), *index)].astype(np.float64)
        return Component(site, self.label(site, index), draws, r_hat, ess)

    @cached_property
    def log_likelihood(self) -> dict[str, xarray.DataArray]:
        """Pointwise log likelihoods, dims chain, draw, observations; at most so many of them."""
        if "log_likelihood" not in self.groups:
            return {}
        group = _with_chains(self.groups["log_likelihood"])
        found = {}
        for name, values in group.items():
            # A sum over the observations has no dims left, and no leave-one-out.
            if not {"chain", "draw"} < set(values.dims) or values.dtype.kind != "f":
                continue
            found[str(name)] = values.transpose("chain", "draw", ...)
        return found

    @cached_property
    def loo(self) -> dict[str, tuple[Loo, NDArray]]:
        """Leave-one-out by observed variable, with the flat positions of those computed."""
        out = {}
        for name, values in self.log_likelihood.items():
            flat = values.values.reshape(*values.shape[:2], -1)
            usable = np.flatnonzero(np.isfinite(flat).all(axis=(0, 1)))
            if not usable.size:
                self.notes.append(f"The log likelihood of {name} is not finite: no leave-one-out.")
                continue
            kept = thinned(usable, MAX_OBSERVATIONS)
            out[name] = (loo(flat[:, :, kept]), kept)
        return out

    @cached_property
    def verdict(self) -> Verdict:
        """The verdict saved with the draws, or else one judged from what the groups hold."""
        if isinstance(self.attrs.get("verdict"), str):
            try:
                return verdict_from_json(self.attrs["verdict"])
            except (ValueError, KeyError, TypeError):
                self.notes.append("The verdict saved in the file could not be read; judged anew.")
        checks = mcmc_checks(self.draws, self.stats, labels=self.label)
        for name, (result, kept) in self.loo.items():
            values = self.log_likelihood[name]

            def name_of(index: tuple[int, ...], values: Any = values, kept: Any = kept) -> str:
                full = np.unravel_index(kept[index[0]], values.shape[2:])
                return component_label(values, tuple(int(i) for i in full))

            checks += loo_checks(result, labels=name_of)
        return Verdict(tuple(checks))


def numeric_draws(group: xarray.Dataset) -> tuple[dict[str, NDArray], list[str]]:
    """Arrays (chain, draw, ...) of the numeric variables, and the names of the others."""
    draws: dict[str, NDArray] = {}
    skipped = []
    for name, values in group.items():
        if {"chain", "draw"} <= set(values.dims) and values.dtype.kind in "iufb" and values.size:
            array = values.transpose("chain", "draw", ...).values
            draws[str(name)] = array.astype(np.int8) if array.dtype.kind == "b" else array
        else:
            skipped.append(str(name))
    return draws, skipped


def component_label(values: xarray.DataArray, index: tuple[int, ...]) -> str:
    """``name[coordinate, ...]`` of one component of a DataArray with dims chain, draw first."""
    dims = [dim for dim in values.dims if dim not in ("chain", "draw")]
    parts = [
        _text(values.coords[dim].values[i]) if dim in values.coords else str(i)
        for dim, i in zip(dims, index, strict=True)
    ]
    return f"{values.name}[{', '.join(parts)}]" if parts else str(values.name)


def thinned(positions: NDArray, limit: int) -> NDArray:
    """At most ``limit`` of the positions, evenly spaced."""
    if len(positions) <= limit:
        return positions
    return positions[np.linspace(0, len(positions) - 1, limit).round().astype(int)]


def _text(value: Any) -> str:
    if isinstance(value, np.datetime64):
        text = np.datetime_as_string(value)
        return text.split(".")[0].removesuffix("T00:00:00")
    if isinstance(value, float | np.floating):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _with_chains(group: xarray.Dataset) -> xarray.Dataset:
    """A group of one chain that nobody numbered gets the dim ``chain``."""
    if "draw" in group.dims and "chain" not in group.dims:
        return group.expand_dims("chain")
    return group


def _shapes(group: xarray.Dataset) -> str:
    found = [f"{name}({', '.join(map(str, v.dims))}) {v.dtype}" for name, v in group.items()]
    return "; ".join(found[:5]) or "no variables"
