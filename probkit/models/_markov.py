r"""Chains over time: ``x_0 ~ init``, ``x_t ~ step(x_{t-1}, parents at t)``.

A chain is one variable whose last batch dim is the time. Its log density has one term a time point,

    log p(x) = log init(x_0) + sum_{t > 0} log step(x_t | x_{t-1}, u_t),

where parents ``u`` that have the time dim are taken at ``t`` and all others are whole. All terms
are evaluated side by side (``vmap`` over t); sampling is a ``scan``. A discrete chain that is not
observed is summed out by the forward algorithm (`probkit.models._forward`). Cost: one evaluation
of ``step`` a time point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import Distribution

from probkit.core import check_options, listing
from probkit.models._nodes import Deterministic, Node, RandomVariable, names, signature_of
from probkit.models._parameters import check_parameters, concrete, constraint_words


@dataclass(frozen=True, eq=False)
class Markov(RandomVariable):
    """The node of a chain; ``time`` is its last batch dim."""

    time: str = ""


@dataclass(frozen=True, eq=False)
class ChainFunction:
    """A chain's distribution as a function of its parents, called by keyword.

    Attributes:
        step, init: what the user gave.
        step_parents, init_parents: their parents (those of ``step`` without the state).
        length: the pseudo-parent that is the number of time points.
        event_dims: how many axes one state has.
        axes: the time axis of each parent that has one; known when data are bound.
    """

    step: Callable[..., Distribution]
    init: Any
    step_parents: tuple[str, ...]
    init_parents: tuple[str, ...]
    length: str
    event_dims: int
    axes: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, **values: Any) -> Chain:
        length = int(values.pop(self.length))
        moving = {
            k: jnp.moveaxis(jnp.asarray(values[k]), a, 0)
            for k, a in self.axes.items()
            if k in values
        }
        still = {k: v for k, v in values.items() if k not in moving}

        def at(function: Callable, names: tuple[str, ...], now: Mapping[str, Any]) -> Callable:
            known = {k: now[k] if k in now else still[k] for k in names if k in values}
            return lambda *x: self._state(function(*x, **known))

        def first(now: Mapping[str, Any]) -> Distribution:
            if isinstance(self.init, Distribution):
                return self._state(self.init)
            return at(self.init, self.init_parents, now)()

        def following(x: Array, now: Mapping[str, Any]) -> Distribution:
            return at(self.step, self.step_parents, now)(x)

        return Chain(first, following, length, moving)

    def _state(self, d: Any) -> Distribution:
        if not isinstance(d, Distribution):
            raise TypeError(
                f"expected step and init of a chain to return a distribution, found "
                f"{type(d).__name__}"
            )
        short = self.event_dims - d.event_dim
        return d.to_event(short) if 0 < short <= len(d.batch_shape) else d


class Chain(Distribution):
    """The distribution of a whole chain; the last batch axis is the time.

    ``log_prob`` has one term a time point (each given the point before), so the terms along the
    last batch axis are not those of independent variables; their sum is the joint log density.

    Args:
        first: ``(covariates at time 0) -> distribution`` of the first state.
        following: ``(state before, covariates at t) -> distribution`` of the state at t.
        length: number of time points.
        moving: covariates with the time as their first axis.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_aux_fields = ("first", "following", "length")

    def __init__(
        self, first: Callable, following: Callable, length: int, moving: Mapping[str, Array]
    ):
        self.first, self.following, self.length, self.moving = first, following, length, moving
        for name, value in moving.items():
            if value.shape[0] != length:
                raise ValueError(
                    f"expected {length} time points in {name!r}, found {value.shape[0]}"
                )
        # Constants stay concrete here even under a trace, so that supports can be read.
        with jax.ensure_compile_time_eval():
            start = first(self._at(0))
            check_parameters("init of the chain", start)
            self._support = start.support
            batch, state = self._state_shape(start)
        super().__init__((*batch, length), state, validate_args=False)

    def _state_shape(self, start: Distribution) -> tuple[tuple[int, ...], tuple[int, ...]]:
        batch, state = tuple(start.batch_shape), tuple(start.event_shape)
        if self.length == 1:
            return batch, state

        def look(blank: Array) -> Array:
            # The state before is abstract here: bounds that depend on it show as tracers.
            with jax.ensure_compile_time_eval():
                after = self.following(blank, self._at(1))
            check_parameters("step of the chain", after)
            if tuple(after.event_shape) != state:
                raise ValueError(
                    f"expected init and step to have one event shape, found {state} and "
                    f"{after.event_shape}"
                )
            _same_support(start.support, after.support)
            found.append(tuple(np.broadcast_shapes(batch, tuple(after.batch_shape))))
            return blank

        found: list[tuple[int, ...]] = []
        for _ in range(2):
            jax.eval_shape(look, jax.ShapeDtypeStruct(batch + state, self._dtype(start)))
            batch = found[-1]
        return batch, state

    @staticmethod
    def _dtype(d: Distribution) -> Any:
        return jnp.result_type(int if d.is_discrete else float)

    def _at(self, t: int) -> dict[str, Array]:
        return {k: v[t] for k, v in self.moving.items()}

    @property
    def support(self) -> Any:
        """The support of every state."""
        return self._support

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether a state takes finitely many values."""
        return bool(getattr(self.first(self._at(0)), "has_enumerate_support", False))

    def enumerate_support(self, expand: bool = True) -> Array:
        """The values of one state; see NumPyro."""
        values = self.first(self._at(0)).enumerate_support(expand=False).reshape(-1)
        values = values.reshape((-1, *(1,) * len(self.batch_shape)))
        return jnp.broadcast_to(values, (len(values), *self.batch_shape)) if expand else values

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """Terms of shape ``(..., time)``: each state given the one before."""
        states = jnp.moveaxis(value, -1 - self.event_dim, 0)
        start = self.first(self._at(0)).log_prob(states[0])
        if self.length == 1:
            return start[..., None]
        later = {k: v[1:] for k, v in self.moving.items()}

        def term(before: Array, now: Array, covariates: dict) -> Array:
            return self.following(before, covariates).log_prob(now)

        rest = jax.vmap(term)(states[:-1], states[1:], later)
        start = jnp.broadcast_to(start, rest.shape[1:])
        return jnp.moveaxis(jnp.concatenate([start[None], rest]), 0, -1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Chains of shape ``(*sample_shape, *batch, time, *event)``."""
        count = int(np.prod(sample_shape))
        if not sample_shape:
            return self._path(key)
        paths = jax.vmap(self._path)(jax.random.split(key, count))
        return paths.reshape((*sample_shape, *paths.shape[1:]))

    def _path(self, key: Array) -> Array:
        shape = (*self.batch_shape, *self.event_shape)
        blank = jnp.zeros(shape, self._dtype(self.first(self._at(0))))
        return self.continued(key, blank, jnp.zeros(shape, bool))

    def continued(self, key: Array, known: Array, mask: Array) -> Array:
        """A chain that has the ``known`` states under ``mask``, and goes on from each of them.

        The states after known ones are drawn given these: a forecast. (Known states have no
        influence on states before them.)

        Args:
            key: a typed key.
            known: states, shape ``(*batch, time, *event)``.
            mask: where they are known, of the same shape.
        """
        batch, axis = self.batch_shape[:-1], -1 - self.event_dim
        held, where = jnp.moveaxis(known, axis, 0), jnp.moveaxis(mask, axis, 0)
        start = self.first(self._at(0)).expand(batch).sample(jax.random.fold_in(key, 0))
        start = jnp.where(where[0], held[0].astype(start.dtype), start)

        def advance(before: Array, now: tuple) -> tuple[Array, Array]:
            number, covariates, value, is_known = now
            d = self.following(before, covariates).expand(batch)
            after = d.sample(jax.random.fold_in(key, number)).astype(before.dtype)
            after = jnp.where(is_known, value.astype(before.dtype), after)
            return after, after

        later = {k: v[1:] for k, v in self.moving.items()}
        inputs = (jnp.arange(1, self.length), later, held[1:], where[1:])
        _, rest = jax.lax.scan(advance, start, inputs)
        return jnp.moveaxis(jnp.concatenate([start[None], rest]), 0, axis)

    def transitions(self, states: int) -> Array:
        """``log p(x_t = k | x_{t-1} = j)``: shape ``(states, states, *batch)``, time last.

        The first time point holds the initial distribution, whatever ``j``.
        """
        batch = self.batch_shape[:-1]
        codes = jnp.arange(states)

        def full(code: Array) -> Array:
            return jnp.zeros(batch, jnp.result_type(int)) + code

        start = jax.vmap(lambda k: self.first(self._at(0)).log_prob(full(k)))(codes)
        start = jnp.broadcast_to(start, (states, states, *batch))
        if self.length == 1:
            return start[..., None]
        later = {k: v[1:] for k, v in self.moving.items()}

        def row(j: Array, covariates: dict) -> Array:
            d = self.following(full(j), covariates)
            return jax.vmap(lambda k: jnp.broadcast_to(d.log_prob(full(k)), batch))(codes)

        if later:
            table = jax.vmap(lambda now: jax.vmap(lambda j: row(j, now))(codes))(later)
        else:
            # Nothing moves: one table serves all time points.
            table = jax.vmap(lambda j: row(j, {}))(codes)
            table = jnp.broadcast_to(table, (self.length - 1, *table.shape))
        return jnp.moveaxis(jnp.concatenate([start[None], table]), 0, -1)


