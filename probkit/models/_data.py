"""Data as the model layer sees them: named numpy arrays with dims, labels and holes.

`read_data` takes None, a mapping of array-likes, an xarray Dataset, or any data frame that
narwhals reads, and returns one `Data`. The same numbers give the same bits whichever library holds
them (the rules for one column are those of `probkit.models._columns`). Nothing is guessed here
about dims: a bare array's dims stay unknown (None) unless ``dims=`` names them, and the rows of a
frame are the stand-in dim `ROWS`, for the model to name. pandas, polars, pyarrow, xarray and
narwhals are imported only when an object that needs them arrives. The cost is O(entries).
"""

from __future__ import annotations

import keyword
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from probkit.core._errors import listing, nearest
from probkit.models._columns import Column, index_labels, libraries, read_column
from probkit.models._labels import label_array, recode

ROWS = "__rows__"


@dataclass(frozen=True, eq=False)
class Data:
    """Named arrays on the host, with what is known of their dims, labels and missing entries.

    - ``arrays``: numbers, bools, or the int32 codes of labels, by name; read-only numpy arrays.
    - ``dims``: the dims of each array; None where they are not known yet; ``(ROWS,)`` for a frame.
    - ``coords``: labels by dim; a categorical column gives those of the dim of its own name.
    - ``missing``: by name, True where an entry is missing; only names that have such entries.
    - ``categorical``: names of the arrays that are codes of labels.
    - ``labels``: dates, times and durations by name; they label things and are not numbers.
    - ``is_frame`` and ``row_labels``: whether a data frame was read, and the labels of its rows
      (a pandas index that is not simply 0, 1, 2, ...); ``num_rows``: how many a frame has.
    - ``names``: every name that the source has, read or not.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    dims: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    coords: dict[str, np.ndarray] = field(default_factory=dict)
    missing: dict[str, np.ndarray] = field(default_factory=dict)
    categorical: frozenset[str] = frozenset()
    is_frame: bool = False
    row_labels: np.ndarray | None = None
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    num_rows: int | None = None
    names: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        """Whether a column of that name was read, dates included."""
        return name in self.arrays or name in self.labels

    def array(self, name: str) -> np.ndarray:
        """The numbers of a column; a ValueError says what to do where there are none."""
        if name in self.labels:
            kind = "durations" if self.labels[name].dtype.kind == "m" else "dates or times"
            raise ValueError(
                f"data {name!r} are {kind}, which label rows but are no numbers; compute one "
                f"first, for example days since the first: `(t - t.min()) / np.timedelta64(1, 'D')`"
                f" (for durations without the subtraction), and use that column."
            )
        if name not in self.arrays:
            raise ValueError(f"{name!r} is not in the data.{self.advice(name)}")
        return self.arrays[name]

    def advice(self, name: str) -> str:
        """A hint for a name that is not in the data: the nearest one, and all of them."""
        names = list(self.names)
        bare = name.strip("_")
        if keyword.iskeyword(bare) and bare in names:
            return (
                f" The data have {bare!r}, a word of the Python language that cannot be a "
                f"parameter: rename the column (to {name!r})."
            )
        return f"{nearest(name, names)} The data have: {listing(names)}."

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dim that is known, `ROWS` included."""
        return {
            dim: size
            for name, dims in self.dims.items()
            for dim, size in zip(dims or (), self._any(name).shape, strict=False)
        }

    def _any(self, name: str) -> np.ndarray:
        return self.arrays[name] if name in self.arrays else self.labels[name]


def read_data(
    data: Any,
    *,
    dims: Any = None,
    categories: Mapping[str, Any] | None = None,
    order: Mapping[str, Any] | None = None,
    names: Collection[str] | None = None,
) -> Data:
    """Read ``data`` into named numpy arrays.

    - ``data``: None; a mapping from names to array-likes (numpy and masked arrays, JAX arrays,
      lists, scalars, pandas or polars Series, Arrow arrays, DataArrays, which keep their dims and
      labels); an xarray Dataset; or a data frame (pandas, polars, a polars LazyFrame, a pyarrow
      Table, ...).
    - ``dims``: a mapping that names the dims of bare arrays, ``{"y": ("school", "year")}``; one
      dim may stand as it is, ``{"x": "school"}``.
    - ``categories``: labels by column as they were at training; entries are matched to them, and
      those columns are codes even where the new data are plain numbers.
    - ``order``: labels by column, in the order to number them in, for columns that hold labels;
      columns of numbers are left alone (they may be codes already, and the labels their names).
    - ``names``: of a frame or Dataset read only these columns, so that a column which nobody uses
      cannot be at fault. None reads all of them.

    A ValueError or TypeError names the column, what was found, and what to do: mixed types,
    complex or infinite numbers, ragged lists, no rows, duplicate names, unseen labels, dims that
    do not fit.

    >>> data = read_data({"y": [1.0, None, 3.0], "g": ["b", "a", "b"]}, dims={"y": "time"})
    >>> data.arrays["g"].tolist(), data.coords["g"].tolist(), data.dims["y"]
    ([1, 0, 1], ['a', 'b'], ('time',))
    >>> data.missing["y"].tolist()
    [False, True, False]
    """
    known = {name: label_array(np.asarray(v).tolist()) for name, v in _items(categories)}
    named = _dims_option(dims)
    parsed = _read(data, named, known, names)
    for name, labels in _items(order):
        if name in parsed.categorical and name not in known:
            _recode(parsed, name, label_array(np.asarray(labels).tolist()))
    return parsed


