"""A Model as an ordinary NumPyro model function, for data of given sizes.

Sites have the model's names and its joint density (centred), so that the function is the model in
another tongue and not an approximation of it. Every dim is a plate at a fixed position; a node's
function still gets its parents in their natural shapes. Discrete latents are left to NumPyro's
enumeration: each variable's axis stands left of the plates, and functions are mapped over these
axes. Imputed entries are the site ``y_missing``, flat on the support, outside the plates; their
density is that of the filled variable.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array
from numpyro import distributions as dist
from numpyro.distributions import Distribution, biject_to

from probkit.core import listing, nearest
from probkit.models._layout import Layout, lead_shape, over_lead
from probkit.models._markov import Markov
from probkit.models._nodes import Deterministic, Factor, RandomVariable
from probkit.models._observed import as_observed
from probkit.models._parameters import elementwise
from probkit.models._sites import call, check_distribution

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram
    from probkit.models._model import Model


@dataclass(frozen=True, eq=False)
class Value:
    """A node's value in its natural shape, after ``lead`` axes of enumerated variables."""

    value: Any
    lead: int = 0


class FlatMissing(dist.ImproperUniform):
    """A flat density on a support, that can be drawn from so that tracing works anywhere.

    Draws are those of a uniform(-2, 2) in the unconstrained space, which is where NumPyro starts.
    """

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Starting values, not draws from a probability distribution."""
        transform = biject_to(self.support)
        shape = sample_shape + transform.inverse_shape(self.shape())
        return transform(jax.random.uniform(key, shape, minval=-2.0, maxval=2.0))


class Placed(Distribution):
    """A site's distribution with plates at their positions, mapped over enumerated axes."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, make: Any, parents: list[Value], layout: Layout, facts: Any):
        self.make, self.parents, self.layout, self.facts = make, parents, layout, facts
        self.dims = facts.dims[: len(facts.batch_shape)]
        self.lead = lead_shape([p.value for p in parents], [p.lead for p in parents])
        event = facts.shape[len(facts.batch_shape) :]
        self._base = make(*(p.value[(0,) * p.lead] for p in parents))
        super().__init__((*self.lead, *layout.shape(self.dims)), event, validate_args=False)

    @property
    def support(self) -> Any:
        """The support, its bounds at the plates' positions."""
        support = self._base.support
        if self.event_dim:
            return support
        batch = self.facts.batch_shape

        def place(bound: Any) -> Any:
            if not np.ndim(bound):
                return bound
            return self.layout.place(jnp.broadcast_to(bound, batch), self.dims, 0)

        return jax.tree.map(place, support)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether the variable takes finitely many values."""
        return bool(getattr(self._base, "has_enumerate_support", False))

    def enumerate_support(self, expand: bool = True) -> Array:
        """All values; see NumPyro."""
        values = self._base.enumerate_support(expand=False).reshape(-1)
        values = values.reshape((-1, *(1,) * len(self.batch_shape)))
        return jnp.broadcast_to(values, (len(values), *self.batch_shape)) if expand else values

    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """Log density terms, shape ``(enumerated..., plates)``."""
        own, lead = self.layout.natural(jnp.asarray(value), self.dims, self.event_dim)
        parents = [p.value for p in self.parents]
        leads = [p.lead for p in self.parents]

        def terms(x: Array, *rest: Array) -> Array:
            return jnp.broadcast_to(self.make(*rest).log_prob(x), self.facts.batch_shape)

        out = over_lead(terms, [own, *parents], [lead, *leads])
        return self.layout.place(out, self.dims, 0)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws, shape ``(*sample_shape, enumerated..., plates, *event)``."""
        if sample_shape:
            keys = jax.random.split(key, int(np.prod(sample_shape)))
            draws = jax.vmap(self.sample)(keys)
            return draws.reshape((*sample_shape, *draws.shape[1:]))

        def draw(*rest: Array) -> Array:
            d = self.make(*rest)
            batch = tuple(self.facts.batch_shape)
            return (d if tuple(d.batch_shape) == batch else d.expand(batch)).sample(key)

        leads = [p.lead for p in self.parents]
        out = over_lead(draw, [p.value for p in self.parents], leads)
        return self.layout.place(out, self.dims, self.event_dim)


