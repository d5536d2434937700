"""Log densities at values that are known to lie in the support.

NumPyro compares every value with the support of its distribution when it is traced with validation
on (its default): a handful of comparisons and a select for each site and evaluation, which XLA
cannot prove idle. A latent comes out of a bijection onto its support, and observed values of a
support that no variable moves were compared with it when the data were bound; so here the
comparison is left out. Where a support depends on other variables (``Uniform(0, theta)``,
``Binomial(n, p)``), an observed value keeps it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpyro
from jax import Array

from probkit.models._closed import closed_form
from probkit.models._parameters import concrete


def log_density(d: Any, value: Any) -> Array:
    """Log density terms of ``d`` at a value inside its support; O(size)."""
    form = closed_form(d)
    return _trusting(d, True).log_prob(value) if form is None else form(value)


def checked_density(d: Any, value: Any) -> Array:
    """The same, but minus infinity outside the support, whatever NumPyro's setting is."""
    return _trusting(d, False).log_prob(value)


@contextmanager
def trusted() -> Iterator[None]:
    """Distributions made within it do not look at their parameters.

    They are traced then, and nothing could be said of them but that they were looked at. (Those of
    constants are looked at when data are bound.)
    """
    with numpyro.validation_enabled(False):
        yield


def settled(facts: Any) -> bool:
    """Whether observed values of a site were compared with its whole support at bind."""
    return facts.support is not None and concrete(facts.support)


def _trusting(d: Any, trust: bool) -> Any:
    """A shallow copy that takes values on trust, or not; ``d`` itself belongs to the user."""
    out = copy.copy(d)
    out._validate_args = not trust
    if "base_dist" in d.__dict__:
        out.base_dist = _trusting(d.base_dist, trust)
    return out
