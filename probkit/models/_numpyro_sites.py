"""The sites of a NumPyro model function: what one run of it says of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array
from numpyro import distributions as dist
from numpyro.distributions import biject_to

from probkit.core import listing
from probkit.models._parameters import concrete, constraint_words


@dataclass(frozen=True, eq=False)
class NumpyroSite:
    """What is known of a site of the run.

    Attributes:
        kind, dims, shape: as in `probkit.core.Site`; ``batch`` is the shape's batch part.
        full_shape: the shape of the NumPyro value, with axes that only keep a place for a plate.
        placed: the dim of each axis of the NumPyro value, ``""`` for such a place-holder.
        event: number of event axes.
        plates: the plates that the site is in.
        unconstrained: shape in the unconstrained space.
        enumerable: whether NumPyro can enumerate its values.
        nesting: how far to the left its plates reach.
    """

    kind: str
    dims: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    full_shape: tuple[int, ...] = ()
    placed: tuple[str, ...] = ()
    event: int = 0
    plates: tuple[str, ...] = ()
    unconstrained: tuple[int, ...] = ()
    support: str = ""
    distribution: str = ""
    enumerable: bool = False
    nesting: int = 0


def describe(name: str, site: Mapping[str, Any], given: tuple[str, ...] | None) -> NumpyroSite:
    """What a site of a run of the function is.

    Args:
        name, site: as in NumPyro's trace.
        given: names that the caller gave its axes.

    Raises:
        ValueError: the names do not fit, or its support has no map from the reals.
    """
    kind, support = _kind(site)
    frames = {f.dim: f.name for f in site["cond_indep_stack"] if f.dim is not None}
    plates = tuple(frames.values())
    leftmost = -min(frames, default=0)
    if kind == "factor":
        return NumpyroSite(kind, plates=plates, nesting=leftmost)
    full = tuple(jnp.shape(site["value"]))
    fn = site["fn"] if site["type"] == "sample" else None
    event = len(fn.event_shape) if fn is not None else 0
    batch = len(full) - event
    places: list[str | None] = [frames.get(i - batch) for i in range(batch)]
    filler = [p is None and full[i] == 1 and batch - i < leftmost for i, p in enumerate(places)]
    filler += [False] * event
    places += [None] * event
    kept = [i for i in range(len(full)) if not filler[i]]
    own = _dims_of(name, [places[i] for i in kept], given)
    shape = tuple(full[i] for i in kept)
    names = dict(zip(kept, own, strict=True))
    return NumpyroSite(
        kind,
        own,
        shape,
        full,
        tuple(names.get(i, "") for i in range(len(full))),
        event,
        plates,
        _unconstrained(name, fn, full) if kind == "latent" else (),
        support,
        _base_name(fn) if fn is not None else "",
        bool(getattr(fn, "has_enumerate_support", False)),
        leftmost,
    )


def log_prob_of(site: Mapping[str, Any]) -> Array:
    """A site's log density terms, scaled as its handlers say."""
    if site["intermediates"]:
        lp = site["fn"].log_prob(site["value"], site["intermediates"])
    else:
        lp = site["fn"].log_prob(site["value"])
    return lp if site["scale"] is None else site["scale"] * lp


def _kind(site: Mapping[str, Any]) -> tuple[str, str]:
    """A site's kind and its support in words."""
    if site["type"] == "deterministic":
        return "deterministic", ""
    fn = site["fn"]
    if site["is_observed"]:
        # NumPyro writes a factor as an observed variable without values.
        if _base_name(fn) == "Unit":
            return "factor", ""
        return "observed", constraint_words(fn.support)
    words = constraint_words(fn.support) if concrete(fn.support) else type(fn.support).__name__
    return ("discrete" if fn.is_discrete else "latent"), words


def _base_name(d: Any) -> str:
    wrappers = (dist.ExpandedDistribution, dist.Independent, dist.MaskedDistribution)
    while isinstance(d, wrappers):
        d = d.base_dist
    return type(d).__name__


def mask_of(d: Any) -> Any:
    """The mask of a masked distribution, or None."""
    while isinstance(d, dist.ExpandedDistribution):
        d = d.base_dist
    return d._mask if isinstance(d, dist.MaskedDistribution) else None


def _unconstrained(name: str, d: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(biject_to(d.support).inverse_shape(shape))
    except NotImplementedError:
        raise ValueError(
            f"site {name!r}: no map from the reals onto the support of {_base_name(d)} is known; "
            "choose a distribution with a support that NumPyro's biject_to knows"
        ) from None


def _dims_of(name: str, places: list[str | None], given: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of a site's axes: plates, what ``dims`` says, and numbered names for the rest."""
    unnamed = [i for i, p in enumerate(places) if p is None]
    out = [p if p is not None else f"{name}_dim_{i}" for i, p in enumerate(places)]
    if given is None:
        return tuple(out)
    if len(given) == len(places):
        return tuple(given)
    if len(given) != len(unnamed):
        plates = [p for p in places if p]
        raise ValueError(
            f"dims[{name!r}]: expected {len(places)} names (or {len(unnamed)}, for the axes that "
            f"are not the plates {listing(plates)}), found {given}"
        )
    for i, dim in zip(unnamed, given, strict=True):
        out[i] = dim
    return tuple(out)