def _items(mapping: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    return [] if mapping is None else list(mapping.items())


def _recode(parsed: Data, name: str, order: np.ndarray) -> None:
    codes, labels = parsed.arrays[name], parsed.coords[name]
    parsed.arrays[name] = recode(f"column {name!r}", codes, labels, order)
    parsed.arrays[name].setflags(write=False)
    parsed.coords[name] = order


def _read(
    data: Any,
    named: dict[str, tuple[str, ...]],
    known: dict[str, np.ndarray],
    names: Collection[str] | None,
) -> Data:
    """Read by what ``data`` is."""
    if data is None:
        return _assemble({}, {})
    roots = libraries(data)
    if "xarray" in roots:
        return _read_dataset(data, named, known, names)
    if isinstance(data, Mapping):
        return _read_mapping(data, named, known)
    return _read_frame(data, named, known, names)


def _dims_option(dims: Any) -> dict[str, tuple[str, ...]]:
    if dims is None:
        return {}
    if not isinstance(dims, Mapping):
        raise TypeError(
            f"dims: expected a mapping from names to dims, such as {{'y': ('school',)}}, found "
            f"{type(dims).__name__}."
        )
    out = {n: (d,) if isinstance(d, str) else tuple(d) for n, d in dims.items()}
    for name, found in out.items():
        if not all(isinstance(d, str) for d in found):
            raise TypeError(f"dims of {name!r}: expected names of dims, found {found!r}.")
        if len(set(found)) < len(found):
            raise ValueError(f"dims of {name!r}: the same dim twice in {found!r}.")
    return out


def _read_mapping(
    data: Mapping, dims: dict[str, tuple[str, ...]], known: dict[str, np.ndarray]
) -> Data:
    for name in data:
        if not isinstance(name, str):
            raise TypeError(f"data: names are strings, found {name!r} ({type(name).__name__}).")
    for name in dims:
        if name not in data:
            raise ValueError(f"dims: {name!r} is not in the data.{nearest(name, data)}")
    columns = {n: read_column(f"data {n!r}", v, known.get(n)) for n, v in data.items()}
    return _assemble(columns, dims)


def _read_dataset(
    data: Any,
    dims: dict[str, tuple[str, ...]],
    known: dict[str, np.ndarray],
    names: Collection[str] | None,
) -> Data:
    if not hasattr(data, "data_vars"):
        raise TypeError(
            f"data: found an xarray {type(data).__name__}; give it a name: "
            f"`{{'y': array}}` or `array.to_dataset(name='y')`."
        )
    _refuse_dims(dims, "the variables of a Dataset carry their dims; use `dataset.rename`")
    # Coordinates that are no dim's labels (a county along the rows) are columns like any other.
    found = [*data.data_vars, *(c for c in data.coords if c not in data.dims and data[c].ndim)]
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"data: names are strings, found {name!r}; use `dataset.rename`.")
    wanted = [n for n in found if names is None or n in names]
    columns = {n: read_column(f"data {n!r}", data[n], known.get(n)) for n in wanted}
    return replace(_assemble(columns, {}), names=tuple(found))


def _read_frame(
    data: Any,
    dims: dict[str, tuple[str, ...]],
    known: dict[str, np.ndarray],
    names: Collection[str] | None,
) -> Data:
    _check_names(data)
    frame = _as_frame(data)
    _refuse_dims(dims, "the columns of a frame lie along its rows")
    if not frame.columns:
        raise ValueError("data: the frame has no columns; pass None for a model without data.")
    if not len(frame):
        raise ValueError("data: the frame has no rows; did a filter remove all of them?")
    wanted = [n for n in frame.columns if names is None or n in names]
    columns = {n: read_column(f"column {n!r}", frame[n], known.get(n)) for n in wanted}
    rows = {n: (ROWS,) for n in wanted}
    data = _assemble(columns, rows)
    return replace(
        data,
        is_frame=True,
        row_labels=_row_labels(frame.to_native()),
        num_rows=len(frame),
        names=tuple(frame.columns),
    )