class NumpyroFunction:
    """An ordinary NumPyro model function ``fn(**data)`` made from a Model; see `to_numpyro`.

    Attributes:
        max_plate_nesting: number of plate positions; enumeration goes left of them.
        defaults: the data that were bound, by name; arguments that are not given keep them.
    """

    def __init__(self, program: GraphProgram, arrays: dict):
        self._program = program
        self.defaults = {**arrays["data"], **arrays["observed"]}
        self._masked, self._index = dict(arrays["masked"]), dict(arrays["index"])
        facts = program.facts
        batches = [
            facts[k].dims[: len(facts[k].batch_shape)]
            for k, n in program.nodes.items()
            if isinstance(n, RandomVariable)
        ]
        batches += [facts[k].dims for k, n in program.nodes.items() if isinstance(n, Factor)]
        sizes = dict(program.sizes)
        self._layout = Layout.of([b for b in batches if b], sizes)
        self.max_plate_nesting = self._layout.depth
        keyword = inspect.Parameter.KEYWORD_ONLY
        self.__signature__ = inspect.Signature(
            [
                inspect.Parameter(k, keyword, default=v)
                for k, v in self.defaults.items()
                if k.isidentifier()
            ]
        )
        self.__name__ = "model"

    def place(self, values: Mapping[str, Any]) -> dict[str, Array]:
        """Values of sites from their natural shapes to those of the NumPyro sites."""
        out = {}
        for name, value in values.items():
            facts = self._program.facts.get(name)
            value = jnp.asarray(value)
            if facts is not None and isinstance(self._program.nodes[name], RandomVariable):
                batch = len(facts.batch_shape)
                value = self._layout.place(value, facts.dims[:batch], len(facts.shape) - batch)
            out[name] = value
        return out

    def __call__(self, **data: Any) -> None:
        """Run the model; see `to_numpyro`."""
        given = self._checked(data)
        env: dict[str, Value] = {}
        for name, node in self._program.nodes.items():
            parents = self._parents(name, env, given)
            if isinstance(node, Deterministic):
                env[name] = self._deterministic(name, parents)
            elif isinstance(node, Factor):
                self._factor(name, parents)
            else:
                env[name] = self._variable(name, parents, given)

    def _checked(self, data: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in data.items():
            if name not in self.defaults:
                raise TypeError(
                    f"model function: no data {name!r}.{nearest(name, self.defaults)} It takes "
                    f"{listing(self.defaults)}."
                )
            observed = name in self._program.plan.observed
            if value is None and not observed:
                raise ValueError(
                    f"model function: the covariate {name!r} cannot be None; leave it out to keep "
                    "the data that were bound"
                )
            wanted = np.shape(self.defaults[name])
            if value is not None and np.shape(value) != wanted:
                raise ValueError(
                    f"model function: expected {name!r} of shape {wanted}, found "
                    f"{np.shape(value)}; it was made for data of these sizes: call to_numpyro "
                    "again with the new data"
                )
        return {**self.defaults, **data}

    # -- parents ----------------------------------------------------------------------------

    def _parents(
        self, name: str, env: Mapping[str, Value], given: Mapping[str, Any]
    ) -> dict[str, Value]:
        node, program = self._program.nodes[name], self._program
        out: dict[str, Value] = {}
        for parent in node.parents:
            if parent in node.sizes:
                out[parent] = Value(program.sizes[node.sizes[parent]])
            elif parent in program.nodes:
                out[parent] = env[parent]
            elif parent in program.plan.columns:
                out[parent] = Value(jnp.asarray(given[parent]))
            elif parent in program.sizes and parent not in node.optional:
                out[parent] = Value(program.sizes[parent])
        return out

    def _split(self, name: str, parents: Mapping[str, Value]) -> tuple[Any, list[Value]]:
        """The node's function of its enumerated parents alone, and these."""
        node = self._program.nodes[name]
        moving = [k for k, p in parents.items() if p.lead]

        def make(*values: Any) -> Any:
            args = {k: p.value for k, p in parents.items()}
            args.update(zip(moving, values, strict=True))
            return call(name, node, args)

        return make, [parents[k] for k in moving]

    # -- nodes ------------------------------------------------------------------------------

    def _deterministic(self, name: str, parents: Mapping[str, Value]) -> Value:
        make, moving = self._split(name, parents)
        if not moving:
            value = make()
            if not self._program.nodes[name].hidden:  # type: ignore[attr-defined]
                numpyro.deterministic(name, jnp.asarray(value))
            return Value(value)
        leads = [p.lead for p in moving]
        value = over_lead(make, [p.value for p in moving], leads)
        # Only drawn values are recorded: here there is one for each value of the parents.
        return Value(value, max(leads))

    def _factor(self, name: str, parents: Mapping[str, Value]) -> None:
        make, moving = self._split(name, parents)
        facts = self._program.facts[name]

        def terms(*values: Any) -> Array:
            return jnp.broadcast_to(make(*values), facts.shape)

        value = over_lead(terms, [p.value for p in moving], [p.lead for p in moving])
        with self._plates(facts.dims):
            numpyro.factor(name, self._layout.place(value, facts.dims, 0))

    def _plates(self, dims: tuple[str, ...]) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for dim in sorted(dims, key=lambda d: self._layout.positions[d]):
            place = self._layout.positions[dim]
            stack.enter_context(numpyro.plate(dim, self._layout.sizes[dim], dim=place))
        return stack

    def _variable(self, name: str, parents: Mapping[str, Value], given: Mapping[str, Any]) -> Value:
        facts = self._program.facts[name]
        dims = facts.dims[: len(facts.batch_shape)]
        event = len(facts.shape) - len(dims)
        make, moving = self._split(name, parents)
        first = make(*(p.value[(0,) * p.lead] for p in moving))
        check_distribution(name, first)
        plain = not moving and self._layout.shape(dims) == tuple(facts.batch_shape)
        d = first.expand(facts.batch_shape) if plain else Placed(make, moving, self._layout, facts)
        value = self._observed(name, first, given)
        if value is not None:
            value = self._layout.place(value, dims, event)
        if name in self._masked and name not in self._program.imputed and value is not None:
            keep = ~jnp.asarray(self._masked[name])
            d = d.mask(self._layout.place(keep, dims, 0))
        with self._plates(dims):
            drawn = numpyro.sample(name, d, obs=value)
        natural, lead = self._layout.natural(jnp.asarray(drawn), dims, event)
        while lead and natural.shape[0] == 1:
            natural, lead = natural[0], lead - 1
        return Value(natural, lead)

    def _observed(self, name: str, d: Any, given: Mapping[str, Any]) -> Array | None:
        """The observed value with its imputed entries put in, or None for a latent site."""
        if name not in self._program.plan.observed or given[name] is None:
            return None
        facts = self._program.facts[name]
        value = given[name]
        if isinstance(value, np.ndarray):
            value = as_observed(name, value, facts)
        value = jnp.asarray(value)
        if name not in self._program.imputed:
            return value
        index = jnp.asarray(self._index[name])

        def pick(bound: Any) -> Any:
            full = jnp.broadcast_to(bound, facts.shape)
            return full.reshape(-1)[index] if np.ndim(bound) else bound

        support = jax.tree.map(pick, elementwise(d.support))
        missing = numpyro.sample(f"{name}_missing", FlatMissing(support, (), index.shape))
        return value.reshape(-1).at[index].set(missing).reshape(value.shape)


def to_numpyro(model: Model, data: Any = None, **options: Any) -> NumpyroFunction:
    """An ordinary NumPyro model function ``fn(**data)`` for data of these sizes.

    Args:
        model: the model.
        data: what `Model.bind` takes; names found in it are observed.
        **options: those of `Model.bind`.

    Returns:
        A function for `numpyro.infer`. Its keyword arguments are the columns and the observed
        variables; those not given keep the values that were bound, and an observed variable given
        as None is sampled. Every dim is a plate, in one fixed position (``fn.max_plate_nesting`` of
        them); ``fn.place(values)`` lays natural values out as the NumPyro sites have them.

    Raises:
        ValueError: a static fault of the model and the data; a discrete chain, which plates cannot
            say.

    Example:
        >>> import numpyro, probkit as pk
        >>> model = pk.Model(
        ...     mu=pk.dist.Normal(0, 1),
        ...     y=pk.rv(lambda mu: pk.dist.Normal(mu, 1), dims="row"),
        ... )
        >>> fn = model.to_numpyro({"y": [0.3, 1.2]})
        >>> trace = numpyro.handlers.trace(numpyro.handlers.seed(fn, 0)).get_trace()
        >>> list(trace)
        ['mu', 'row', 'y']
    """
    from probkit.models._bind import bind

    target = bind(model, data, **{"reparam": "off", **options})
    program: Any = target.program
    for name in program.discrete:
        if isinstance(program.nodes[name], Markov):
            raise ValueError(
                f"site {name!r}: a discrete chain over time that is not observed has no form in "
                "plates; write its steps with numpyro.contrib.control_flow.scan, or fit the model "
                "here, where the forward algorithm sums it out"
            )
    return NumpyroFunction(program, target.arrays)
