"""What netCDF cannot hold, written so that every reader understands it and we can undo it.

netCDF knows numbers, strings and (by xarray's convention) booleans and times. Labelled draws
hold more: categorical and mixed labels, index pairs, names with ``/``, half-precision numbers,
attributes that are booleans, ``None`` or dictionaries. Each is replaced by the nearest thing that
any netCDF reader shows sensibly (a category by its label, a pair by two coordinates), and what was
replaced is noted as JSON in one attribute of the dataset, ``probkit_encoding``, from which
:func:`decode` restores it. Periods and intervals come back as their text.

Cost: linear in the number of labels; arrays of numbers are not copied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray

NOTE = "probkit_encoding"
_PLAIN = (str, int, float, bool, type(None))


def encode(dataset: xarray.Dataset, where: str) -> xarray.Dataset:
    """The dataset with only what netCDF holds; raises ValueError naming what it cannot hold."""
    note: dict[str, Any] = {}
    ds = encode_names(_split_multiindexes(dataset.drop_encoding(), note), note)
    for name in list(ds.variables):
        replaced, how = _plain_values(ds.variables[name], f"{where}: variable {name!r}")
        if how:
            note.setdefault("values", {})[str(name)] = how
        if replaced is not None:
            ds = _with_values(ds, str(name), replaced)
        ds[name].attrs = encode_attrs(ds[name].attrs)
    attrs = {k: v for k, v in ds.attrs.items() if k != NOTE}
    ds.attrs = encode_attrs(attrs, note)
    if note:
        ds.attrs[NOTE] = json.dumps(note)
    return ds


def decode(dataset: xarray.Dataset) -> xarray.Dataset:
    """Undo :func:`encode`; a dataset that another library wrote is returned as it is."""
    if NOTE not in dataset.attrs:
        return dataset
    note = json.loads(dataset.attrs[NOTE])
    ds = dataset.copy()
    for name, how in note.get("values", {}).items():
        if name in ds.variables:
            ds = _with_values(ds, name, _restored(ds.variables[name].values, how))
    ds.attrs = decode_attrs({k: v for k, v in ds.attrs.items() if k != NOTE}, note)
    ds = decode_names(ds, note)
    for dim, levels in note.get("pairs", {}).items():
        ds = ds.set_index({dim: levels})
    return ds


def encode_names(ds: xarray.Dataset, note: dict[str, Any]) -> xarray.Dataset:
    """Replace ``/``, which netCDF and DataTree keep for groups, by ``::`` in names and dims."""
    taken = {str(n) for n in (*ds.variables, *ds.dims)}
    renames: dict[str, str] = {}
    for old in sorted(n for n in taken if "/" in n):
        new = old.replace("/", "::").strip(":") or "_"
        while new in taken:
            new += "_"
        taken.add(new)
        renames[old] = new
    if not renames:
        return ds.copy()
    note["names"] = {new: old for old, new in renames.items()}
    return ds.rename(renames)


def decode_names(ds: xarray.Dataset, note: Mapping[str, Any]) -> xarray.Dataset:
    """Undo :func:`encode_names`."""
    names = {str(n) for n in (*ds.variables, *ds.dims)}
    back = {new: old for new, old in note.get("names", {}).items() if new in names}
    return ds.rename(back) if back else ds


def encode_attrs(attrs: Mapping[Any, Any], note: dict[str, Any] | None = None) -> dict[str, Any]:
    """Attributes as strings and numbers; the names of those turned into JSON go to ``note``."""
    out: dict[str, Any] = {}
    turned = []
    for key, value in attrs.items():
        name = str(key)
        if isinstance(value, str | bytes):
            out[name] = value
        elif isinstance(value, int | float | np.number) and not isinstance(value, bool):
            out[name] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size:
            out[name] = value
        else:
            out[name] = json.dumps(value, default=_jsonable)
            turned.append(name)
    if note is not None and turned:
        note["attrs"] = turned
    return out


def decode_attrs(attrs: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`encode_attrs` for the names in ``note``."""
    turned = set(note.get("attrs", ()))
    return {k: json.loads(v) if k in turned else v for k, v in attrs.items()}


