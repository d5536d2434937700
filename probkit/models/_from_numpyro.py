"""A NumPyro model function as a model: bound to data, it becomes a Target like any other.

The function is taken unchanged. Data are its keyword arguments: arrays (and data frames' columns)
are arguments of the compiled programs, whole numbers, strings, booleans and None are static.
Plates give the dims. What the function observes is the likelihood; factors are not.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from probkit.core import Labels, Target, listing, nearest
from probkit.core._config import setting
from probkit.core._programs import compiled
from probkit.models._data import ROWS, Data, read_data
from probkit.models._gp import precision_of
from probkit.models._numpyro_program import NumpyroProgram

_MAX_PROGRAMS = 8
_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class NumpyroModel:
    """A model from a NumPyro function; made by `Model.from_numpyro`.

    Args:
        fn: any NumPyro model whose data can be given by keyword.
        dims: dims of sites and of data, by name. A site's plates name their axes by themselves;
            the names given are those of the other axes, or of all.

    Example:
        >>> import numpyro, probkit as pk
        >>> def schools(sigma, y=None):
        ...     mu = numpyro.sample("mu", pk.dist.Normal(0, 5))
        ...     tau = numpyro.sample("tau", pk.dist.HalfCauchy(5))
        ...     with numpyro.plate("school", len(sigma)):
        ...         theta = numpyro.sample("theta", pk.dist.Normal(mu, tau))
        ...         numpyro.sample("y", pk.dist.Normal(theta, sigma), obs=y)
        >>> model = pk.Model.from_numpyro(schools)
        >>> target = model.bind({"y": [28.0, 8.0], "sigma": [15.0, 10.0]})
        >>> target.sites["theta"].dims
        ('school',)
    """

    def __init__(self, fn: Callable[..., Any], dims: Mapping[str, Any] | None = None):
        if not callable(fn):
            raise TypeError(
                f"from_numpyro: expected a NumPyro model function, found {type(fn).__name__}"
            )
        self.fn = fn
        self.dims = _named(dims)
        self._parameters = inspect.signature(fn).parameters
        self._programs: OrderedDict[Any, NumpyroProgram] = OrderedDict()

    def __repr__(self) -> str:
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        return f"NumpyroModel({name}({', '.join(self._parameters)}))"

    def bind(
        self,
        data: Any = None,
        *,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Any] | None = None,
        reparam: Any = "auto",
        like: Target | None = None,
        precision: str | None = None,
    ) -> Target:
        """The Target of this function with data.

        Args:
            data: arguments of the function by name: a mapping, an xarray Dataset or a data frame
                (its columns that are parameters).
            coords: labels by dim.
            dims: dims of data and sites, by name, besides those given to `Model.from_numpyro`.
            reparam: not used: the function says itself how it is parametrised.
            like: a Target of the same model; categories, coords, static arguments and precision
                follow it.
            precision: ``"double"`` computes in float64; None is JAX's setting.

        Raises:
            ValueError, TypeError: an argument is missing or unknown; a plate that subsamples; a
                ``numpyro.param``; data with holes.
        """
        if reparam not in ("auto", "off", None):
            warnings.warn(
                "reparam= is not used for a NumPyro function, which says itself how it is "
                "parametrised; wrap it in numpyro.handlers.reparam",
                stacklevel=2,
            )
        with precision_of({}, like, precision):
            return self._bound(data, coords, dims, like)

    def _bound(self, data: Any, coords: Any, dims: Any, like: Target | None) -> Target:
        names = {**self.dims, **_named(dims)}
        static, parsed = self._read(data, names, like)
        arrays = {k: _host(k, parsed.array(k)) for k in parsed.arrays}
        site_dims = {k: v for k, v in names.items() if k not in arrays}
        # A program knows the dims of its data: other dims are another program.
        axes_key = tuple(sorted((k, str(parsed.dims.get(k))) for k in arrays))
        program, fixed = self._program(static, arrays, site_dims, axes_key)
        held = {} if fixed else arrays
        observed = _observed_values(program, held)
        axes, rows = _data_dims(program, parsed, arrays, names)
        program.data_dims.update(axes)
        packed = {"data": held, "observed": observed, "centred": {}}
        labels = Labels(
            coords=_coords(program, parsed, coords, rows, like),
            observed=observed,
            constants={k: v for k, v in arrays.items() if k not in observed},
            rows=rows,
            categorical=parsed.categorical,
            rebind=lambda new, **options: self._again(new, static, dims, options),
            source=BoundFunction(self.fn, {**static, **arrays}),
        )
        return Target(program, packed, labels)

    def _again(self, data: Any, static: dict, dims: Any, options: dict) -> Target:
        if data is None or isinstance(data, Mapping):
            data = {**static, **(data if data is not None else {})}
        return self.bind(data, **{"dims": dims, **options})

    # -- arguments --------------------------------------------------------------------------

    def _read(
        self, data: Any, names: Mapping[str, tuple[str, ...]], like: Target | None
    ) -> tuple[dict[str, Any], Data]:
        any_name = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())
        trained = {} if like is None else like.labels.coords
        static: dict[str, Any] = {}
        if data is None or isinstance(data, Mapping):
            given = dict(data) if data is not None else {}
            self._check_names(given, any_name)
            static = {k: v for k, v in given.items() if _is_static(v)}
            arrays = {k: v for k, v in given.items() if k not in static}
            own = {k: v for k, v in names.items() if k in arrays}
            parsed = read_data(arrays, dims=own, categories=trained)
        else:
            wanted = None if any_name else set(self._parameters)
            parsed = read_data(data, categories=trained, names=wanted)
        for name, holes in parsed.missing.items():
            raise ValueError(
                f"data {name!r}: {int(holes.sum())} entries are missing; a NumPyro function has to "
                "impute them itself (numpyro.sample(..., obs_mask=...)): pass filled values and "
                "the mask, or declare a Model, which imputes"
            )
        self._check_required({*static, *parsed.arrays}, parsed)
        return static, parsed

    def _check_names(self, given: Mapping[str, Any], any_name: bool) -> None:
        for name in given:
            if name not in self._parameters and not any_name:
                raise ValueError(
                    f"data {name!r}: the model function has no such parameter."
                    f"{nearest(name, self._parameters)} It takes {listing(self._parameters)}."
                )

    def _check_required(self, given: set[str], parsed: Data) -> None:
        for name, p in self._parameters.items():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or name in given:
                continue
            if p.kind is p.POSITIONAL_ONLY:
                raise TypeError(
                    f"model function: its parameter {name!r} is positional only, but data are "
                    "given by name; remove the slash from its signature"
                )
            if p.default is p.empty:
                raise ValueError(
                    f"model function: its parameter {name!r} has no default and is not in the "
                    f"data.{nearest(name, parsed.names or given)} Pass it, or give it a default."
                )

    # -- programs ---------------------------------------------------------------------------

    def _program(
        self, static: dict[str, Any], arrays: dict[str, np.ndarray], dims: dict, axes_key: tuple
    ) -> tuple[NumpyroProgram, bool]:
        """The program for these sizes, and whether the arrays' values are part of it."""
        shapes = tuple(sorted((k, v.shape, v.dtype.name) for k, v in arrays.items()))
        base = (
            tuple(sorted((k, _key(v)) for k, v in static.items())),
            shapes,
            tuple(sorted(dims.items())),
            axes_key,
            setting("jax_enable_x64"),
        )
        known = self._cached((base, None))
        if known is not None:
            return known, False
        digest = hashlib.sha256(
            b"".join(k.encode() + v.tobytes() for k, v in sorted(arrays.items()))
        ).hexdigest()
        known = self._cached((base, digest))
        if known is not None:
            return known, True
        try:
            program, key = NumpyroProgram(self.fn, static, arrays, dims, {}), (base, None)
        except _UNTRACEABLE:
            # The function looks at its data's values (a maximum as a size, say): these become
            # constants of the program, as they are in NumPyro's own MCMC.
            program, key = NumpyroProgram(self.fn, static, {}, dims, arrays), (base, digest)
        self._programs[key] = program
        while len(self._programs) > _MAX_PROGRAMS:
            self._programs.popitem(last=False)
        return program, key[1] is not None

    def _cached(self, key: tuple) -> NumpyroProgram | None:
        if key in self._programs:
            self._programs.move_to_end(key)
        return self._programs.get(key)


