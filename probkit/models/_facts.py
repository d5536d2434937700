"""What is known of each site before anything runs: found by one abstract pass over the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import biject_to

from probkit.models._centring import centring_shape
from probkit.models._graph import reaches
from probkit.models._host_array import host_array
from probkit.models._nodes import Deterministic, Node, RandomVariable
from probkit.models._parameters import (
    check_parameters,
    concrete,
    constraint_words,
    elementwise,
)
from probkit.models._sites import call, check_distribution

if TYPE_CHECKING:
    from probkit.models._plan import Plan


@dataclass(frozen=True, eq=False)
class Facts:
    """Static facts of a site.

    Attributes:
        dims, shape: names and lengths of all axes of the value (batch, then event).
        batch_shape: the natural batch shape.
        discrete: whether the distribution is discrete.
        support: the support, where its bounds are known now; else None.
        unconstrained: shape in the unconstrained space.
        values: the support's values, for a discrete latent that has finitely many; else None.
        unsummable: why a discrete latent has none of these (`values` is None then).
        style: ``"auto"``, ``"noncentred"`` or ``""`` (as declared).
        centring: shape of the centring choice.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    batch_shape: tuple[int, ...] = ()
    distribution: str = ""
    discrete: bool = False
    support: Any = None
    support_words: str = ""
    unconstrained: tuple[int, ...] = ()
    values: np.ndarray | None = None
    unsummable: str = ""
    style: str = ""
    centring: tuple[int, ...] = ()

    @property
    def support_size(self) -> int:
        """Number of values of a discrete latent's support; 0 where it has none."""
        return 0 if self.values is None else len(self.values)


def compiled_facts(facts: Mapping[str, Facts]) -> tuple:
    """What of the facts a program is compiled for and columns may change; hashable."""
    values = {k: f.values for k, f in facts.items() if f.values is not None}
    return tuple((k, v.dtype.str, v.tobytes()) for k, v in values.items())


