"""Data in the dtypes of the computation: what these cannot hold is an error or a warning."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np

#: Counts whose log probability single precision has to about a twentieth of a nat.
_LARGE_COUNT = 4e4
#: Spacings of a dtype that the spread of a column should have, at the least.
_STEPS = 1000.0


def in_kind(name: str, array: np.ndarray, kind: np.dtype) -> np.ndarray:
    """An array of data cast to a dtype.

    Raises:
        ValueError: whole numbers, or magnitudes, that the dtype cannot hold.

    Warns:
        UserWarning: numbers that differ by little more than the dtype's spacing.
    """
    if array.dtype == kind or not array.size:
        return array.astype(kind)
    if kind.kind in "iu":
        _check_range(name, array, kind)
    elif array.dtype.kind == "f":
        _check_spacing(name, array, kind)
    return array.astype(kind)


def _check_range(name: str, array: np.ndarray, kind: np.dtype) -> None:
    limit, low, high = np.iinfo(kind), array.min(), array.max()
    if low < limit.min or high > limit.max:
        far = high if high > limit.max else low
        raise ValueError(
            f"data {name!r}: whole numbers such as {far:.0f} do not fit into {kind.name}, expected "
            f"{limit.min} to {limit.max}; subtract an offset or count in larger units, pass a "
            "covariate as floats, or switch on jax_enable_x64"
        )


def _check_spacing(name: str, array: np.ndarray, kind: np.dtype) -> None:
    finite = array[np.isfinite(array)]
    if not finite.size or np.finfo(array.dtype).eps >= np.finfo(kind).eps:
        return
    low, high = float(finite.min()), float(finite.max())
    largest = max(abs(low), abs(high))
    if largest > float(np.finfo(kind).max):
        raise ValueError(
            f"data {name!r}: a magnitude of {largest:.3g} does not fit into {kind.name}; take "
            "other units, or switch on jax_enable_x64"
        )
    if 0.0 < high - low < _STEPS * float(np.finfo(kind).eps) * largest:
        warnings.warn(
            f"data {name!r}: the values differ by {high - low:.3g} around {low:.6g}, which "
            f"{kind.name} cannot tell apart well; subtract an offset, or switch on jax_enable_x64",
            UserWarning,
            stacklevel=2,
        )


def warn_of_counts(name: str, counts: np.ndarray) -> None:
    """Warn of counts whose log probabilities are large differences of larger numbers."""
    if counts.size and np.finfo(jnp.result_type(float)).bits < 64:
        largest = float(np.max(np.abs(counts.astype(float))))
        if largest > _LARGE_COUNT:
            warnings.warn(
                f"data {name!r}: for counts up to {largest:.3g}, single precision has log "
                "probabilities to a tenth of a nat or worse; fit with precision='double'",
                UserWarning,
                stacklevel=2,
            )