@dataclass(frozen=True, eq=False)
class BoundFunction:
    """A NumPyro function with its arguments: the source of a Target, for its picture."""

    fn: Callable[..., Any]
    arguments: dict[str, Any]

    def graph(self) -> Any:
        """A picture of the graph, found by NumPyro's own inspection of the function."""
        from numpyro.infer.inspect import get_model_relations

        from probkit.models._picture import Vertex, draw

        found = get_model_relations(self.fn, model_kwargs=self.arguments)
        plates: dict[str, list[str]] = {k: [] for k in found["sample_sample"]}
        for plate, members in found["plate_sample"].items():
            for name in members:
                plates.setdefault(name, []).append(plate)
        vertices = []
        for name in found["sample_sample"]:
            kind = "observed" if name in found["observed"] else "latent"
            text = str(found["sample_dist"].get(name) or "")
            if text == "Deterministic":
                kind = "deterministic"
            vertices.append(Vertex(name, kind, tuple(plates.get(name, ())), text))
        edges = [(p, k) for k, parents in found["sample_sample"].items() for p in parents]
        return draw(vertices, [(p, k) for p, k in edges if p != k])


def _named(dims: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    given = dims if dims is not None else {}
    return {k: (v,) if isinstance(v, str) else tuple(v) for k, v in given.items()}


def _is_static(value: Any) -> bool:
    return value is None or callable(value) or isinstance(value, bool | int | str | np.integer)


def _key(value: Any) -> tuple[str, Any]:
    """A static argument as part of a program's key: ``1`` and ``True`` are not the same."""
    return type(value).__name__, id(value) if callable(value) else repr(value)


def _host(name: str, array: np.ndarray) -> np.ndarray:
    from probkit.models._bind import _host as host

    return host(name, array)


def _observed_values(program: NumpyroProgram, arrays: dict) -> dict[str, np.ndarray]:
    """What the function observes (it may transform its data first), checked for holes."""
    if not any(f.kind == "observed" for f in program.facts.values()):
        return {}
    held = {"data": arrays}
    run = compiled(program, "observed", None, program.observed_values, (held,))
    out = {k: np.asarray(v) for k, v in run(held).items()}
    for name, value in out.items():
        if value.dtype.kind == "f" and np.isnan(value).any():
            raise ValueError(
                f"site {name!r}: {int(np.isnan(value).sum())} of its observed values are NaN; "
                "mend the data, or what the function computes of them"
            )
    return out


def _data_dims(
    program: NumpyroProgram,
    parsed: Data,
    arrays: Mapping[str, np.ndarray],
    names: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, tuple[str | None, ...]], str | None]:
    """Dims of the data's axes, and the dim of the rows (the observed variables' first)."""
    first = {f.dims[0] for f in program.facts.values() if f.kind == "observed" and f.dims}
    if not first and parsed.is_frame:
        first = {d for d, n in program.sizes.items() if n == parsed.num_rows}
    rows = first.pop() if len(first) == 1 else None
    plates = dict.fromkeys(p for f in program.facts.values() for p in (*f.dims, *f.plates))
    sizes = {p: program.sizes[p] for p in plates if p in program.sizes}
    out: dict[str, tuple[str | None, ...]] = {}
    for name, array in arrays.items():
        known = parsed.dims.get(name)
        site = program.facts.get(name)
        if known is not None:
            out[name] = tuple(rows if d == ROWS else d for d in known)
        elif site is not None and site.shape == array.shape:
            out[name] = site.dims
        else:
            out[name] = tuple(_only_fit(n, array.shape, sizes) for n in array.shape)
    return out, rows