def _same_support(first: Any, later: Any) -> None:
    for where, support in (("init", first), ("step", later)):
        if not concrete(support):
            raise ValueError(
                f"expected the support of {where} to have constant bounds, found bounds that "
                "depend on other values; declare the chain on the whole line and transform it"
            )
    if type(first) is not type(later) or _bounds(first) != _bounds(later):
        raise ValueError(
            f"expected init and step to have one support, found {constraint_words(first)} and "
            f"{constraint_words(later)}"
        )


def _bounds(support: Any) -> list:
    return [np.asarray(x).tolist() for x in jax.tree.leaves(support)]


def markov(
    step: Callable[..., Distribution],
    init: Any = None,
    dims: str | Sequence[str] | None = None,
    event_dims: str | Sequence[str] | None = None,
    **unknown: Any,
) -> Markov:
    """A chain over time: each state is drawn given the one before.

    Args:
        step: ``step(x, parents...)`` returns the distribution of the next state; its first
            parameter is the state before, whatever its name, and the rest are parents. A parent
            that has the time dim (a covariate, another variable) is given at the time of the next
            state; any other is given whole.
        init: the distribution of the first state, or a function of parents that returns one.
        dims: names of the batch axes; the last is the time. With ``("region", "time")`` the state
            has shape ``(region,)``.
        event_dims: names of a vector state's axes: the variable has shape ``(time, state)``.

    The variable may be latent, observed (an autoregression; missing entries are imputed, so a
    forecast is a series with its last entries missing), or discrete and latent: then it is summed
    out exactly by the forward algorithm, for any number of children that depend on it element by
    element along time, and its path is drawn from its posterior afterwards. New data begin a new
    chain.

    Raises:
        TypeError: ``step`` or ``init`` is no function, or an option is misspelt.
        ValueError: no time dim, or a bad signature.

    Example:
        >>> import probkit as pk
        >>> from probkit import dist
        >>> model = pk.Model(
        ...     s=dist.HalfNormal(1),
        ...     level=pk.markov(
        ...         lambda x, s: dist.Normal(x, s), init=dist.Normal(0, 5), dims="time"
        ...     ),
        ...     y=pk.rv(lambda level: dist.Normal(level, 1), dims="time"),
        ... )
        >>> target = model.bind({"y": [0.1, 0.4, 0.2]})
        >>> target.sites["level"].shape
        (3,)
    """
    check_options("pk.markov", unknown, ["step", "init", "dims", "event_dims"])
    axes = names("pk.markov", dims)
    state = names("pk.markov", event_dims)
    if not axes:
        raise ValueError("pk.markov: expected the name of the time dim; give dims='time'")
    found, optional, sizes = signature_of("pk.markov(step)", step)
    if not found or found[0] in sizes:
        raise ValueError(
            "pk.markov(step): expected a function whose first parameter is the state before, such "
            "as lambda x, phi: dist.Normal(phi * x, 1); found no such parameter"
        )
    first: tuple[str, ...] = ()
    if init is None:
        raise TypeError(
            "pk.markov(init): expected the distribution of the first state (or a function of "
            "parents that returns one), found None"
        )
    if isinstance(init, Distribution):
        check_parameters("pk.markov(init)", init)
    else:
        first, more, other = signature_of("pk.markov(init)", init)
        optional, sizes = (optional | more), {**sizes, **other}
    length = f"size of {axes[-1]}"
    parents = tuple(dict.fromkeys((*found[1:], *first, length)))
    fn = ChainFunction(step, init, found[1:], first, length, len(state))
    shown = [p for p in parents if p != length]
    return Markov(
        fn,
        parents,
        frozenset(optional - {found[0]}),
        {**{k: v for k, v in sizes.items() if k in parents}, length: axes[-1]},
        axes,
        state,
        True,
        f"Markov({', '.join(shown)})",
        axes[-1],
    )


