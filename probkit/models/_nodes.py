"""The nodes of a Model: what a variable may be declared as.

A node holds a function and the names of its parents; it never computes by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpyro.distributions import Distribution

from probkit.core import check_options


@dataclass(frozen=True, eq=False)
class Size:
    """The size of a dim, as a parent or as a node of its own."""

    dim: str


@dataclass(frozen=True, eq=False)
class Node:
    """Base of all nodes.

    Attributes:
        fn: called with the parents' values in their natural shapes.
        parents: parents' names, in the order of ``fn``'s parameters.
        optional: parents with a default; used only where the name is known.
        sizes: parents that are forced to be the size of a dim.
        dims: names of the batch axes of the value.
        event_dims: names of the event axes of the value.
    """

    fn: Callable[..., Any]
    parents: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    sizes: Mapping[str, str] = field(default_factory=dict)
    dims: tuple[str, ...] = ()
    event_dims: tuple[str, ...] = ()
    by_keyword: bool = True


@dataclass(frozen=True, eq=False)
class RandomVariable(Node):
    """A variable with a distribution. ``text`` describes it in the model's table."""

    text: str = ""


@dataclass(frozen=True, eq=False)
class Deterministic(Node):
    """A function of its parents; ``hidden`` ones are not reported (they may be any object)."""

    hidden: bool = False


@dataclass(frozen=True, eq=False)
class Factor(Node):
    """A log density term; one with ``likelihood=True`` counts as data."""

    likelihood: bool = False


@dataclass(frozen=True, eq=False)
class Module:
    """A neural network (any equinox module) whose float arrays are random variables."""

    module: Any
    prior: Any


def names(where: str, dims: str | Sequence[str] | None) -> tuple[str, ...]:
    """Dim names as a tuple, or an error that says what a dim name looks like."""
    if dims is None:
        return ()
    found = tuple(dims) if isinstance(dims, Sequence) and not isinstance(dims, str) else (dims,)
    for dim in found:
        if not isinstance(dim, str) or not dim:
            raise TypeError(
                f"{where}: expected dims to be a name or a sequence of names, found {dims!r}; give "
                "names, such as dims='school' (their sizes come from data or coords)"
            )
    if len(set(found)) != len(found):
        raise ValueError(f"{where}: dims {found} name the same dim twice; use two dims")
    return found


def signature_of(
    where: str, fn: Callable
) -> tuple[tuple[str, ...], frozenset[str], dict[str, str]]:
    """A function's parents, those with a default, and those that are sizes of dims."""
    if not callable(fn):
        raise TypeError(
            f"{where}: expected a function whose parameters are its parents, such as "
            f"lambda mu, tau: dist.Normal(mu, tau); found {type(fn).__name__}"
        )
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{where}: the signature of {fn!r} cannot be read; wrap it in a lambda"
        ) from error
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(
                f"{where}: the function takes *{p.name}; a parent needs a name of its own, "
                "so list every parent as a parameter"
            )
    sizes = {p.name: p.default.dim for p in parameters if isinstance(p.default, Size)}
    optional = {p.name for p in parameters if p.default is not p.empty} - set(sizes)
    return tuple(p.name for p in parameters), frozenset(optional), sizes


def _node(
    kind: type, where: str, fn: Callable, dims: Any, event_dims: Any, parents: Any, **more: Any
) -> Any:
    if parents is None:
        found, optional, sizes = signature_of(where, fn)
        by_keyword = all(
            p.kind is not p.POSITIONAL_ONLY for p in inspect.signature(fn).parameters.values()
        )
    else:
        if not callable(fn):
            raise TypeError(f"{where}: expected a function, found {type(fn).__name__}")
        found, optional, sizes, by_keyword = tuple(parents), frozenset(), {}, False
    return kind(
        fn,
        found,
        optional,
        sizes,
        names(where, dims),
        names(where, event_dims),
        by_keyword,
        **more,
    )


def rv(
    fn: Callable[..., Distribution] | Distribution,
    dims: str | Sequence[str] | None = None,
    event_dims: str | Sequence[str] | None = None,
    *,
    parents: Sequence[str] | None = None,
    **unknown: Any,
) -> RandomVariable:
    """A random variable.

    Args:
        fn: a NumPyro distribution, or a function that returns one; the names of its parameters
            are its parents: declared variables, data columns or dim sizes.
        dims: names of the batch axes, in the order of the variable's natural shape. A distribution
            without them is repeated along them independently.
        event_dims: names of the event axes (of a multivariate distribution).
        parents: the parents' names, when ``fn`` is to be called with them by position.

    Raises:
        TypeError: ``fn`` is neither, has ``*args``, or an option is misspelt.
        ValueError: a dim is named twice.

    Example:
        >>> import probkit as pk
        >>> theta = pk.rv(lambda mu, tau: pk.dist.Normal(mu, tau), dims="school")
        >>> theta.parents
        ('mu', 'tau')
    """
    check_options("pk.rv", unknown, ["fn", "dims", "event_dims", "parents"])
    if isinstance(fn, type) and issubclass(fn, Distribution):
        raise TypeError(
            f"pk.rv: expected a distribution or a function that returns one, found the class "
            f"{fn.__name__}; call it: {fn.__name__}(...), in a function of its parents if any"
        )
    if isinstance(fn, Distribution):
        fixed = fn
        node = _node(RandomVariable, "pk.rv", lambda: fixed, dims, event_dims, None)
        return _described(node, describe_distribution(fixed))
    return _described(_node(RandomVariable, "pk.rv", fn, dims, event_dims, parents), "")


