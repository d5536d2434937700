"""The one door to scikit-learn, which is an extra: its bases and its checks of data."""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator as BaseEstimator
    from sklearn.base import ClassifierMixin as ClassifierMixin
    from sklearn.base import RegressorMixin as RegressorMixin
    from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
except ImportError as error:
    raise ImportError(
        "pk.estimators needs scikit-learn 1.6 or newer: install probkit[sklearn]"
    ) from error


class GPEstimator(BaseEstimator):
    """The parameters that both estimators have; they are explained at `GPRegressor`."""

    def __init__(
        self,
        kernel: Any = "matern52",
        *,
        inference: Any = "auto",
        ard: Any = False,
        options: Any = None,
        random_state: Any = None,
    ):
        self.kernel = kernel
        self.inference = inference
        self.ard = ard
        self.options = options
        self.random_state = random_state

    def __getstate__(self) -> dict[str, Any]:
        # Posteriors hold compiled programs; predictions need none of it.
        kept: Any = super().__getstate__()
        return {k: v for k, v in kept.items() if k not in ("posterior_", "posteriors_")}


def training(estimator: Any, X: Any, y: Any, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """``X`` in float64 and ``y``, after scikit-learn's own checks."""
    checked: Any = validate_data(estimator, X, y, dtype=np.float64, **more)
    return checked


def inputs(estimator: Any, X: Any) -> np.ndarray:
    """``X`` in float64, checked against what the estimator was fitted to."""
    check_is_fitted(estimator)
    checked: Any = validate_data(estimator, X, reset=False, dtype=np.float64)
    return checked


def seed_of(random_state: Any) -> int:
    """A whole number from a seed, a ``RandomState`` or None."""
    return int(generator(random_state).randint(2**31 - 1))


def generator(random_state: Any) -> np.random.RandomState:
    """A ``RandomState`` from a seed, itself or None."""
    return check_random_state(random_state)
