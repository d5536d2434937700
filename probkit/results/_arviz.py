"""The one file that reaches ArviZ: groups of datasets to its object and back, on both lines.

ArviZ 0.23 holds groups in an ``InferenceData``; ArviZ 1.x holds them in an ``xarray.DataTree``.
Both are built from finished datasets here, not by ``from_dict``: its signature differs between
the lines (0.23 reads the nested dictionary of 1.x as variables of odd shapes, in silence), it
guesses dims, and converters that evaluate a model compile programs. So dims and coords stay
exact and nothing is computed. The 1.x object needs only xarray: ArviZ itself is not imported.

Cost: none to speak of; arrays are shared, not copied.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ._netcdf import check_group
from ._netcdf_codec import NOTE, decode_names, encode_names

if TYPE_CHECKING:
    import xarray


def to_arviz(groups: Mapping[str, xarray.Dataset], attrs: Mapping[str, Any] | None = None) -> Any:
    """The installed ArviZ line's object for groups of datasets.

    Args:
        groups: ArviZ group names to datasets; dims and coords are kept as they are.
        attrs: global attributes of the object.

    Returns:
        ``arviz.InferenceData`` on ArviZ 0.x, ``xarray.DataTree`` on 1.x. A DataTree cannot hold
        names with ``/``: there they are written with ``::`` (:func:`from_arviz` undoes it).

    Raises:
        TypeError: a group that is not a Dataset. ValueError: a name that cannot be a group.
        ImportError: ArviZ 0.x is installed but cannot be imported.

    Example:
        >>> import numpy as np, xarray as xr
        >>> draws = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 5)))})
        >>> tree = to_arviz({"posterior": draws})
        >>> tree["posterior"]["mu"].shape
        (2, 5)
    """
    for name, ds in groups.items():
        check_group(name, ds, "to_arviz")
    if _line() == 0:
        return _inference_data(groups, attrs)
    import xarray

    nodes: dict[str, Any] = {"/": xarray.Dataset(attrs=dict(attrs or {}))}
    nodes.update({name: _tree_safe(ds) for name, ds in groups.items()})
    return xarray.DataTree.from_dict(nodes)


def without_holes(terms: xarray.Dataset) -> xarray.Dataset:
    """Without the rows of missing outcomes, where these are rows: other tools count all entries."""
    for value in terms.values():
        rows = [d for d in value.dims if d not in ("chain", "draw")]
        alone = len(rows) == 1 and sum(rows[0] in v.dims for v in terms.values()) == 1
        if alone:
            holes = value.isnull().all(("chain", "draw")).values
            terms = terms.isel({rows[0]: ~holes}) if holes.any() else terms
    return terms


def from_arviz(obj: Any) -> dict[str, xarray.Dataset]:
    """The groups of an ``InferenceData`` or a ``DataTree``, whichever library made it.

    Raises:
        TypeError: neither of the two.
    """
    return _opened(obj)[0]


def arviz_attrs(obj: Any) -> dict[str, Any]:
    """The global attributes of an ``InferenceData`` or a ``DataTree``."""
    return _opened(obj)[1]


def _opened(obj: Any) -> tuple[dict[str, xarray.Dataset], dict[str, Any]]:
    import xarray

    if isinstance(obj, xarray.DataTree):
        groups = {
            str(name): _untree(child.to_dataset(inherit=True))
            for name, child in obj.children.items()
        }
        return groups, {str(k): v for k, v in obj.attrs.items()}
    # An object of ArviZ's own type exists only after ArviZ 0.x was imported.
    kind = getattr(sys.modules.get("arviz"), "InferenceData", None) if _line() == 0 else None
    if isinstance(kind, type) and isinstance(obj, kind):
        data: Any = obj
        groups = {str(name): data[name] for name in data.groups()}
        return groups, {str(k): v for k, v in dict(data.attrs or {}).items()}
    raise TypeError(
        "from_arviz: expected an arviz.InferenceData or an xarray.DataTree, found "
        f"{type(obj).__name__}; a dictionary of datasets already is what from_arviz returns."
    )


def _line() -> int:
    """0 for ArviZ 0.x, 1 for later ones; without ArviZ the DataTree, which needs none."""
    try:
        return 0 if version("arviz").startswith("0.") else 1
    except PackageNotFoundError:
        return 1


def _inference_data(groups: Mapping[str, xarray.Dataset], attrs: Mapping[str, Any] | None) -> Any:
    try:
        import arviz
    except (AttributeError, ImportError) as error:
        # ArviZ 0.23 imports arviz-plots where it finds it, and arviz-plots 0.8 uses a part of
        # matplotlib that 3.11 no longer has.
        raise ImportError(
            f"to_arviz: arviz {version('arviz')} is installed but cannot be imported ({error}); "
            "if arviz-plots is installed beside it, remove it or take matplotlib<3.11."
        ) from error
    datasets: dict[str, Any] = dict(groups)
    return arviz.InferenceData(attrs=dict(attrs or {}), **datasets)


def _tree_safe(ds: xarray.Dataset) -> xarray.Dataset:
    note: dict[str, Any] = {}
    renamed = encode_names(ds, note)
    if note:
        renamed.attrs = {**ds.attrs, NOTE: json.dumps(note)}
    return renamed


def _untree(ds: xarray.Dataset) -> xarray.Dataset:
    if NOTE not in ds.attrs:
        return ds
    out = decode_names(ds, json.loads(ds.attrs[NOTE]))
    out.attrs = {k: v for k, v in ds.attrs.items() if k != NOTE}
    return out