def _described(node: RandomVariable, text: str) -> RandomVariable:
    return RandomVariable(
        node.fn,
        node.parents,
        node.optional,
        node.sizes,
        node.dims,
        node.event_dims,
        node.by_keyword,
        text,
    )


def deterministic(
    fn: Callable[..., Any],
    dims: str | Sequence[str] | None = None,
    *,
    parents: Sequence[str] | None = None,
    **unknown: Any,
) -> Deterministic:
    """A function of other variables and of data, recorded with every draw.

    Args:
        fn: returns an array whose axes are ``dims``; its parameters are its parents.
        dims: names of all axes of the value.
        parents: the parents' names, when ``fn`` is to be called with them by position.

    Example:
        >>> import probkit as pk
        >>> pk.deterministic(lambda a, b: a - b).parents
        ('a', 'b')
    """
    check_options("pk.deterministic", unknown, ["fn", "dims", "parents"])
    return _node(Deterministic, "pk.deterministic", fn, dims, None, parents)


def factor(
    fn: Callable[..., Any],
    dims: str | Sequence[str] | None = None,
    *,
    likelihood: bool = False,
    parents: Sequence[str] | None = None,
    **unknown: Any,
) -> Factor:
    """A term added to the log density.

    Args:
        fn: returns log density terms (any shape; they are summed).
        dims: names of the terms' axes.
        likelihood: whether the term counts as data: only then does it enter the log likelihood,
            LOO and the scaling of mini-batches.
        parents: the parents' names, when ``fn`` is to be called with them by position.

    Example:
        >>> import probkit as pk
        >>> pk.factor(lambda beta: -abs(beta).sum()).likelihood
        False
    """
    check_options("pk.factor", unknown, ["fn", "dims", "likelihood", "parents"])
    return _node(Factor, "pk.factor", fn, dims, None, parents, likelihood=bool(likelihood))


def module(module: Any, prior: Any, **unknown: Any) -> Module:
    """An equinox module whose floating arrays are random variables.

    The variable's value, as a parent of other nodes, is the module itself with its arrays drawn:
    ``lambda net, x: dist.Normal(jax.vmap(net)(x), 1)``. Each array is a site of its own, named
    after its place in the module (``net.layers[0].weight``).

    Args:
        module: an equinox module.
        prior: a scalar distribution for every array, or a function ``(path, array)`` that returns
            one.

    Example:
        >>> import equinox as eqx, jax, probkit as pk
        >>> net = pk.module(eqx.nn.Linear(2, 1, key=jax.random.key(0)), prior=pk.dist.Normal(0, 1))
    """
    check_options("pk.module", unknown, ["module", "prior"])
    if not isinstance(prior, Distribution) and not callable(prior):
        raise TypeError(
            "pk.module(prior=): expected a distribution or a function (path, array) -> "
            f"distribution, found {type(prior).__name__}"
        )
    return Module(module, prior)


def size(dim: str) -> Size:
    """The size of a dim, where a name alone would mean a variable or a column.

    Example:
        >>> import probkit as pk
        >>> pk.rv(lambda n=pk.size("region"): pk.dist.Normal(0, n)).sizes["n"]
        'region'
    """
    if not isinstance(dim, str):
        raise TypeError(f"pk.size: expected the name of a dim, found {dim!r}")
    return Size(dim)


def describe_distribution(d: Distribution) -> str:
    """``Normal(0, 5)``: a distribution with the values of its parameters, shortened."""
    import numpy as np

    def short(value: Any) -> str:
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "fiub":
            return f"{array.reshape(()).item():.4g}"
        return f"<{'x'.join(map(str, array.shape))}>"

    parts = []
    for name in getattr(d, "arg_constraints", {}):
        value = d.__dict__.get(name)
        if value is not None:
            try:
                parts.append(short(value))
            except (TypeError, ValueError):
                parts.append("...")
    return f"{type(d).__name__}({', '.join(parts)})"
