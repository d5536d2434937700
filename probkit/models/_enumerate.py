r"""Discrete latents, summed out exactly by a sum-product over dims.

Every site whose distribution (or value) depends on discrete latents is a factor: its log density is
evaluated for each combination of their values by ``vmap``, each discrete variable set to one value
throughout its natural shape. A factor is a tensor with one axis a discrete variable and then the
site's own dims. Variables are eliminated one by one, those with most dims first; eliminating ``v``
with dims ``D_v``

    phi(D_v, others) = log sum_v exp( sum over factors with v, each summed over its dims outside D_v )

(plates are products: Obermeyer et al. 2019, section 3, tensor variable elimination). This is exact
when element i of a factor depends on element i of ``v`` alone along their shared dims; that is
checked numerically when data are bound, and a model that breaks it (``z[region]`` with one ``z``
a region) is refused by name. Going back through the eliminations draws the discrete variables from
their conditional posterior. Cost: one evaluation of a factor for each combination.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Terms, listing
from probkit.models._nodes import Deterministic, Factor, RandomVariable
from probkit.models._sites import call

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram, View


@dataclass(frozen=True, eq=False)
class Tensor:
    """Log factor: one leading axis for each of ``variables``, then one for each of ``dims``."""

    variables: tuple[str, ...]
    dims: tuple[str, ...]
    value: Array


class Enumeration:
    """Summing out the discrete latents of one `GraphProgram`."""

    def __init__(self, program: GraphProgram):
        self.program = program
        self.depends = self._dependencies()
        self.order = self._elimination_order()
        self._check_plates()

    # -- structure --------------------------------------------------------------------------

    def _dependencies(self) -> dict[str, tuple[str, ...]]:
        """For every node, the discrete latents that it depends on other than through sites."""
        out: dict[str, tuple[str, ...]] = {}
        discrete = self.program.discrete
        for name, node in self.program.nodes.items():
            found: dict[str, None] = {}
            for parent in node.parents:
                if parent in node.sizes or parent not in self.program.nodes:
                    continue
                if parent in discrete:
                    found[parent] = None
                elif isinstance(self.program.nodes[parent], Deterministic):
                    for variable in out[parent]:
                        found[variable] = None
            out[name] = tuple(found)
        return out

    def _elimination_order(self) -> tuple[str, ...]:
        facts = self.program.facts
        # Ties: children before parents, so that chains stay small.
        ranked = sorted(
            range(len(self.program.discrete)),
            key=lambda i: (-len(facts[self.program.discrete[i]].dims), -i),
        )
        return tuple(self.program.discrete[i] for i in ranked)

    def _check_plates(self) -> None:
        for name in self._factors():
            dims = self._dims(name)
            for variable in self._variables(name):
                own = self.program.facts[variable].dims
                lost = [d for d in own if d not in dims]
                if lost:
                    raise ValueError(
                        f"site {variable!r}: it is discrete with dims {own}, and {name!r} (dims "
                        f"{dims}) depends on it without having {listing(lost)}: each element of "
                        f"{name!r} may use any element of {variable!r}, which cannot be summed out "
                        f"element by element; give {name!r} the dim, or declare {variable!r} along "
                        f"the dims of {name!r}"
                    )

    def _factors(self) -> list[str]:
        nodes = self.program.nodes
        return [
            k
            for k, n in nodes.items()
            if not isinstance(n, Deterministic) and (self.depends[k] or k in self.program.discrete)
        ]

    def _variables(self, name: str) -> tuple[str, ...]:
        own = (name,) if name in self.program.discrete else ()
        return tuple(dict.fromkeys((*self.depends[name], *own)))

    def _dims(self, name: str) -> tuple[str, ...]:
        f = self.program.facts[name]
        return f.dims[: len(f.batch_shape)] if isinstance(
            self.program.nodes[name], RandomVariable
        ) else f.dims

    # -- evaluation -------------------------------------------------------------------------

    def terms(self, z: Mapping[str, Array], arrays: dict, view: View) -> Terms:
        """Terms at a point; factors that were summed out are one likelihood term."""
        env, terms, tensors = self._collect(z, arrays, view)
        total, _ = self._eliminate(tensors)
        observed = [k for k in self._factors() if self.program.sites[k].kind == "observed"]
        if observed:
            terms.likelihood["+".join(observed)] = total
        else:
            terms.prior["+".join(self.program.discrete)] = total
        return terms

    def _collect(
        self, z: Mapping[str, Array], arrays: dict, view: View
    ) -> tuple[dict[str, Any], Terms, list[Tensor]]:
        program = self.program
        env: dict[str, Any] = {}
        terms = Terms({}, {}, {})
        tensors: list[Tensor] = []
        for name, node in program.nodes.items():
            if isinstance(node, Deterministic):
                if not self.depends[name]:
                    env[name] = call(name, node, program.arguments(name, env, view))
            elif name in program.discrete:
                tensors.append(self._tensor(name, None, env, arrays, view))
            elif not self.depends[name]:
                if isinstance(node, Factor):
                    value = call(name, node, program.arguments(name, env, view))
                    program._add_factor(name, value, view, terms)
                else:
                    program._visit(name, env, z, arrays, view, terms)
            elif isinstance(node, Factor):
                tensors.append(self._tensor(name, None, env, arrays, view))
            else:
                value, jacobian = self._value(name, z, env, view)
                env[name] = value
                if jacobian is not None:
                    own = name if name not in program.plan.observed else f"{name}_missing"
                    terms.prior[own] = jacobian
                tensors.append(self._tensor(name, value, env, arrays, view))
        return env, terms, tensors

    def _first(self, env: Mapping[str, Any], variables: tuple[str, ...]) -> dict[str, Any]:
        return {**env, **{v: self._constant(v, 0) for v in variables}}

    def _constant(self, variable: str, code: Any) -> Array:
        """Every element of a discrete variable at one value of its support."""
        f = self.program.facts[variable]
        return jnp.full(f.shape, 0, int) + code

    def _value(
        self, name: str, z: Mapping[str, Array], env: dict, view: View
    ) -> tuple[Array, Array | None]:
        """The value of a continuous or observed site; its support may not depend on discrete ones."""
        program = self.program
        local = self._extend(name, self._first(env, self.depends[name]), view)
        d = program.distribution(name, local, view)
        if name not in program.plan.observed:
            from numpyro.distributions import biject_to

            transform = biject_to(d.support)
            value = transform(z[name])
            return value, jnp.sum(transform.log_abs_det_jacobian(z[name], value))
        if name not in program.imputed:
            return view.observed[name], None
        missing, jacobian = program.imputed_value(name, d, z[f"{name}_missing"], view)
        return program.filled(name, missing, view), jacobian

    def _extend(self, name: str, env: dict[str, Any], view: View) -> dict[str, Any]:
        """The environment with the deterministic ancestors that discrete variables touch."""
        program = self.program
        local = dict(env)
        for other, node in program.nodes.items():
            if other == name:
                break
            if isinstance(node, Deterministic) and self.depends[other] and other not in local:
                if all(v in local for v in self.depends[other]):
                    local[other] = call(other, node, program.arguments(other, local, view))
        return local

    def _density(
        self, name: str, value: Any, env: dict, arrays: dict, view: View, chosen: dict
    ) -> Array:
        """Log density terms of a factor in its own dims, given values of discrete variables."""
        program = self.program
        local = self._extend(name, {**env, **chosen}, view)
        node = program.nodes[name]
        if isinstance(node, Factor):
            return jnp.asarray(call(name, node, program.arguments(name, local, view)))
        d = program.distribution(name, local, view)
        terms = d.log_prob(chosen[name] if name in chosen else value)
        terms = jnp.broadcast_to(terms, program.facts[name].batch_shape)
        if name in arrays["masked"] and name not in program.imputed:
            terms = jnp.where(arrays["masked"][name], 0.0, terms)
        return terms

    def _tensor(self, name: str, value: Any, env: dict, arrays: dict, view: View) -> Tensor:
        variables = self._variables(name)

        def at(codes: tuple) -> Array:
            chosen = {v: self._constant(v, c) for v, c in zip(variables, codes, strict=True)}
            return self._density(name, value, env, arrays, view, chosen)

        fn: Callable = at
        for i in reversed(range(len(variables))):
            fn = _vmap_code(fn, i)
        sizes = [self.program.facts[v].support_size for v in variables]
        return Tensor(variables, self._dims(name), fn(tuple(jnp.arange(k) for k in sizes)))

    def _eliminate(self, tensors: list[Tensor]) -> tuple[Array, list[tuple[str, Tensor]]]:
        """The log sum over all variables, and for each the factor it was drawn out of."""
        steps: list[tuple[str, Tensor]] = []
        left = list(tensors)
        for variable in self.order:
            mine = [t for t in left if variable in t.variables]
            left = [t for t in left if variable not in t.variables]
            dims = self.program.facts[variable].dims
            joined = _product(mine, dims, variable, self.program)
            steps.append((variable, joined))
            axis = joined.variables.index(variable)
            rest = tuple(v for v in joined.variables if v != variable)
            left.append(Tensor(rest, dims, jax.nn.logsumexp(joined.value, axis=axis)))
        return sum((jnp.sum(t.value) for t in left), jnp.zeros(())), steps

    # -- going back -------------------------------------------------------------------------

    def draw(self, key: Array, z: Mapping[str, Array], arrays: dict, view: View) -> dict[str, Array]:
        """The discrete latents, drawn from their posterior given everything else."""
        _, _, tensors = self._collect(z, arrays, view)
        _, steps = self._eliminate(tensors)
        chosen: dict[str, Array] = {}
        for i, (variable, joined) in enumerate(reversed(steps)):
            logits = self._given(joined, variable, chosen)
            chosen[variable] = jax.random.categorical(jax.random.fold_in(key, i), logits, axis=0)
        return chosen

    def _given(self, joined: Tensor, variable: str, chosen: Mapping[str, Array]) -> Array:
        """Logits of a variable (leading axis) with the variables drawn before it put in."""
        value = jnp.moveaxis(joined.value, joined.variables.index(variable), 0)
        rest = [v for v in joined.variables if v != variable]
        for other in rest:
            codes = chosen[other]
            dims = self.program.facts[other].dims
            shape = [self.program.sizes[d] if d in dims else 1 for d in joined.dims]
            ordered = jnp.transpose(codes, [dims.index(d) for d in joined.dims if d in dims])
            index = ordered.reshape(shape)
            full = (value.shape[0], 1, *value.shape[2:])
            depth = len(full) - 2 - len(joined.dims)
            index = index.reshape((1, 1, *(1,) * depth, *shape))
            value = jnp.take_along_axis(value, jnp.broadcast_to(index, full), axis=1)[:, 0]
        return value

    def local_pointwise(self, z: Mapping[str, Array], arrays: dict, view: View) -> dict[str, Array]:
        """Log likelihood with a variable summed out, for sites that alone depend on it.

        An observation with a discrete variable of its own (a mixture) is scored by the mixture's
        density, not by the density at a drawn component.
        """
        _, _, tensors = self._collect(z, arrays, view)
        out = {}
        names = self._factors()
        for name, tensor in zip(names, tensors, strict=True):
            if self.program.sites[name].kind != "observed" or len(tensor.variables) != 1:
                continue
            variable = tensor.variables[0]
            users = [k for k in names if variable in self._variables(k)]
            own = self.program.facts[variable].dims
            if set(users) != {name, variable} or set(own) != set(tensor.dims):
                continue
            prior = tensors[names.index(variable)]
            if prior.variables != (variable,):
                continue
            joint = tensor.value + _aligned(prior, tensor.dims)
            value = jax.nn.logsumexp(joint, axis=0)
            if name in arrays["masked"]:
                value = jnp.where(arrays["masked"][name], jnp.nan, value)
            out[name] = value
        return out

    # -- the check at bind ------------------------------------------------------------------

    def check_elementwise(self, arrays: dict) -> None:
        """Raise if some element of a factor depends on other elements of a discrete variable."""
        from probkit.core._programs import compiled

        def errors(arrays: dict) -> dict[str, Array]:
            program = self.program
            view = program.view(arrays)
            key = jax.random.key(7)
            z = program.prior_point(key, arrays)
            env, _, tensors = self._collect(z, arrays, view)
            out = {}
            for i, (name, tensor) in enumerate(zip(self._factors(), tensors, strict=True)):
                chosen = {}
                for j, v in enumerate(tensor.variables):
                    f = program.facts[v]
                    fold = jax.random.fold_in(jax.random.fold_in(key, i), j)
                    chosen[v] = jax.random.randint(fold, f.shape, 0, f.support_size)
                value = env.get(name)
                direct = self._density(name, value, env, arrays, view, chosen)
                looked_up = self._look_up(tensor, chosen)
                gap = jnp.abs(direct - looked_up) / (1.0 + jnp.abs(direct))
                out[name] = jnp.max(jnp.where(jnp.isnan(gap), 0.0, gap), initial=0.0)
            return out

        gaps = compiled(self.program, "elementwise", None, errors, (arrays,))(arrays)
        for name, gap in gaps.items():
            if float(gap) > 1e-3:
                variables = self._variables(name)
                raise ValueError(
                    f"site {variables[0]!r}: it is discrete, and {name!r} mixes its elements (an "
                    f"element of {name!r} depends on another element of {listing(variables)}), "
                    "which cannot be summed out element by element; index the variable by nothing "
                    "but its own dims, or declare it along the dims of its user"
                )

    def _look_up(self, tensor: Tensor, chosen: Mapping[str, Array]) -> Array:
        value = tensor.value
        for v in tensor.variables:
            dims = self.program.facts[v].dims
            codes = jnp.transpose(chosen[v], [dims.index(d) for d in tensor.dims if d in dims])
            shape = [self.program.sizes[d] if d in dims else 1 for d in tensor.dims]
            depth = value.ndim - 1 - len(tensor.dims)
            index = codes.reshape((1, *(1,) * depth, *shape))
            full = (1, *value.shape[1:])
            value = jnp.take_along_axis(value, jnp.broadcast_to(index, full), axis=0)[0]
        return value


def _vmap_code(fn: Callable, i: int) -> Callable:
    def mapped(codes: tuple) -> Array:
        def one(code: Array) -> Array:
            return fn((*codes[:i], code, *codes[i + 1 :]))

        return jax.vmap(one)(codes[i])

    return mapped


def _product(
    tensors: list[Tensor], dims: tuple[str, ...], variable: str, program: GraphProgram
) -> Tensor:
    """Factors multiplied (log terms added) after summing over their dims outside ``dims``."""
    variables = tuple(dict.fromkeys(v for t in tensors for v in t.variables))
    for other in variables:
        if not set(program.facts[other].dims) <= set(dims):
            raise ValueError(
                f"site {variable!r}: it is discrete with dims {dims}, and shares a factor with the "
                f"discrete {other!r} of dims {program.facts[other].dims}; neither set of dims holds "
                "the other, so they cannot be summed out: make one depend on a dim of the other"
            )
    total: Any = None
    for t in tensors:
        lead = len(t.variables)
        gone = tuple(lead + i for i, d in enumerate(t.dims) if d not in dims)
        kept = tuple(d for d in t.dims if d in dims)
        value = jnp.sum(t.value, axis=gone) if gone else t.value
        value = _aligned(Tensor(t.variables, kept, value), dims)
        value = _spread(value, t.variables, variables)
        total = value if total is None else total + value
    sizes = [program.facts[v].support_size for v in variables]
    shape = (*sizes, *(program.sizes[d] for d in dims))
    return Tensor(variables, dims, jnp.broadcast_to(total, shape))


def _aligned(t: Tensor, dims: tuple[str, ...]) -> Array:
    """The factor's value with one axis for each of ``dims``, in that order (1 where it has none)."""
    lead = len(t.variables)
    order = [lead + t.dims.index(d) for d in dims if d in t.dims]
    value = jnp.transpose(t.value, [*range(lead), *order])
    shape = list(value.shape[:lead])
    sizes = iter(value.shape[lead:])
    shape += [next(sizes) if d in t.dims else 1 for d in dims]
    return value.reshape(shape)


def _spread(value: Array, have: tuple[str, ...], want: tuple[str, ...]) -> Array:
    """The value with one leading axis for each of ``want``, in that order."""
    lead = len(have)
    order = [have.index(v) for v in want if v in have]
    value = jnp.transpose(value, [*order, *range(lead, value.ndim)])
    sizes = iter(value.shape[:lead])
    shape = [next(sizes) if v in have else 1 for v in want]
    return value.reshape((*shape, *value.shape[lead:]))

