"""Groups of labelled draws in one netCDF-4 file, laid out as ArviZ lays it out.

One netCDF group per ArviZ group and the global attributes at the root, so that
``arviz.from_netcdf`` of 0.23 and of 1.x reads what :func:`save_groups` writes, and
:func:`load_groups` reads what any library wrote through ArviZ. A file appears complete or not at
all: it is written beside its place and renamed.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._netcdf_codec import NOTE, decode, decode_attrs, encode, encode_attrs

if TYPE_CHECKING:
    import xarray

# h5netcdf installs without the h5py that it needs for writing.
_ENGINES = {"h5netcdf": ("h5netcdf", "h5py"), "netcdf4": ("netCDF4",)}


def save_groups(
    groups: Mapping[str, xarray.Dataset],
    path: str | os.PathLike[str],
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Write groups and global attributes to a netCDF file that ArviZ reads.

    Args:
        groups: ArviZ group names (``posterior``, ``sample_stats``, ...) to datasets.
        path: the file; its folder must exist; an old file is replaced at the end, in one step.
        attrs: global attributes; what is neither a string nor a number is written as JSON.

    Returns:
        The path.

    Raises:
        TypeError: a group that is not a Dataset. ValueError: a complex variable.
        FileNotFoundError: the folder does not exist.

    Example:
        >>> import numpy as np, tempfile, xarray as xr
        >>> draws = xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 5)))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_groups({"posterior": draws}, f"{folder}/a.nc", {"note": True})
        ...     list(load_groups(path))
        ['posterior']
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"save: the folder {str(target.parent)!r} does not exist; make it first."
        )
    encoded = _encoded(groups, attrs)
    engine: Any = _engines()[0]
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        mode: Any = "w"
        for name, ds in encoded.items():
            ds.to_netcdf(partial, mode=mode, group=name, engine=engine, encoding=_compression(ds))
            mode = "a"
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def load_groups(path: str | os.PathLike[str]) -> dict[str, xarray.Dataset]:
    """The groups of a netCDF file that this package, or any library through ArviZ, wrote.

    Everything is read into memory and the file is closed, so it may be overwritten afterwards.

    Raises:
        FileNotFoundError: no such file. ValueError: not netCDF-4, or a file without groups.
    """
    return load_file(path)[0]


def load_file(
    path: str | os.PathLike[str],
) -> tuple[dict[str, xarray.Dataset], dict[str, Any]]:
    """The groups of a netCDF file, and its global attributes; errors as :func:`load_groups`."""
    source = Path(path)
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise FileNotFoundError(f"load: {str(source)!r} {what}; expected a netCDF file.")
    failures = []
    for engine in _engines():
        try:
            groups, root = _read(source, engine)
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            failures.append(f"{engine}: {type(error).__name__}: {error}")
            continue
        break
    else:
        raise ValueError(
            f"load: {str(source)!r} is not a netCDF-4 file that can be read; expected a file "
            f"written by .save() or ArviZ's to_netcdf. " + "; ".join(failures)
        )
    if not groups:
        raise ValueError(
            f"load: {str(source)!r} is netCDF but has no groups; expected groups such as "
            "'posterior'. A bare dataset can be saved with save_groups({'posterior': dataset}, "
            "path)."
        )
    return groups, root


def _engines() -> list[str]:
    found = [name for name, needs in _ENGINES.items() if all(find_spec(m) for m in needs)]
    if not found:
        raise ImportError(
            "reading and writing netCDF needs h5netcdf with h5py, or netCDF4: "
            "pip install h5netcdf h5py"
        )
    return found


def _encoded(
    groups: Mapping[str, xarray.Dataset], attrs: Mapping[str, Any] | None
) -> dict[str, xarray.Dataset]:
    """The datasets as they go into the file, the root first."""
    import xarray

    note: dict[str, Any] = {}
    root = xarray.Dataset(attrs=encode_attrs(attrs or {}, note))
    if note:
        root.attrs.update(encode_attrs({NOTE: note}))
    out = {"/": root}
    for name, ds in groups.items():
        check_group(name, ds, "save")
        out[name] = encode(ds, f"save: group {name!r}")
    return out


def check_group(name: object, ds: object, where: str) -> None:
    """Raise unless ``name: ds`` can be a group of an ArviZ object."""
    import xarray

    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(
            f"{where}: {name!r} cannot be the name of a group; expected a Python identifier such "
            "as 'posterior'."
        )
    if not isinstance(ds, xarray.Dataset):
        raise TypeError(
            f"{where}: group {name!r} must be an xarray.Dataset, found {type(ds).__name__}."
        )


def _compression(ds: xarray.Dataset) -> dict[Any, dict[str, Any]]:
    # Draws are noise: level 1 takes 7 % off a file of floats and most of the time of writing it.
    return {
        name: {"zlib": True, "complevel": 1}
        for name, variable in ds.variables.items()
        if variable.dtype.kind in "iub" and variable.ndim and variable.size
    }


def _read(path: Path, engine: str) -> tuple[dict[str, xarray.Dataset], dict[str, Any]]:
    import xarray

    opening: Any = {"engine": engine}
    with xarray.open_dataset(path, **opening) as handle:
        root = handle.load()
    groups: dict[str, xarray.Dataset] = {}
    for name in _group_names(path, engine):
        with xarray.open_dataset(path, group=name, **opening) as handle:
            ds = decode(handle.load())
        shared = {
            key: coord
            for key, coord in root.coords.items()
            if key not in ds.variables and set(coord.dims) <= set(ds.dims)
        }
        groups[name] = (ds.assign_coords(shared) if shared else ds).drop_encoding()
    return groups, _root_attrs(root)


def _root_attrs(root: xarray.Dataset) -> dict[str, Any]:
    import json

    note = json.loads(root.attrs[NOTE]) if NOTE in root.attrs else {}
    return decode_attrs({str(k): v for k, v in root.attrs.items() if k != NOTE}, note)


def _group_names(path: Path, engine: str) -> list[str]:
    if engine == "h5netcdf":
        import h5netcdf

        with h5netcdf.File(path, "r") as handle:
            return list(handle.groups)
    # By name: an optional engine, which a type checker need not find.
    netcdf4 = import_module("netCDF4")
    with netcdf4.Dataset(path, "r") as handle:
        return list(handle.groups)
