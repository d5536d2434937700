"""Prediction: the model's graph with other names given, simulated for every draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from probkit.core import Target
from probkit.core._target import HELD
from probkit.results._groups import dataset
from probkit.results._values import map_draws

if TYPE_CHECKING:
    import xarray

    from probkit.results._posterior import Posterior


def rebound(p: Posterior, data: Any, coords: Mapping[str, Any] | None) -> Target:
    """The model bound to new data, with the training's categories, coords and centring."""
    rebind = p.target.labels.rebind
    if rebind is None:
        raise ValueError(
            "predict: this posterior's target was not made from a model and data, so there is "
            "nothing to bind new data to; declare a Model"
        )
    return rebind(data, coords=coords, like=p.target)


def held_values(p: Posterior, target: Target) -> dict[str, np.ndarray]:
    """Draws of the latent sites that new data do not touch, one row a draw."""
    old, new = p.target, target
    fresh = {
        d
        for d in new.program.sizes
        if d in old.program.sizes
        and (d == new.labels.rows or not _same(old.coords.get(d), new.coords.get(d)))
    }
    if new is old:
        fresh = set()
    out = {}
    for name, value in p.values.items():
        site = new.sites.get(name)
        if site is None or old.sites[name].kind not in HELD:
            continue
        if site.shape == old.sites[name].shape and not set(site.dims) & fresh:
            out[name] = value.reshape(-1, *value.shape[2:])
    return out


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None or len(a) != len(b):
        return False
    return bool(np.all(np.asarray(a) == np.asarray(b)))


def simulated(
    p: Posterior, target: Target, key: np.ndarray, kinds: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Simulated sites (observed in training, or deterministic) for every draw."""
    held = held_values(p, target)
    program = target.program
    old = p.target.sites
    wanted = [k for k, s in old.items() if s.kind in kinds and s.distribution != "factor"]

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        out = program.simulate(key, {k: row[k] for k in held}, arrays)
        return {k: out[k] for k in wanted if k in out}

    lead = p._drawn.unconstrained.shape[:2]
    rows = {**held, "__index__": np.zeros((lead[0] * lead[1], 1), np.float32)}
    size = sum(int(np.prod(program.sites[k].shape)) for k in wanted if k in program.sites)
    name = f"simulate:{','.join(sorted(held))}:{','.join(wanted)}"
    out = map_draws(target, name, fn, rows, key, size=size)
    return {k: v.reshape(lead + v.shape[1:]) for k, v in out.items()}


def predictions(
    p: Posterior, data: Any, coords: Mapping[str, Any] | None, seed: int
) -> dict[str, xarray.Dataset]:
    """The ``predictions`` groups for new data."""
    target = rebound(p, data, coords)
    values = simulated(p, target, p._stream(1000 + seed), ("observed", "deterministic"))
    rows = target.labels.rows
    keep = {
        k: v
        for k, v in values.items()
        if p.target.sites[k].kind == "observed" or rows in target.sites[k].dims
    }
    out = {"predictions": dataset(target, keep)}
    if target.labels.constants:
        out["predictions_constant_data"] = dataset(target, dict(target.labels.constants), ())
    return out


def log_predictive(
    p: Posterior, data: Any, coords: Mapping[str, Any] | None, seed: int
) -> xarray.DataArray | xarray.Dataset:
    """See `Posterior.log_predictive`."""
    import xarray
    from scipy.special import logsumexp

    target = rebound(p, data, coords)
    if not target.labels.observed:
        raise ValueError(
            "log_predictive: the new data hold no observed variable to score; expected at least "
            f"one of {sorted(k for k, s in p.target.sites.items() if s.kind == 'observed')}"
        )
    program = target.program
    held = held_values(p, target)

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        return program.score(key, {k: row[k] for k in held}, arrays)

    rows = {**held, "__index__": np.zeros((_count(p), 1), np.float32)}
    size = sum(int(np.prod(s.shape)) for s in program.sites.values() if s.kind == "observed")
    name = f"score:{','.join(sorted(held))}"
    terms = map_draws(target, name, fn, rows, p._stream(2000 + seed), size=size)
    averaged = {k: logsumexp(v, axis=0) - np.log(v.shape[0]) for k, v in terms.items()}
    found = dataset(target, averaged, ())
    return found[next(iter(averaged))] if len(averaged) == 1 else xarray.Dataset(found)


def _count(p: Posterior) -> int:
    lead = p._drawn.unconstrained.shape[:2]
    return int(lead[0] * lead[1])
