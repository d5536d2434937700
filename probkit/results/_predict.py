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


def held_values(
    p: Posterior, target: Target, coords: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Draws of the latent sites that new data do not touch, one row a draw.

    A site along a dim with new labels is a pair ``(draws, mask)``: the entries of labels that were
    there at training are held, and the others are to be drawn. Rows are new unless ``coords`` say
    which they are.
    """
    out: dict[str, Any] = _carried(p, target)
    for name, value in p.values.items():
        if name in out:
            continue
        old, new = p.target.sites[name], target.sites.get(name)
        if new is None or old.kind not in HELD or old.dims != new.dims:
            continue
        if new.kind == "observed":
            continue  # the new data give its value
        if old.kind == "imputed" and target is not p.target:
            continue  # the holes of other data
        rows = value.reshape(-1, *value.shape[2:])
        places = {}
        for axis, dim in enumerate(old.dims):
            found = _places(p.target, target, dim, dim in (coords or {}))
            if found is not None:
                places[axis] = found
            elif old.shape[axis] != new.shape[axis]:
                places[axis] = np.full(new.shape[axis], -1)
        if not places:
            out[name] = rows
            continue
        held = _entries(rows, new.shape, places)
        if held[1].all():
            out[name] = held[0]  # the same labels in another order, or some of them
            continue
        apart = {old.dims.index(d) for d in target.program.independent_dims(name)}
        joint = [old.dims[i] for i in sorted(set(places) - apart)]
        _check_part(target, name, joint, held[1][0], coords or {})
        if held[1].any():
            out[name] = held
    return out


def _check_part(
    target: Target, name: str, joint: list[str], known: np.ndarray, coords: Mapping[str, Any]
) -> None:
    """Raise if new entries depend on known ones in a way that nothing can be drawn from.

    Args:
        joint: the dims with new labels along which the site's entries depend on one another.
        known: which of its entries are known, of the site's shape.
    """
    if not joint:
        return
    time = target.program.time_dim(name)
    if joint == [time]:
        along = np.moveaxis(known, target.sites[name].dims.index(time), 0)
        if known.any() and np.all(along[:-1] >= along[1:]):
            return  # a forecast: the chain goes on from its last known state
        if not known.any() and time not in coords:
            return  # other rows: a chain of their own
        raise ValueError(
            f"predict: site {name!r} is a chain along {time!r}; expected coords[{time!r}] to have "
            "labels that were there at training first and new ones after them (a forecast goes on "
            "from the last), or only labels of training"
        )
    if known.any():
        raise ValueError(
            f"predict: site {name!r} has entries along {joint[0]!r} that were fitted and others "
            f"that are new, but its entries there depend on one another; expected labels of "
            f"{joint[0]!r} that were all there at training, or none of them (then the site is "
            "drawn afresh)"
        )


def _carried(p: Posterior, target: Target) -> dict[str, Any]:
    """What Gaussian processes at new points are drawn from, one row a draw."""
    moved = target.arrays.get("process", {})
    if not moved or target is p.target:
        return {}
    program = p.target.program
    latent = {k: v for k, v in p.values.items() if p.target.sites[k].kind in HELD}
    rows = {k: v.reshape(-1, *v.shape[2:]) for k, v in latent.items()}

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        return program.carried(row, arrays)

    return {k: v for k, v in map_draws(p.target, "carried", fn, rows, p._key).items() if k in moved}


def _places(old: Target, new: Target, dim: str, given: bool) -> np.ndarray | None:
    """For each label of a dim, its place at training (-1: none); None if all are as they were."""
    if new is old or dim not in old.program.sizes or dim not in new.program.sizes:
        return None
    before, after = old.coords.get(dim), new.coords.get(dim)
    if before is None or after is None:
        return None
    if dim == new.labels.rows and not given:
        return np.full(len(after), -1)
    if len(before) == len(after) and np.all(np.asarray(before) == np.asarray(after)):
        return None
    index = {label: i for i, label in enumerate(np.asarray(before).tolist())}
    return np.array([index.get(label, -1) for label in np.asarray(after).tolist()], int)


def _entries(
    rows: np.ndarray, shape: tuple[int, ...], places: Mapping[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws taken at ``places`` along the new axes, and where these exist (both a row a draw)."""
    mask = np.ones(shape, bool)
    for axis, found in places.items():
        rows = np.take(rows, np.maximum(found, 0), axis=axis + 1)
        mask &= (found >= 0).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return rows, np.broadcast_to(mask, (len(rows), *shape))


def simulated(
    p: Posterior,
    target: Target,
    key: np.ndarray,
    kinds: tuple[str, ...],
    coords: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Simulated sites (observed in training, or deterministic) for every draw."""
    held = held_values(p, target, coords)
    program = target.program
    old = p.target.sites
    wanted = [k for k, s in old.items() if s.kind in kinds and s.distribution != "factor"]
    wanted += list(target.arrays.get("process", {}))

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        out = program.simulate(key, {k: row[k] for k in held}, arrays)
        return {k: out[k] for k in wanted if k in out}

    lead = p._drawn.unconstrained.shape[:2]
    rows = {**held, "__index__": np.zeros((lead[0] * lead[1], 1), np.float32)}
    alike = _alike(p, target, held)
    rows = {k: v for k, v in rows.items() if k not in (alike or {})}
    size = sum(int(np.prod(program.sites[k].shape)) for k in wanted if k in program.sites)
    name = f"simulate:{_names(held)}:{','.join(wanted)}"
    out = map_draws(target, name, fn, rows, key, size=size, shared=alike)
    return {k: v.reshape(lead + v.shape[1:]) for k, v in out.items()}


def predictions(
    p: Posterior, data: Any, coords: Mapping[str, Any] | None, seed: int
) -> dict[str, xarray.Dataset]:
    """The ``predictions`` groups for new data."""
    target = rebound(p, data, coords)
    values = simulated(p, target, p._stream(1000 + seed), ("observed", "deterministic"), coords)
    values = {k: _given(target, k, v) for k, v in values.items()}
    outcomes = {k for k, s in p.target.sites.items() if s.kind == "observed"}
    touched = {d for k in outcomes if k in target.sites for d in target.sites[k].dims}
    touched |= {d for k in target.arrays.get("process", {}) for d in target.sites[k].dims}
    keep = {k: v for k, v in values.items() if k in outcomes or set(target.sites[k].dims) & touched}
    out = {"predictions": dataset(target, keep)}
    if target.labels.constants:
        out["predictions_constant_data"] = dataset(target, dict(target.labels.constants), ())
    return out


def _given(target: Target, name: str, drawn: np.ndarray) -> np.ndarray:
    """What others were predicted from: where the new data give a parent's value, that value."""
    known = target.labels.observed.get(name)
    if known is None or not target.program.feeds(name):
        return drawn
    return np.where(np.isnan(known), drawn, known).astype(drawn.dtype)


def log_predictive(
    p: Posterior, data: Any, coords: Mapping[str, Any] | None, seed: int
) -> xarray.DataArray | xarray.Dataset:
    """See `Posterior.log_predictive`."""
    from scipy.special import logsumexp

    target = rebound(p, data, coords)
    if not target.labels.observed:
        raise ValueError(
            "log_predictive: the new data hold no observed variable to score; expected at least "
            f"one of {sorted(k for k, s in p.target.sites.items() if s.kind == 'observed')}"
        )
    rows = _integrated(p, target, data, coords)
    if rows is not None:
        (name,) = rows
        return dataset(target, rows, ())[name]
    program = target.program
    held = held_values(p, target, coords)

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        return program.score(key, {k: row[k] for k in held}, arrays)

    rows = {**held, "__index__": np.zeros((_count(p), 1), np.float32)}
    alike = _alike(p, target, held)
    rows = {k: v for k, v in rows.items() if k not in (alike or {})}
    size = sum(int(np.prod(s.shape)) for s in program.sites.values() if s.kind == "observed")
    name = f"score:{_names(held)}"
    terms = map_draws(target, name, fn, rows, p._stream(2000 + seed), size=size, shared=alike)
    latent = {k for k, s in p.target.sites.items() if s.kind in HELD}
    averaged = {
        k: logsumexp(v, axis=0) - np.log(v.shape[0]) for k, v in terms.items() if k not in latent
    }
    found = dataset(target, averaged, ())
    return found[next(iter(averaged))] if len(averaged) == 1 else found


def _integrated(
    p: Posterior, target: Target, data: Any, coords: Mapping[str, Any] | None
) -> dict[str, np.ndarray] | None:
    """Densities that the method integrates itself, free of the error of draws; None: it cannot.

    That is so where hyperparameters are a point, and no others than were fitted, and where one
    variable is observed, an entry at each row of the function.
    """
    fitted = p.approximation
    if fitted is None or fitted.ahead is None:
        return None
    old = p.target if fitted.source is None else fitted.source
    new = _scored(old, data, coords)
    outcomes = [k for k, s in new.sites.items() if s.kind == "observed"]
    if len(outcomes) != 1 or any(s.distribution == "factor" for s in new.sites.values()):
        return None
    (name,) = outcomes
    try:
        before, latent = old.gaussian_latent, new.gaussian_latent
    except ValueError:
        return None
    along = new.sites[name].dims == (latent.dim,) and latent.rows_apart(new.arrays)
    if not along or not _same_sites(old, new, before.theta.shapes, latent.theta.shapes):
        return None
    found = fitted.ahead(old, fitted, new)
    return {name: np.where(np.isnan(new.labels.observed[name]), np.nan, found)}


def _scored(old: Target, data: Any, coords: Mapping[str, Any] | None) -> Target:
    rebind = old.labels.rebind
    assert rebind is not None
    return rebind(data, coords=coords, like=old, scored=True)


def _same_sites(old: Target, new: Target, before: Mapping, after: Mapping) -> bool:
    """Whether these sites are the same, with the same labels in the same order."""
    if dict(before) != dict(after):
        return False
    dims = {d for k in before if k in old.sites for d in old.sites[k].dims}
    return all(
        np.array_equal(np.asarray(old.coords.get(d, ())), np.asarray(new.coords.get(d, ())))
        for d in dims
    )


def _alike(p: Posterior, target: Target, held: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """What all draws of an approximation have alike, where that is all that a process depends on.

    Hyperparameters at a point: the covariance of new rows is then factorised once, not once a draw.
    """
    processes = target.arrays.get("process", {})
    rest = {k: v for k, v in held.items() if k not in processes}
    if not processes or p.approximation is None or any(isinstance(v, tuple) for v in rest.values()):
        return None
    if all(len(v) and np.array_equal(v, np.broadcast_to(v[:1], v.shape)) for v in rest.values()):
        return {k: np.asarray(v[0]) for k, v in rest.items()}
    return None


def _names(held: Mapping[str, Any]) -> str:
    """Names of what is held, with a mark where it is in part: the key of a compiled program."""
    return ",".join(k + "*" * isinstance(held[k], tuple) for k in sorted(held))


def _count(p: Posterior) -> int:
    lead = p._drawn.unconstrained.shape[:2]
    return int(lead[0] * lead[1])
