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
from typing import Any

from jax import Array

from probkit.models._parameters import concrete


def log_density(d: Any, value: Any) -> Array:
    """Log density terms of ``d`` at a value inside its support; O(size)."""
    return _unchecked(d).log_prob(value)


def settled(facts: Any) -> bool:
    """Whether observed values of a site were compared with its whole support at bind."""
    return facts.support is not None and concrete(facts.support)


def _unchecked(d: Any) -> Any:
    """A shallow copy that takes values on trust; ``d`` belongs to the user and stays as it is."""
    out = copy.copy(d)
    out._validate_args = False
    if "base_dist" in d.__dict__:
        out.base_dist = _unchecked(d.base_dist)
    return out