def _check_names(data: Any) -> None:
    """Column names are distinct strings (narwhals itself trips over duplicates)."""
    if hasattr(data, "collect_schema"):  # lazy polars warns when asked for `columns`
        found = list(data.collect_schema().names())
    elif hasattr(data, "column_names"):
        found = list(data.column_names)
    elif hasattr(data, "columns"):
        found = list(data.columns)
    else:
        return
    for name in found:
        if not isinstance(name, str):
            raise TypeError(
                f"data: column names are strings, found {name!r} ({type(name).__name__}); rename "
                f"them, for example `frame.columns = [f'x{{c}}' for c in frame.columns]`."
            )
    twice = sorted({n for n in found if found.count(n) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise ValueError(f"data: more than one column is called {listing(twice)}; rename or drop.")


def _as_frame(data: Any) -> Any:
    import narwhals.stable.v2 as nw

    advice = (
        "expected a mapping from names to arrays, an xarray Dataset, or a data frame (pandas, "
        "polars, pyarrow, ...)"
    )
    if hasattr(data, "to_frame") and not hasattr(data, "columns"):
        raise TypeError(f"data: {advice}; found one column, so give it a name: {{'y': column}}.")
    if isinstance(data, list) and data and isinstance(data[0], Mapping):
        raise TypeError(f"data: {advice}; found a list of records: use pandas.DataFrame(records).")
    try:
        frame: Any = nw.from_native(data)  # pyright: ignore
    except TypeError:
        raise TypeError(f"data: {advice}; found {type(data).__name__}.") from None
    return frame.collect() if isinstance(frame, nw.LazyFrame) else frame


def _refuse_dims(dims: dict[str, tuple[str, ...]], reason: str) -> None:
    if dims:
        raise ValueError(f"dims: given for {listing(dims)}, but {reason}; leave `dims` out.")


def _row_labels(native: Any) -> np.ndarray | None:
    index = getattr(native, "index", None) if "pandas" in libraries(native) else None
    if index is None:
        return None
    counting = type(index).__name__ == "RangeIndex" and index.start == 0 and index.step == 1
    return None if counting else index_labels(index)


def _assemble(columns: dict[str, Column], dims: dict[str, tuple[str, ...]]) -> Data:
    """Check the columns against each other and put them together."""
    data = Data()
    categorical = set()
    for name, column in columns.items():
        if column.values.size == 0:
            raise ValueError(f"data {name!r}: has no entries; did a filter remove all of them?")
        (data.labels if column.temporal else data.arrays)[name] = column.values
        data.dims[name] = _dims_of(name, column, dims.get(name))
        if column.missing is not None:
            data.missing[name] = column.missing
        for dim, labels in column.coords.items():
            _add_coords(data, name, dim, labels)
        if column.labels is not None:
            categorical.add(name)
            _add_coords(data, name, name, column.labels)
    _check_sizes(data)
    return replace(data, categorical=frozenset(categorical), names=tuple(columns))


def _dims_of(name: str, column: Column, named: tuple[str, ...] | None) -> tuple[str, ...] | None:
    dims = column.dims if column.dims is not None else named
    if column.dims is not None and named is not None and named != column.dims:
        raise ValueError(
            f"dims of {name!r}: given as {named}, but the DataArray has {column.dims}; leave "
            f"`dims` out, or rename the array's dims."
        )
    if dims is not None and len(dims) != column.values.ndim:
        raise ValueError(
            f"dims of {name!r}: {len(dims)} dim(s) {dims} for an array of shape "
            f"{column.values.shape}; name one dim per axis."
        )
    return () if column.values.ndim == 0 else dims


def _add_coords(data: Data, name: str, dim: str, labels: np.ndarray) -> None:
    have = data.coords.setdefault(dim, labels)
    if have is not labels and not np.array_equal(have, labels):
        raise ValueError(
            f"data {name!r}: its labels of the dim {dim!r} differ from those another array gives "
            f"({_some(labels)} against {_some(have)}); align them "
            f"first, for example with `xarray.align`."
        )


def _some(labels: np.ndarray) -> str:
    return listing([str(label) for label in labels], 4)


def _check_sizes(data: Data) -> None:
    first: dict[str, tuple[str, int]] = {}
    for name, dims in data.dims.items():
        for dim, size in zip(dims or (), data._any(name).shape, strict=False):
            source, length = first.setdefault(dim, (name, size))
            if length != size:
                raise ValueError(
                    f"data {name!r}: the dim {dim!r} has length {size}, but {length} in "
                    f"{source!r}; give the two arrays the same length, or different dims."
                )
    for dim, labels in data.coords.items():
        if dim in first and len(labels) != first[dim][1]:
            raise ValueError(
                f"coords of {dim!r}: {len(labels)} labels for the {first[dim][1]} entries of "
                f"{first[dim][0]!r}."
            )
