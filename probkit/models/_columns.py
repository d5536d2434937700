"""One column of data, whatever library holds it, as one numpy array.

The rules, the same for every source, so that equal data give equal bits:

========================  ======================================================================
found                     kept as
========================  ======================================================================
integers                  their own dtype (unsigned ones as int64, whose subtraction is safe)
floats                    their own dtype (float16 and bfloat16 as float32, wider ones as float64)
True/False                bool
integers or True/False    float64 with NaN in the holes: it is the one form that pandas, polars,
with missing entries      pyarrow, xarray and lists can all hold
strings, categoricals     int32 codes and the labels; -1 in the holes
decimals                  float64
dates, times, durations   numpy datetime64 or timedelta64: labels, never numbers
========================  ======================================================================

Missing entries are NaN, None, ``pandas.NA``, NaT, null, and the masked entries of a masked array.
Labels stand in the order of the categories where the source has one (``pandas.Categorical``,
polars ``Enum``, an Arrow dictionary), sorted otherwise: a polars ``Categorical`` has no order of
its own. Everything is O(n); only objects and strings are looked at one by one in Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probkit.models._labels import (
    common_kind,
    encode,
    label_array,
    missing_objects,
    numbers,
    position,
    sorted_labels,
    times,
)

_PANDAS_LIKE = ("pandas", "polars", "pyarrow", "narwhals", "modin", "cudf")


@dataclass(frozen=True, eq=False)
class Column:
    """Values of one column, with the holes, the labels of its codes, and its dims if known."""

    values: np.ndarray
    missing: np.ndarray | None = None
    labels: np.ndarray | None = None
    dims: tuple[str, ...] | None = None
    coords: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def temporal(self) -> bool:
        """Whether the values are dates, times or durations."""
        return self.values.dtype.kind in "mM"


def libraries(obj: object) -> set[str]:
    """Names of the packages that the classes of ``obj`` come from; imports nothing."""
    return {cls.__module__.partition(".")[0] for cls in type(obj).__mro__}


def read_column(where: str, value: Any, known: np.ndarray | None = None) -> Column:
    """Read one array-like into a `Column`.

    ``where`` starts every message (``"column 'x'"``); ``known`` are the labels that were seen at
    training: the entries are then matched to them, and an unseen one is a ValueError.
    """
    if value is None:
        raise ValueError(f"{where} is None; leave the name out, or give NaN for a missing entry.")
    roots = libraries(value)
    if "xarray" in roots:
        return _read_dataarray(where, value, known)
    if roots.intersection(_PANDAS_LIKE):
        series = _as_series(where, value)
        if series is not None:
            return _read_series(where, series, known)
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        if value.dtype.kind in "OU":
            return _read_objects(where, _holed(value.data, mask), known)
        return _read_array(where, np.ma.getdata(value), mask, known)
    return _read_array(where, _as_array(where, value), None, known)


def _read_dataarray(where: str, value: Any, known: np.ndarray | None) -> Column:
    if not hasattr(value, "dims") or not hasattr(value, "values") or hasattr(value, "data_vars"):
        raise TypeError(f"{where}: expected a DataArray, found xarray {type(value).__name__}.")
    column = read_column(where, np.asarray(value.values), known)
    dims = tuple(str(d) for d in value.dims)
    have = getattr(value, "indexes", {})
    coords = {str(d): index_labels(have[d]) for d in value.dims if d in have}
    return Column(column.values, column.missing, column.labels, dims, coords)


def index_labels(index: Any) -> np.ndarray:
    """Labels of a pandas index; the levels of a MultiIndex are joined by ``", "``."""
    if getattr(index, "nlevels", 1) > 1:
        return np.asarray([", ".join(map(str, entry)) for entry in index])
    values = np.asarray(index)
    return label_array(values) if values.dtype.kind in "OT" else values


def _as_series(where: str, value: Any) -> Any:
    """``value`` as a narwhals Series, or None where it is no column of a frame library."""
    import narwhals.stable.v2 as nw

    if any(hasattr(value, a) for a in ("column_names", "collect_schema", "itertuples")):
        raise TypeError(
            f"{where}: found a whole table ({type(value).__name__}) where one array is expected; "
            f"give one of its columns, or `.to_numpy()` for a matrix."
        )
    roots = libraries(value)
    if "pandas" in roots and not hasattr(value, "to_frame"):  # Categorical, extension arrays
        if not hasattr(value, "__len__"):
            return None
        import pandas

        value = pandas.Series(value)
    elif "pandas" in roots and not hasattr(value, "iloc"):  # an Index
        value = value.to_series()
    elif "pyarrow" in roots and hasattr(value, "as_py"):
        return None
    elif "pyarrow" in roots and not hasattr(value, "chunks"):
        import pyarrow

        value = pyarrow.chunked_array([value])
    try:
        return nw.from_native(value, series_only=True)
    except TypeError as error:
        raise TypeError(f"{where}: cannot read a {type(value).__name__}: {error}") from None


def _read_series(where: str, series: Any, known: np.ndarray | None) -> Column:
    import narwhals.stable.v2 as nw

    dtype = series.dtype
    if dtype.is_nested():
        raise ValueError(
            f"{where}: holds a list or a struct in every row ({dtype}); give each entry a column "
            f"of its own, or pass a mapping with a rectangular array."
        )
    if dtype in (nw.Categorical, nw.Enum) or _has_categories(series):
        labels = _categories(series)
        return _read_objects(where, _objects(series.to_list()), known, labels)
    if dtype.is_temporal() or (dtype.is_numeric() and dtype != nw.Decimal):
        values = np.asarray(series.to_numpy())
        if values.dtype.kind != "O":
            holes = np.asarray(series.is_null().to_numpy(), bool)
            return _read_array(where, values, holes, known, integer=dtype.is_integer())
    if dtype == nw.Boolean and not series.null_count():
        return _read_array(where, np.asarray(series.to_numpy(), bool), None, known)
    if dtype == nw.Unknown:
        return _read_array(where, np.asarray(series.to_numpy()), None, known)
    return _read_objects(where, _objects(series.to_list()), known)


def _has_categories(series: Any) -> bool:
    """Whether a pandas column is categorical under a dtype that narwhals does not name so."""
    return hasattr(getattr(series.to_native(), "dtype", None), "categories")


def _categories(series: Any) -> np.ndarray | None:
    """The labels in the order the source gives them, unused ones too; None: it has no order."""
    native = series.to_native()
    dtype = getattr(native, "dtype", None)
    if hasattr(dtype, "categories"):  # pandas, and the Enum of polars
        found: Any = getattr(dtype, "categories", ())
        if "polars" in libraries(native) and type(dtype).__name__ != "Enum":
            return None
        return label_array(found)
    if "pyarrow" in libraries(native):
        return label_array(native.unify_dictionaries().chunk(0).dictionary.to_pylist())
    return None


def _objects(values: list) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def _as_array(where: str, value: Any) -> np.ndarray:
    """`numpy.asarray` with messages; objects are kept as objects wherever types are mixed."""
    import jax

    try:
        array = np.asarray(value)
        if array.dtype.kind in "UO" and not isinstance(value, np.ndarray):
            array = np.asarray(value, dtype=object)  # [1, "a"] must not become ["1", "a"]
    except jax.errors.TracerArrayConversionError:
        raise TypeError(
            f"{where}: is traced by a JAX transformation; data are read on the host, so bind or "
            f"fit outside jit, grad and vmap."
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where}: its rows have different lengths or no common shape ({error}); pad them "
            f"with NaN, or give one long array and an array of group codes."
        ) from None
    if array.dtype == object and array.ndim == 0 and not isinstance(value, str):
        raise TypeError(
            f"{where}: expected numbers, True/False or strings in an array, found "
            f"{type(value).__name__}; turn it into an array first."
        )
    return array


def _read_array(
    where: str,
    values: np.ndarray,
    mask: np.ndarray | None,
    known: np.ndarray | None,
    integer: bool = False,
) -> Column:
    """A numpy array of any dtype; ``mask`` marks entries already known to be missing."""
    kind = values.dtype.kind
    if kind in "OUT":
        return _read_objects(where, values.astype(object), known)
    _refuse_dtype(where, values)
    missing = np.zeros(values.shape, bool) if mask is None else np.array(mask, bool)
    if kind in "mM":
        missing |= np.isnat(values)
        return Column(_own(values), missing if missing.any() else None)
    if values.dtype.name == "bfloat16" or values.dtype == np.float16:
        values = values.astype(np.float32)
    kind = values.dtype.kind
    if kind == "f":
        missing |= np.isnan(values)
    if missing.any() and (kind in "biu" or integer):
        values = np.where(missing, np.nan, values.astype(np.float64))
    elif kind == "u":
        values = _signed(where, values)
    elif kind == "f":
        wide = values.dtype.itemsize > 8
        values = np.where(missing, np.nan, values.astype(np.float64) if wide else values)
    column = Column(_own(values), missing if missing.any() else None)
    _refuse_infinite(where, column)
    if known is None:
        return column
    return _read_objects(where, _holed(values, missing), known)


def _holed(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The values as objects, None where they are missing."""
    out = values.astype(object)
    out[missing] = None
    return out


