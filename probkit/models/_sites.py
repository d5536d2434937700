"""Calling a site's function: NumPyro's and JAX's own errors lack the site, so it is added here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpyro.distributions import Distribution

from probkit.core import listing
from probkit.models._host_array import host_array
from probkit.models._nodes import Node

_NEEDS_VALUES = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


def call(name: str, node: Node, args: Mapping[str, Any]) -> Any:
    """The node's function at its parents' values; errors name the site and the parents' shapes."""
    try:
        found = node.fn(**args) if node.by_keyword else node.fn(*args.values())
        return host_array(found)
    except Exception as error:
        if isinstance(error, SiteError | SiteTypeError):
            raise
        kind = SiteTypeError if isinstance(error, TypeError | AttributeError) else SiteError
        text = (str(error).splitlines() or [repr(error)])[0]
        remedy = (
            "expected values that the function can combine: check the parents' dims and the "
            "function's body"
        )
        if isinstance(error, _NEEDS_VALUES):
            remedy = (
                "its values are not known while the model is compiled, so expected functions of "
                "jax.numpy: use jnp.exp for math.exp or np.exp, and jnp.where for if"
            )
        raise kind(
            f"site {name!r}: its function failed with {type(error).__name__}: {text} "
            f"Its parents are {_shapes(args)}; {remedy}"
        ) from error


class SiteError(ValueError):
    """A site's function failed."""


class SiteTypeError(TypeError):
    """A site's function failed for a reason of type."""


def check_distribution(name: str, d: Any) -> None:
    """Raise a TypeError unless ``d`` is a distribution."""
    if isinstance(d, Distribution):
        return
    if d is None:
        hint = "its function returned None: add the missing return"
    elif isinstance(d, type) and issubclass(d, Distribution):
        hint = f"call the class: {d.__name__}(...)"
    else:
        hint = "use pk.deterministic for a value, pk.factor for a log density term"
    raise SiteTypeError(
        f"site {name!r}: expected a NumPyro distribution, found {type(d).__name__}; {hint}"
    )


def _shapes(args: Mapping[str, Any]) -> str:
    if not args:
        return listing([])
    parts = []
    for name, value in args.items():
        try:
            parts.append(f"{name}: {np.shape(value)}")
        except (TypeError, ValueError):
            parts.append(f"{name}: {type(value).__name__}")
    return ", ".join(parts)
