"""Prior and prior predictive draws as an ArviZ object."""

from __future__ import annotations

from typing import Any

import numpy as np

from probkit.core import Target, check_count
from probkit.results._groups import dataset, prior_values


def prior_groups(target: Target, draws: int, key: np.ndarray) -> Any:
    """See `probkit.prior_predictive`."""
    from probkit.results._arviz import to_arviz

    values = prior_values(target, check_count("prior_predictive(draws)", draws), key)
    sites = target.sites
    seen = {k: v for k, v in values.items() if sites[k].kind == "observed"}
    groups = {"prior": dataset(target, {k: v for k, v in values.items() if k not in seen})}
    if seen:
        groups["prior_predictive"] = dataset(target, seen)
    if target.labels.constants:
        groups["constant_data"] = dataset(target, dict(target.labels.constants), ())
    return to_arviz(groups, {"created_by": "probkit"})
