"""Model: a directed graph of random variables. It declares; it never computes."""

from __future__ import annotations

import keyword
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpyro.distributions import Distribution

from probkit.core import listing, nearest
from probkit.models._graph import topological_order
from probkit.models._module import expand_module
from probkit.models._nodes import (
    Deterministic,
    Factor,
    Module,
    Node,
    RandomVariable,
    Size,
    deterministic,
    rv,
)
from probkit.models._parameters import check_parameters

if TYPE_CHECKING:
    from probkit.core import Target


class Model:
    """A declarative model: one keyword a variable.

    A value is a NumPyro distribution, or a node made by `rv`, `deterministic`, `factor`,
    `module`, `markov`, `gp` or `size`. The names of a node's function's parameters are its
    parents. A name that nobody declares is data; a declared name that is found in the data is
    observed; missing entries of an observed variable become latent.

    Models are immutable and hashed by identity; they keep the compiled programs of the last few
    sizes they were bound to.

    Raises:
        TypeError: a value is not a node; a function has ``*args``.
        ValueError: a cycle, a clash of dims, an impossible constant such as a negative scale.

    Example:
        >>> import probkit as pk
        >>> from probkit import dist
        >>> schools = pk.Model(
        ...     mu=dist.Normal(0, 5),
        ...     tau=dist.HalfCauchy(5),
        ...     theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
        ...     y=pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
        ... )
        >>> print(schools)
        mu     ~ Normal(0, 5)
        tau    ~ HalfCauchy(5)
        theta  ~ f(mu, tau)          [school]
        y      ~ f(theta, sigma)     [school]
    """

    def __init__(self, /, **nodes: Any):
        if not nodes:
            raise ValueError(
                "Model: no variables were given; declare them by keyword, for example "
                "pk.Model(mu=dist.Normal(0, 1))"
            )
        self._declared = dict(nodes)
        self._nodes: dict[str, Node] = {}
        for name, value in nodes.items():
            for key, node in _as_nodes(name, value).items():
                if key in self._nodes:
                    raise ValueError(f"site {key!r}: the name is declared twice; rename one")
                self._nodes[key] = node
        for name in _dims(self._nodes):
            if name in self._nodes:
                raise ValueError(
                    f"site {name!r}: it has the name of a dim, so that results could not tell the "
                    f"variable from the labels of the dim {name!r}; rename one of them"
                )
        self._order = topological_order(self._nodes)
        self._given: dict[str, Any] = {}
        self._prepare: Callable[..., Any] | None = None
        self._programs: OrderedDict[Any, Any] = OrderedDict()

    # -- other models from this one ---------------------------------------------------------

    def _copy(self, declared: Mapping[str, Any]) -> Model:
        other = Model(**declared)
        other._given = dict(self._given)
        other._prepare = self._prepare
        return other

    def _with_prepare(self, prepare: Callable[..., Any]) -> Model:
        other = self._copy(self._declared)
        other._prepare = prepare
        return other

    def _known(self, where: str, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self._declared:
                raise ValueError(
                    f"{where}: the model has no variable {name!r}."
                    f"{nearest(name, self._declared)} It has {listing(self._declared)}."
                )

    def replace(self, **nodes: Any) -> Model:
        """The model with some variables declared otherwise. Unknown names are an error.

        Example:
            >>> import probkit as pk
            >>> model = pk.Model(mu=pk.dist.Normal(0, 1)).replace(mu=pk.dist.Cauchy(0, 1))
        """
        self._known("replace", nodes)
        return self._copy({**self._declared, **nodes})

    def extend(self, **nodes: Any) -> Model:
        """The model with more variables. Names that exist already are an error.

        Example:
            >>> import probkit as pk
            >>> model = pk.Model(mu=pk.dist.Normal(0, 1)).extend(
            ...     x=pk.rv(lambda mu: pk.dist.Normal(mu, 1)))
        """
        for name in nodes:
            if name in self._declared:
                raise ValueError(
                    f"extend: the model has a variable {name!r} already; use replace({name}=...)"
                )
        return self._copy({**self._declared, **nodes})

    def do(self, **values: Any) -> Model:
        """An intervention: the variables are set to values and cut off from their parents.

        Example:
            >>> import probkit as pk
            >>> model = pk.Model(x=pk.dist.Normal(0, 1), y=pk.rv(lambda x: pk.dist.Normal(x, 1)))
            >>> cut = model.do(x=2.0)
        """
        self._known("do", values)
        fixed = {}
        for name, value in values.items():
            fixed[name] = _intervention(name, self._nodes.get(name), value)
        return self._copy({**self._declared, **fixed})

    def condition(self, **values: Any) -> Model:
        """The model with variables observed at values, as if they were in the data.

        Example:
            >>> import probkit as pk
            >>> model = pk.Model(x=pk.dist.Normal(0, 1), y=pk.rv(lambda x: pk.dist.Normal(x, 1)))
            >>> given = model.condition(y=0.3)
        """
        self._known("condition", values)
        other = self._copy(self._declared)
        other._given.update(values)
        return other

    # -- doors ------------------------------------------------------------------------------

    @staticmethod
    def from_numpyro(fn: Callable[..., Any], dims: Mapping[str, Any] | None = None) -> Any:
        """A model from any NumPyro model function, taken unchanged.

        Args:
            fn: a NumPyro model. Data are given by keyword; parameters that the data do not name
                keep their defaults; whole numbers, strings and None are static.
            dims: dims of sites and of data, by name.
        """
        from probkit.models._from_numpyro import NumpyroModel

        return NumpyroModel(fn, dims)

    def bind(self, data: Any = None, **options: Any) -> Target:
        """The Target of this model with data; see `probkit.models.bind` for the options."""
        from probkit.models._bind import bind

        return bind(self, data, **options)

    def to_numpyro(self, data: Any = None, **options: Any) -> Callable[..., None]:
        """An ordinary NumPyro model function ``fn(**data)`` for data of these sizes.

        Its sites have the same names and joint density as this model's (centred); its plates are
        the dims. See `probkit.models.to_numpyro`.
        """
        from probkit.models._to_numpyro import to_numpyro

        return to_numpyro(self, data, **options)

    # -- views ------------------------------------------------------------------------------

    @property
    def nodes(self) -> dict[str, Node]:
        """Every node by name, parents first."""
        return {name: self._nodes[name] for name in self._order}

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of all declared dims."""
        return _dims(self._nodes)

    def graph(self) -> Any:
        """A picture of the graph: an object with ``.svg``, shown in notebooks."""
        from probkit.models._picture import picture

        return picture(self)

    def __str__(self) -> str:
        from probkit.models._table import table

        return table(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from probkit.models._table import html_table

        return html_table(self)


def _dims(nodes: Mapping[str, Node]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(d for n in nodes.values() for d in n.dims + n.event_dims))


def _intervention(name: str, node: Node | None, value: Any) -> Deterministic:
    """A variable set to a value: an array of its shape, or one number for all its entries."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"do: expected numbers for {name!r}, found {type(value).__name__}; give an array "
            "(codes "
            "for labels)"
        )
    dims = () if node is None else node.dims
    if array.ndim or not dims:
        events = () if node is None else node.event_dims
        named = (dims + events) if array.ndim == len(dims) + len(events) else dims
        return deterministic(lambda: array, dims=named if array.ndim else None)

    def full(*sizes: int) -> np.ndarray:
        return np.full(sizes, array)

    return Deterministic(full, dims, frozenset(), {d: d for d in dims}, dims, by_keyword=False)


