"""What a fit's verdict says, as the warning that scikit-learn's users look for.

The function at the rows is not drawn for it: an engine's checks are made as it ends, and chains are
judged by the hyperparameters, which are what they move in.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from probkit.core import Check, Status
from probkit.inference.gaussian import _marginal
from probkit.results._checks import mcmc_checks

if TYPE_CHECKING:
    from probkit.estimators._engine import Fitted


def failed(fit: Fitted, posterior: Any) -> list[Check]:
    """The entries of a fit's verdict that failed, without drawing the function."""
    found, status = posterior.approximation, posterior.status
    if found is not None:
        checks = list(found.checks)
    else:
        flat = np.asarray(posterior._drawn.unconstrained)
        theta = _marginal.hyperparameters(fit.target, flat.reshape(-1, flat.shape[-1]))
        theta = theta.reshape(*flat.shape[:2], -1)
        values = {k: theta[..., i] for i, k in enumerate(fit.hyperparameters)}
        checks = mcmc_checks(values, posterior.stats)
    out = [check for check in checks if check.ok is False]
    if not out and status not in (Status.OK, Status.STOPPED):
        out = [Check("status", False, float(status.value), 0.0, "", status.message)]
    return out


def warn(name: str, where: Mapping[str, str], faults: Mapping[str, list[Check]]) -> None:
    """A ConvergenceWarning if there are faults, with those of the first fit that has any.

    Args:
        name: of the estimator.
        where: the posterior of every fit, by what the fit is of ("" for the only one).
        faults: their failed checks, by the same names.
    """
    from sklearn.exceptions import ConvergenceWarning

    bad = {k: v for k, v in faults.items() if v}
    if not bad:
        return
    label, checks = next(iter(bad.items()))
    of, more = f" of {label}" * bool(label), f" ({len(bad)} fits are not OK)" * (len(bad) > 1)
    said = ". ".join(_words(check) for check in checks)
    warnings.warn(
        f"{name}: the verdict on the fit{of} is not OK{more}: {said}. See {where[label]}.check()",
        ConvergenceWarning,
        stacklevel=3,
    )


def _words(check: Check) -> str:
    limit = f"{check.direction} {check.threshold:.3g}" if check.threshold else "0"
    place = f", {check.where}" * bool(check.where)
    return f"{check.name} {check.value:.3g} (needs {limit}{place}): {check.advice}"