def _refuse_dtype(where: str, values: np.ndarray) -> None:
    kind = values.dtype.kind
    if kind == "c":
        raise ValueError(
            f"{where}: holds complex numbers; pass the real and the imaginary part as two columns."
        )
    if kind == "S":
        raise ValueError(f"{where}: holds bytes; decode them, for example `np.char.decode(x)`.")
    if kind == "V" and values.dtype.name != "bfloat16":
        raise ValueError(
            f"{where}: has the dtype {values.dtype}, which holds no plain numbers; give each "
            f"field as a column of its own."
        )


def _refuse_infinite(where: str, column: Column) -> None:
    if column.values.dtype.kind != "f":
        return
    infinite = np.asarray(np.isinf(column.values))
    if infinite.any():
        raise ValueError(
            f"{where}: {int(infinite.sum())} infinite value(s), the first at {position(infinite)}; "
            f"put NaN where an entry is missing, or remove the row."
        )


def _signed(where: str, values: np.ndarray) -> np.ndarray:
    if values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{where}: {values.max()} does not fit an int64; rescale the column.")
    return values.astype(np.int64)


def _read_objects(
    where: str, values: np.ndarray, known: np.ndarray | None, labels: np.ndarray | None = None
) -> Column:
    """An object array: strings become codes, numbers numbers; ``labels`` mark a categorical."""
    missing = missing_objects(values)
    holes = missing if missing.any() else None
    kind = "label" if labels is not None else common_kind(where, values, missing)
    if kind in ("time", "duration"):
        return Column(_own(times(values, missing, kind)), holes)
    if kind != "label" and known is None:
        return _read_array(where, numbers(values, missing, kind), holes, None)
    if known is None and labels is None and values.ndim == 0:
        raise ValueError(
            f"{where}: is one string ({values.item()!r}); data are arrays of numbers or of labels, "
            f"so put it into a list, or leave it out."
        )
    order = known if known is not None else labels
    if order is None:
        order = sorted_labels(values, missing)
    return Column(_own(encode(where, values, missing, order)), holes, order)


def _own(values: np.ndarray) -> np.ndarray:
    """A copy that nobody else can write to: the caller's later edits must not reach a model."""
    copy = np.array(values, order="C")
    copy.setflags(write=False)
    return copy