def _as_nodes(name: str, value: Any) -> dict[str, Node]:
    if not name.isidentifier() and ("," in name or not name.strip()):
        raise ValueError(f"site {name!r}: expected a name without commas; rename it")
    if isinstance(value, Distribution):
        check_parameters(f"site {name!r}", value)
        return {name: rv(value)}
    if isinstance(value, Module):
        return expand_module(name, value)
    if isinstance(value, Size):
        return {name: Deterministic(lambda n: n, ("n",), frozenset(), {"n": value.dim})}
    if isinstance(value, RandomVariable | Deterministic | Factor):
        clash = set(value.dims) & set(value.event_dims)
        if clash:
            raise ValueError(
                f"site {name!r}: {listing(clash)} is both a dim and an event dim; batch axes go "
                "into dims, the axes of one multivariate draw into event_dims"
            )
        if name in value.parents and name not in value.sizes:
            raise ValueError(
                f"site {name!r}: the graph has a cycle, {name} -> {name}: its function has a "
                "parameter of its own name; for a chain over time use pk.markov"
            )
        return {name: value}
    hint = "give a NumPyro distribution or pk.rv(fn), pk.deterministic(fn), pk.factor(fn)"
    if isinstance(value, type) and issubclass(value, Distribution):
        hint = f"call it: {value.__name__}(...)"
    elif callable(value):
        hint = "wrap it: pk.rv(fn) if it returns a distribution, pk.deterministic(fn) if a value"
    elif isinstance(value, int | float | np.ndarray | list):
        hint = "constants are data: pass it in the data, or as pk.deterministic(lambda: value)"
    if keyword.iskeyword(name):
        hint += f" ({name!r} is a Python keyword: rename it)"
    raise TypeError(f"site {name!r}: expected a node, found {type(value).__name__}; {hint}")
