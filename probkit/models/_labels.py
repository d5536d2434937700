"""Columns of Python objects: which kind they are, and the codes of their labels.

Strings (and the entries of a categorical column) are codes into a list of labels; the entries of
new data are matched to the labels of the training data by value, never by position. Everything is
one pass in Python over the entries, with a shortcut for columns that hold nothing but strings.
"""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import numpy as np

from probkit.core._errors import listing, nearest

_NUMBERS = ("int", "float", "bool")


def position(mask: np.ndarray) -> str:
    """Words for the first True entry of ``mask``: ``"row 3"`` or ``"position (0, 2)"``."""
    if mask.ndim == 0:
        return "the only entry"
    first = tuple(int(i) for i in np.argwhere(mask)[0])
    return f"row {first[0]}" if mask.ndim == 1 else f"position {first}"


def label_array(labels: Any) -> np.ndarray:
    """Labels as a one-dimensional array that netCDF can hold (what has no own type is text)."""
    found = [plain(v) for v in labels]
    if len({type(v) for v in found}) > 1 and not all(isinstance(v, int | float) for v in found):
        found = [str(v) for v in found]
    return np.asarray(found)


def plain(value: Any) -> Any:
    """A label as a Python str, bool, int or float; anything else as its text."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, str | bool | int | float) else str(value)


def missing_objects(values: np.ndarray) -> np.ndarray:
    """True where an entry is None, NaN, NaT, ``pandas.NA`` or masked; the shape of ``values``."""
    flat = values.reshape(-1).tolist()
    if set(map(type, flat)) <= {str}:
        return np.zeros(values.shape, bool)
    return np.fromiter(map(_is_missing, flat), bool, len(flat)).reshape(values.shape)


def common_kind(where: str, values: np.ndarray, missing: np.ndarray) -> str:
    """The one kind of the entries that are there: label, bool, int, float, time or duration.

    A ValueError names the first entry that disagrees with the ones before it.
    """
    have = values[~missing]
    kinds = {cls: _kind(cls) for cls in set(map(type, have.tolist()))}
    names = set(kinds.values())
    if "other" in names:
        cls = next(c for c, k in kinds.items() if k == "other")
        raise ValueError(
            f"{where}: holds {cls.__name__} objects; expected numbers, True/False, strings or "
            f"dates. Lists of different lengths: pad them with NaN, or give one long array and an "
            f"array of group codes."
        )
    if len(names) > 1 and not names <= set(_NUMBERS):
        first = kinds[type(have[0])]
        group = _NUMBERS if first in _NUMBERS else (first,)
        odd = missing | True
        odd[~missing] = [kinds[type(v)] not in group for v in have.tolist()]
        odd &= ~missing
        entry = values[odd][0]
        raise ValueError(
            f"{where}: mixes {type(have[0]).__name__} and {type(entry).__name__} "
            f"({position(odd)} holds {entry!r}); make the column all numbers, with NaN where there "
            f"is none, or all strings."
        )
    if not names:
        return "float"
    return names.pop() if len(names) == 1 else "float" if "float" in names else "int"


def numbers(values: np.ndarray, missing: np.ndarray, kind: str) -> np.ndarray:
    """Objects that are all numbers as a plain array; float64 with NaN where any is missing."""
    have = values[~missing].tolist()
    if kind == "float" or missing.any():
        out = np.full(values.shape, np.nan)
        out[~missing] = [float(v) for v in have]
        return out
    return np.asarray(have).reshape(values.shape)


def times(values: np.ndarray, missing: np.ndarray, kind: str) -> np.ndarray:
    """Dates, times or durations as datetime64 or timedelta64 in microseconds, zones as UTC."""
    dtype = "datetime64[us]" if kind == "time" else "timedelta64[us]"
    out = np.full(values.shape, "NaT", dtype)
    out[~missing] = [np.asarray(_without_zone(v), dtype) for v in values[~missing].tolist()]
    return out


def _without_zone(value: Any) -> Any:
    if getattr(value, "tzinfo", None) is None:
        return value
    return value.astimezone(datetime.UTC).replace(tzinfo=None)


def sorted_labels(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The distinct entries, sorted."""
    return label_array(sorted({plain(v) for v in values[~missing].tolist()}))


def encode(where: str, values: np.ndarray, missing: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int32 codes of the entries among ``labels``; -1 where missing; unseen: a ValueError."""
    names = labels.tolist()
    index = {label: code for code, label in enumerate(names)}
    have = values[~missing].tolist()
    if not set(map(type, have)) <= {str}:
        have = [plain(v) for v in have]
    codes = np.full(values.shape, -1, np.int32)
    codes[~missing] = [index.get(v, -2) for v in have]
    unseen = codes == -2
    if unseen.any():
        first = plain(values[unseen][0])
        shown = [str(name) for name in names]
        raise ValueError(
            f"{where}: the label {first!r} ({position(unseen)}) is not among the known ones: "
            f"{listing(shown)}.{nearest(str(first), shown)} Correct the label; or fit with "
            f"coords (or a category order) that has it; or, when predicting, pass coords with the "
            f"new labels: their effects are drawn from the population."
        )
    return codes


def recode(where: str, codes: np.ndarray, labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Codes into ``labels`` as codes into ``order``; a label in use must be among them."""
    values = np.append(labels, labels[:1]).astype(object)[codes]
    return encode(where, values, codes < 0, order)


def _is_missing(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return False
    if type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return True
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, float | np.floating | decimal.Decimal) and bool(value != value)


def _kind(cls: type) -> str:
    if issubclass(cls, str):
        return "label"
    if issubclass(cls, bool | np.bool_):
        return "bool"
    if issubclass(cls, np.timedelta64 | datetime.timedelta):  # before int: numpy derives it so
        return "duration"
    if issubclass(cls, int | np.integer):
        return "int"
    if issubclass(cls, float | np.floating | decimal.Decimal):
        return "float"
    if issubclass(cls, np.datetime64 | datetime.date):
        return "time"
    return "other"