def _only_fit(size: int, shape: tuple[int, ...], sizes: Mapping[str, int]) -> str | None:
    fits = [d for d, n in sizes.items() if n == size]
    return fits[0] if len(fits) == 1 and shape.count(size) == 1 else None


def _coords(
    program: NumpyroProgram,
    parsed: Data,
    given: Mapping[str, Any] | None,
    rows: str | None,
    like: Target | None,
) -> dict[str, np.ndarray]:
    labels = dict(given) if given is not None else {}
    for dim in labels:
        if dim not in program.sizes:
            raise ValueError(
                f"coords: the model has no dim {dim!r}.{nearest(dim, program.sizes)} Its dims are "
                f"{listing(program.sizes)}."
            )
    out = {}
    for dim, size in program.sizes.items():
        old = None if like is None or dim == rows else like.labels.coords.get(dim)
        if dim in labels:
            found = np.asarray(labels[dim])
            if found.shape != (size,):
                raise ValueError(
                    f"coords[{dim!r}]: expected {size} labels, found shape {found.shape}"
                )
        elif old is not None and len(old) == size:
            found = old
        elif dim in parsed.coords:
            found = np.asarray(parsed.coords[dim])
        elif dim == rows and parsed.row_labels is not None:
            found = np.asarray(parsed.row_labels)
        else:
            found = np.arange(size)
        out[dim] = found if len(found) == size else np.arange(size)
    return out