def inspect_sites(
    plan: Plan, columns: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> dict[str, Facts]:
    """Facts of every site. Columns are concrete in this pass, random variables abstract.

    Raises:
        ValueError, TypeError: a function fails, a shape does not fit its dims, a known parameter
            lies outside its constraint.
    """
    facts: dict[str, Facts] = {}
    pass_ = _Pass(plan, columns, values, facts)
    jax.eval_shape(pass_.walk, jax.ShapeDtypeStruct((), np.dtype(plan.dtype)))
    return facts


class _Pass:
    def __init__(self, plan: Plan, columns: Mapping, values: Mapping, facts: dict[str, Facts]):
        self.plan, self.columns, self.values, self.facts = plan, columns, values, facts
        self.hierarchical = _hierarchical(plan)

    def walk(self, zero: Any) -> Any:
        env: dict[str, Any] = {}
        for name, node in self.plan.nodes.items():
            # NumPyro's own validation knows no sites; `check_parameters` does its work below.
            with numpyro.validation_enabled(False):
                result = call(name, node, self.arguments(node, env))
            if isinstance(node, RandomVariable):
                env[name] = self.variable(name, node, result, zero)
            elif isinstance(node, Deterministic) and node.hidden:
                env[name] = result
            else:
                env[name] = self.value(name, node, result)
        return zero

    def arguments(self, node: Node, env: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for parent in node.parents:
            if parent in node.sizes:
                out[parent] = self.plan.sizes[node.sizes[parent]]
            elif parent in self.plan.nodes:
                out[parent] = env[parent]
            elif parent in self.columns:
                out[parent] = host_array(self.columns[parent])
            elif parent in self.plan.sizes and parent not in node.optional:
                out[parent] = self.plan.sizes[parent]
        return out

    def value(self, name: str, node: Node, result: Any) -> Any:
        hint = "return numbers"
        if result is None:
            hint = "its function returned None: add the missing return"
        try:
            # (A text would be read as the name of a dtype.)
            array = None if isinstance(result, str | bytes) else jnp.asarray(result)
        except (TypeError, ValueError):
            array = None
        if array is None or result is None:
            raise TypeError(
                f"site {name!r}: expected its function to return an array, "
                f"found {type(result).__name__}; {hint}"
            )
        dims = node.dims
        if dims:
            wanted = tuple(self.plan.sizes[d] for d in dims)
            if array.shape != wanted:
                raise ValueError(
                    f"site {name!r}: expected a value of shape {wanted} for dims {dims}, found "
                    f"{array.shape}; change dims, or the function's result"
                )
        else:
            dims = tuple(f"{name}_dim_{i}" for i in range(array.ndim))
        self.facts[name] = Facts(dims, tuple(array.shape))
        return result

    def variable(self, name: str, node: RandomVariable, d: Any, zero: Any) -> Any:
        check_distribution(name, d)
        check_parameters(f"site {name!r}", d)
        batch = self.batch_shape(name, node, d)
        event = tuple(d.event_shape)
        dims = self.dims(name, node, batch, event)
        shape = batch + event
        discrete = _is_discrete(name, d)
        observed = name in self.values
        if observed and self.values[name].shape != shape:
            raise ValueError(
                f"site {name!r}: expected data of shape {shape} for dims {dims}, found "
                f"{self.values[name].shape}; reshape the data, or mend dims= / event_dims="
            )
        if observed and not discrete and self.plan.missing.get(name):
            _check_imputable(name, d)
        style, centring = "", ()
        unconstrained, codes, reason = shape, None, ""
        if not observed and discrete:
            codes, reason = _support_values(d)
        elif not observed:
            style, centring = self.style(name, d, shape, batch)
            if not style:
                unconstrained = _unconstrained_shape(name, d, shape)
        self.facts[name] = Facts(
            dims,
            shape,
            batch,
            _name(d),
            discrete,
            d.support if concrete(d.support) else None,
            constraint_words(d.support),
            unconstrained,
            codes,
            reason,
            style,
            centring,
        )
        kind = jnp.result_type(int) if discrete else zero.dtype
        return jnp.zeros(shape, kind) + zero.astype(kind)

    def batch_shape(self, name: str, node: RandomVariable, d: Any) -> tuple[int, ...]:
        own = tuple(d.batch_shape)
        if node.dims:
            wanted = tuple(self.plan.sizes[k] for k in node.dims)
        elif name in self.values:
            value = self.values[name]
            wanted = value.shape[: value.ndim - d.event_dim]
        else:
            return own
        try:
            fits = np.broadcast_shapes(own, wanted) == wanted
        except ValueError:
            fits = False
        if not fits:
            what = f"dims {node.dims} of sizes {wanted}" if node.dims else f"data of shape {wanted}"
            hint = ""
            if own and d.event_dim == 0 and len(own) > len(wanted):
                hint = " (is one of its axes missing from dims?)"
            raise ValueError(
                f"site {name!r}: expected a {_name(d)} whose batch shape fits {what}, found batch "
                f"shape {own}{hint}; change dims, or index or broadcast the parents inside the "
                "function (u[:, None] + w)"
            )
        return wanted

    def dims(self, name: str, node: RandomVariable, batch: tuple, event: tuple) -> tuple[str, ...]:
        axes = self.plan.data_dims.get(name, ())
        if name in self.values and not node.event_dims and None not in axes:
            # The data name the axes that the node does not (a frame's rows, a DataArray's dims).
            if len(axes) == len(batch) + len(event):
                return tuple(d for d in axes if d is not None)
        first = node.dims or tuple(f"{name}_dim_{i}" for i in range(len(batch)))
        last = node.event_dims
        if last and len(last) != len(event):
            raise ValueError(
                f"site {name!r}: event_dims {last} name {len(last)} axes, but one draw of its "
                f"distribution has shape {event}; axes that repeat a scalar distribution belong "
                "into dims"
            )
        if not last:
            begin = 0 if node.dims else len(batch)
            last = tuple(f"{name}_dim_{begin + i}" for i in range(len(event)))
        for dim, size in zip(node.event_dims, event, strict=False):
            known = self.plan.sizes.get(dim, size)
            if known != size:
                raise ValueError(
                    f"site {name!r}: its event dim {dim!r} has length {size}, but dim {dim!r} has "
                    f"{known} elsewhere; make the two agree"
                )
        return first + last

    def style(self, name: str, d: Any, shape: tuple, batch: tuple) -> tuple[str, tuple]:
        wanted = self.plan.style.get(name, self.plan.style.get("", "auto"))
        if self._mixed(name):
            # The map from z would differ from one value of the discrete variable to the next.
            return "", ()
        if wanted in ("off", "centred"):
            return "", ()
        found = centring_shape(d, shape, batch)
        if found is None:
            if wanted == "noncentred" and name in self.plan.style:
                raise ValueError(
                    f"site {name!r}: {_name(d)} has no location and scale to take out; "
                    "leave it out of reparam="
                )
            return "", ()
        if wanted == "auto" and name not in self.hierarchical:
            return "", ()
        if wanted == "noncentred" and name not in self.hierarchical and name not in self.plan.style:
            return "", ()
        return wanted, found

    def _mixed(self, name: str) -> bool:
        """Whether the site's distribution depends on a discrete latent."""
        nodes = self.plan.nodes
        discrete = [k for k, f in self.facts.items() if f.discrete and k not in self.values]
        stop = [k for k, n in nodes.items() if isinstance(n, RandomVariable)]
        return name in reaches(discrete, nodes, stop)


def _hierarchical(plan: Plan) -> set[str]:
    """Unobserved variables whose distribution depends on other unobserved, continuous ones."""
    nodes = plan.nodes
    latent = [
        k for k, n in nodes.items() if isinstance(n, RandomVariable) and k not in plan.observed
    ]
    return reaches(latent, nodes, [k for k, n in nodes.items() if isinstance(n, RandomVariable)])


def _is_discrete(name: str, d: Any) -> bool:
    try:
        return bool(d.is_discrete)
    except NotImplementedError:
        raise ValueError(
            f"site {name!r}: the support of {_name(d)} is not known, expected one that says "
            "whether it is discrete; give the distribution a support, or choose another one"
        ) from None


def _name(d: Any) -> str:
    base = d
    while type(base).__name__ in ("ExpandedDistribution", "Independent", "MaskedDistribution"):
        base = base.base_dist
    return type(base).__name__


def _check_imputable(name: str, d: Any) -> None:
    if elementwise(d.support).event_dim:
        raise ValueError(
            f"site {name!r}: it has missing entries, but the entries of a {_name(d)} are "
            f"constrained together ({constraint_words(d.support)}), so that single ones cannot be "
            "imputed; drop those rows, or complete them"
        )


def _unconstrained_shape(name: str, d: Any, shape: tuple) -> tuple[int, ...]:
    try:
        return tuple(biject_to(d.support).inverse_shape(shape))
    except NotImplementedError:
        raise ValueError(
            f"site {name!r}: no map from the reals onto the support of {_name(d)} "
            f"({constraint_words(d.support)}) is known; choose a distribution with a support that "
            "NumPyro's biject_to knows"
        ) from None


def _support_values(d: Any) -> tuple[np.ndarray | None, str]:
    """The values of a discrete distribution's support, or None and the reason."""
    if not getattr(d, "has_enumerate_support", False) or d.event_shape:
        return None, "its support is unbounded or has several axes"
    try:
        with jax.ensure_compile_time_eval():
            return np.asarray(d.enumerate_support(expand=False)).reshape(-1), ""
    except Exception as error:
        return None, f"its values are not known before the run ({type(error).__name__})"


def refuse_unsummable(name: str, facts: Facts, chain: bool = False) -> None:
    """Raise a ValueError if a discrete latent has no finite support to be summed over."""
    if chain and facts.values is not None and facts.values.tolist() != [*range(len(facts.values))]:
        raise ValueError(
            f"site {name!r}: expected the states of a chain that is summed out to be numbered from "
            f"0, found {facts.values.tolist()}; shift its distribution, and add the first value "
            "where it is used"
        )
    if facts.values is None:
        raise ValueError(
            f"site {name!r}: the discrete {facts.distribution} is not observed and cannot be "
            f"summed out, since {facts.unsummable}; expected a discrete latent with finitely many "
            "values such as Categorical or Bernoulli: replace it by one, marginalise by hand, or "
            "use a continuous relaxation"
        )