def resolve_chains(
    nodes: Mapping[str, Node], data_dims: Mapping[str, tuple[str | None, ...]]
) -> dict[str, Node]:
    """The nodes with every chain told which axis of which parent is its time."""
    out = dict(nodes)
    for name, node in nodes.items():
        if not isinstance(node, Markov):
            continue
        axes = {}
        for parent in node.parents:
            if parent in node.sizes:
                continue
            own = _dims_of(parent, nodes, data_dims)
            if node.time in own:
                axes[parent] = own.index(node.time)
        fn = dataclasses.replace(node.fn, axes=axes)  # type: ignore[type-var]
        out[name] = dataclasses.replace(node, fn=fn)
    return out


def _dims_of(
    parent: str, nodes: Mapping[str, Node], data_dims: Mapping[str, tuple[str | None, ...]]
) -> tuple[str | None, ...]:
    if parent not in nodes:
        return data_dims.get(parent, ())
    node = nodes[parent]
    return node.dims if isinstance(node, Deterministic) else node.dims + node.event_dims


def check_batch_dim(nodes: Mapping[str, Node], dim: str) -> None:
    """Raise if mini-batches along ``dim`` would cut a chain."""
    cut = [k for k, n in nodes.items() if isinstance(n, Markov) and n.time == dim]
    if cut:
        raise ValueError(
            f"mini-batches along {dim!r}: {listing(cut)} is a chain over it, and rows taken out of "
            "a chain lose the row before; use another dim, or a method without mini-batches"
        )
