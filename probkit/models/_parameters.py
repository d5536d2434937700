"""Checks of distributions' constants: NumPyro's own errors lack the site, and come late."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from numpyro.distributions import Distribution


def concrete(value: Any) -> bool:
    """Whether a value is known now (not traced)."""
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(value))


def check_parameters(where: str, d: Distribution) -> None:
    """Raise a ValueError if a known parameter lies outside its constraint (a negative scale).

    Parameters that are traced (that depend on random variables) are passed over.
    """
    for name, constraint in getattr(d, "arg_constraints", {}).items():
        value = d.__dict__.get(name)
        if value is None or not concrete(value) or not concrete(constraint):
            continue
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            continue
        holds = np.asarray(_satisfied(constraint, array))
        if not holds.all():
            bad = (
                array[~np.broadcast_to(holds, array.shape)] if holds.shape == array.shape else array
            )
            raise ValueError(
                f"{where}: {type(d).__name__} has {name}={_short(bad)}, expected it to be "
                f"{constraint_words(constraint)}; mend the constant, the column, or the prior it "
                "comes from"
            )
    base = d.__dict__.get("base_dist")
    if isinstance(base, Distribution):
        check_parameters(where, base)


def _satisfied(constraint: Any, array: np.ndarray) -> Any:
    try:
        with np.errstate(all="ignore"):
            return constraint(array)
    except Exception:
        # A constraint that cannot judge host arrays (positive definiteness): leave it to NumPyro.
        return True


def elementwise(support: Any) -> Any:
    """The support of one entry of a value whose entries are constrained one by one."""
    while getattr(support, "base_constraint", None) is not None:
        support = support.base_constraint
    return support


def _short(array: np.ndarray) -> str:
    flat = np.ravel(array)
    text = ", ".join(f"{x:.4g}" for x in flat[:3])
    return text + (", ..." if flat.size > 3 else "")


def constraint_words(constraint: Any) -> str:
    """A constraint in words, with its bounds where they are known."""
    name = type(constraint).__name__.lstrip("_")
    parts = []
    for bound in ("lower_bound", "upper_bound"):
        value = getattr(constraint, bound, None)
        if value is not None and concrete(value) and np.size(value) == 1:
            parts.append(f"{bound.split('_')[0]} {float(np.asarray(value).reshape(())):.4g}")
    words = "".join(" " + c.lower() if c.isupper() else c for c in name).strip()
    words = words.replace("independent constraint", "of vectors").replace("_", " ")
    return words + (f" ({', '.join(parts)})" if parts else "")