def _jsonable(value: Any) -> Any:
    """What ``json`` cannot write: numpy things by their values, the rest as text."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return str(value)


def _split_multiindexes(ds: xarray.Dataset, note: dict[str, Any]) -> xarray.Dataset:
    """Pairs of labels (a pandas MultiIndex) become one coordinate per level."""
    pairs = {}
    for name, index in ds.indexes.items():
        if index.nlevels > 1 and name in ds.dims:
            pairs[str(name)] = [str(level) for level in index.names]
    if pairs:
        note["pairs"] = pairs
        ds = ds.reset_index(list(pairs))
    return ds


def _plain_values(variable: xarray.Variable, where: str) -> tuple[Any | None, dict[str, Any]]:
    """An array netCDF can hold (None where the values are fine), and how to undo it."""
    if not isinstance(variable.dtype, np.dtype):
        return _plain_extension(variable)
    values = variable.values
    if values.dtype.kind == "c":
        raise ValueError(
            f"{where} is complex, which netCDF cannot hold; save its real and imaginary parts as "
            "two variables."
        )
    if values.dtype.kind == "V" or values.dtype == np.float16:
        # jax's bfloat16 has kind V; float32 holds both exactly.
        return values.astype(np.float32), {"dtype": str(values.dtype)}
    if values.dtype.kind == "T":
        return values.astype(object), {}
    if values.dtype.kind == "O" and not all(isinstance(v, str) for v in values.flat):
        plain = [v.item() if isinstance(v, np.generic) else v for v in values.flat]
        plain = [v if isinstance(v, _PLAIN) else str(v) for v in plain]
        text = np.array([str(v) for v in plain], dtype=object)
        return text.reshape(values.shape), {"objects": plain}
    return None, {}


def _plain_extension(variable: xarray.Variable) -> tuple[Any, dict[str, Any]]:
    """Labels of a pandas extension type as an ordinary array, and how to undo it."""
    import pandas as pd

    dtype: Any = variable.dtype
    index = pd.Index(variable.data)
    text = np.array([str(v) for v in np.asarray(variable.data, dtype=object)], dtype=object)
    if isinstance(dtype, pd.CategoricalDtype):
        categories = [v if isinstance(v, _PLAIN) else str(v) for v in dtype.categories.tolist()]
        return text, {"categories": categories, "ordered": bool(dtype.ordered)}
    if isinstance(index, pd.DatetimeIndex):
        universal = index.tz_convert("UTC").tz_localize(None).to_numpy()
        return universal, {"timezone": str(index.tz)}
    if pd.api.types.is_numeric_dtype(dtype) and not index.hasnans:
        return index.to_numpy(dtype=dtype.numpy_dtype), {}
    return text, {}


def _restored(values: np.ndarray, how: Mapping[str, Any]) -> Any:
    if "categories" in how:
        import pandas as pd

        code = {str(label): i for i, label in enumerate(how["categories"])}
        codes = [code.get(str(v), -1) for v in values]
        return pd.Categorical.from_codes(codes, how["categories"], ordered=how["ordered"])
    if "timezone" in how:
        import pandas as pd

        return pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(how["timezone"])
    if "objects" in how:
        out = np.empty(len(how["objects"]), dtype=object)
        out[:] = how["objects"]
        return out.reshape(values.shape)
    if how["dtype"] == "float16":
        return values.astype(np.float16)
    return values


def _with_values(ds: xarray.Dataset, name: str, values: Any) -> xarray.Dataset:
    """The dataset with other values in one variable or coordinate, dims and attributes kept."""
    variable = ds.variables[name]
    entry = (variable.dims, values, variable.attrs)
    return ds.assign_coords({name: entry}) if name in ds.coords else ds.assign({name: entry})
