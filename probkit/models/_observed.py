"""Observed values: holes, dtypes and supports, checked when data are bound."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from probkit.models._data import Data
from probkit.models._numbers import in_kind, warn_of_counts
from probkit.models._parameters import concrete, constraint_words

if TYPE_CHECKING:
    from probkit.models._facts import Facts


def split_missing(
    nodes: Mapping[str, Any], parsed: Data, observed: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Observed values with holes filled by a placeholder, and the masks of the holes."""
    values, missing = {}, {}
    for name in observed:
        array = np.array(parsed.array(name))
        mask = parsed.missing.get(name)
        if mask is not None and mask.any():
            if mask.all():
                raise ValueError(
                    f"site {name!r}: every entry is missing; leave it out of the data to have it "
                    "unobserved"
                )
            # A value that was seen lies in the support; zero might not.
            array[mask] = array[~mask][0]
            missing[name] = mask
        values[name] = array
    return values, missing


def check_observed(
    facts: Mapping[str, Facts],
    values: Mapping[str, np.ndarray],
    missing: Mapping[str, np.ndarray],
    listed: frozenset[str],
) -> None:
    """Raise if observed values do not suit their distribution: dtype first, then the support."""
    for name, value in values.items():
        own = facts[name]
        found = value.dtype.kind
        if not own.discrete and found in "iub" and name not in listed:
            raise TypeError(
                f"site {name!r}: {own.distribution} is continuous, but the data are "
                f"{value.dtype.name}; if they are measurements, pass floats "
                f"(values.astype(float)); if they are counts or labels, use a discrete "
                "distribution such as Poisson, Binomial or Categorical"
            )
        if own.support is None or not concrete(own.support):
            continue
        _check_support(name, value, missing.get(name), own)
        if own.distribution in ("Beta", "BetaProportion"):
            _warn_of_ends(name, value, missing.get(name), own.distribution)


def _warn_of_ends(name: str, value: np.ndarray, mask: np.ndarray | None, words: str) -> None:
    ends = (value == 0) | (value == 1)
    if mask is not None and ends.shape == mask.shape:
        ends = ends & ~mask
    if not ends.any():
        return
    where = tuple(int(i) for i in np.argwhere(ends)[0])
    warnings.warn(
        f"site {name!r}: {int(ends.sum())} observed values are exactly 0 or 1 (the first, at "
        f"{where}), where the density of {words} is zero or infinite unless one of its parameters "
        "is 1, so that fits end at once or run away; move them inside, for example "
        "(y * (n - 1) + 0.5) / n, or model them apart",
        UserWarning,
        stacklevel=2,
    )


def _check_support(name: str, value: np.ndarray, mask: np.ndarray | None, facts: Facts) -> None:
    with np.errstate(all="ignore"):
        try:
            inside = np.asarray(facts.support(value))
        except Exception:
            # A support that cannot judge host arrays leaves it to target.check().
            return
    if mask is not None and inside.shape == mask.shape:
        inside = inside | mask
    if inside.all():
        return
    if facts.discrete and value.dtype.kind == "f" and np.any(value != np.round(value)):
        what = "not whole numbers"
    else:
        what = "outside it"
    where = tuple(int(i) for i in np.argwhere(~inside)[0])
    bad = value[where] if len(where) == value.ndim else value[where[0]] if where else value
    raise ValueError(
        f"site {name!r}: {facts.distribution} has support "
        f"{constraint_words(facts.support)}, but {int((~inside).sum())} observed values are {what} "
        f"(the first, at {where}, is {bad}); mend the data or choose another distribution"
    )


def as_observed(name: str, value: np.ndarray, facts: Facts) -> np.ndarray:
    """Observed values in the dtype that their distribution computes with."""
    # (Bernoulli outcomes may come as floats or bools.)
    found = in_kind(name, value, np.dtype(jnp.result_type(int if facts.discrete else float)))
    if facts.discrete and not facts.distribution.startswith("Categorical"):
        warn_of_counts(name, found)
    return found
