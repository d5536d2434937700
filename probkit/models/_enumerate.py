r"""Discrete latents, summed out exactly by a sum-product over dims.

Every site whose distribution (or value) depends on discrete latents is a factor: its log density is
evaluated for each combination of their values by ``vmap``, each discrete variable set to one value
throughout its natural shape. A factor is a tensor with one axis a discrete variable and then the
site's own dims. Variables are eliminated one by one, those with most dims first; eliminating ``v``
with dims ``D_v``

    phi(D_v, others) = log sum_v exp( sum of factors with v, each summed over dims outside D_v )

(plates are products: Obermeyer et al. 2019, section 3, tensor variable elimination). This is exact
when element i of a factor depends on element i of ``v`` alone along their shared dims; that is
checked numerically when data are bound, and a model that breaks it (``z[region]`` with one ``z``
a region) is refused by name. Going back through the eliminations draws the discrete variables from
their conditional posterior. A discrete chain over time is eliminated by the forward algorithm
(`probkit.models._chains`). Cost: one evaluation of a factor for each combination.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.core import Terms, listing
from probkit.models._chains import Transition, cavity, collapse, draw_path, link, look_up_link
from probkit.models._facts import refuse_unsummable
from probkit.models._markov import Markov
from probkit.models._nodes import Deterministic, Factor, RandomVariable
from probkit.models._sites import call
from probkit.models._tensors import Tensor, aligned, at_codes, pick, product, spread

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram, View


class Enumeration:
    """Summing out the discrete latents of one `GraphProgram`."""

    def __init__(self, program: GraphProgram):
        self.program = program
        nodes = program.nodes
        for name in program.summed:
            refuse_unsummable(name, program.facts[name], isinstance(nodes[name], Markov))
        self.chains = tuple(k for k in program.summed if isinstance(nodes[k], Markov))
        self.depends = self._dependencies()
        self.order = self._elimination_order()
        self._check_plates()

    # -- structure --------------------------------------------------------------------------

    def _dependencies(self) -> dict[str, tuple[str, ...]]:
        """For every node, the discrete latents that it depends on other than through sites."""
        out: dict[str, tuple[str, ...]] = {}
        discrete = self.program.summed
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
        names = self.program.summed
        # Ties: what a chain over time emits before the chain; children before parents.
        ranked = sorted(
            range(len(names)),
            key=lambda i: (-len(facts[names[i]].dims), names[i] in self.chains, -i),
        )
        return tuple(self.program.summed[i] for i in ranked)

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
            if not isinstance(n, Deterministic)
            and k not in self.program.barren
            and (self.depends[k] or k in self.program.summed)
        ]

    def _variables(self, name: str) -> tuple[str, ...]:
        own = (name,) if name in self.program.summed else ()
        return tuple(dict.fromkeys((*self.depends[name], *own)))

    def _dims(self, name: str) -> tuple[str, ...]:
        f = self.program.facts[name]
        return (
            f.dims[: len(f.batch_shape)]
            if isinstance(self.program.nodes[name], RandomVariable)
            else f.dims
        )

    # -- evaluation -------------------------------------------------------------------------

    def terms(self, z: Mapping[str, Array], arrays: dict, view: View) -> Terms:
        """Terms at a point; factors that were summed out are one likelihood term."""
        env, terms, tensors = self._collect(z, arrays, view)
        total, _ = self._eliminate(tensors)
        observed = [k for k in self._factors() if self.program.sites[k].kind == "observed"]
        if observed:
            terms.likelihood["+".join(observed)] = total
        else:
            terms.prior["+".join(self.program.summed)] = total
        return terms

    def _collect(
        self, z: Mapping[str, Array], arrays: dict, view: View
    ) -> tuple[dict[str, Any], Terms, list[Tensor | Transition]]:
        program = self.program
        env: dict[str, Any] = {}
        terms = Terms({}, {}, {})
        tensors: list[Tensor | Transition] = []
        for name, node in program.nodes.items():
            if name in program.barren:
                continue
            if isinstance(node, Deterministic):
                if not self.depends[name]:
                    env[name] = call(name, node, program.arguments(name, env, view))
            elif name in self.chains:
                tensors.append(self._link(name, env, view))
            elif name in program.summed:
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
                first = {v: self._constant(v, 0) for v in self.depends[name]}
                value, jacobian = self._value(name, z, {**env, **first}, view)
                env[name] = value
                if jacobian is not None:
                    own = name if name not in program.plan.observed else f"{name}_missing"
                    terms.prior[own] = jacobian
                tensors.append(self._tensor(name, value, env, arrays, view))
        return env, terms, tensors

    def _constant(self, variable: str, code: Any) -> Array:
        """Every element of a discrete variable at one value of its support, given by its place."""
        shape = self.program.facts[variable].shape
        return jnp.broadcast_to(self._decoded(variable, code), shape)

    def _decoded(self, variable: str, codes: Any) -> Array:
        """Values of a discrete variable from their places in its support."""
        return jnp.asarray(self.program.facts[variable].values)[codes]

    def _value(
        self, name: str, z: Mapping[str, Array], env: dict, view: View
    ) -> tuple[Array, Array | None]:
        """The value of a continuous or observed site, whose support is free of discrete ones."""
        program = self.program
        local = self._extend(name, env, view)
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
        terms = program.terms(name, d, chosen[name] if name in chosen else value)
        terms = jnp.broadcast_to(terms, program.facts[name].batch_shape)
        if name in arrays["masked"] and name not in program.imputed:
            terms = jnp.where(program.holes(name, arrays), 0.0, terms)
        return terms

    def _tensor(self, name: str, value: Any, env: dict, arrays: dict, view: View) -> Tensor:
        variables = self._variables(name)

        def at(codes: tuple) -> Array:
            chosen = {v: self._constant(v, c) for v, c in zip(variables, codes, strict=True)}
            return self._density(name, value, env, arrays, view, chosen)

        return Tensor(variables, self._dims(name), at_codes(self.program, variables, at))

    def _link(self, name: str, env: dict, view: View) -> Transition:
        """The factor of a discrete chain: transitions between its neighbours in time."""
        program = self.program
        variables = self._variables(name)
        others = tuple(v for v in variables if v != name)

        def at(codes: tuple) -> Array:
            chosen = {v: self._constant(v, c) for v, c in zip(others, codes, strict=True)}
            local = self._extend(name, {**env, **chosen}, view)
            return link(program, name, program.distribution(name, local, view))

        return Transition((name, *others), self._dims(name), at_codes(program, others, at, 2))

    def _eliminate(
        self, tensors: list[Tensor | Transition]
    ) -> tuple[Array, list[tuple[str, Tensor, Transition | None]]]:
        """The log sum over all variables, and for each the factor it was drawn out of."""
        steps: list[tuple[str, Tensor, Transition | None]] = []
        links = {t.variables[0]: t for t in tensors if isinstance(t, Transition)}
        left = [t for t in tensors if isinstance(t, Tensor)]
        for variable in self.order:
            mine = [t for t in left if variable in t.variables]
            left = [t for t in left if variable not in t.variables]
            dims = self.program.facts[variable].dims
            self._check_links(variable, links)
            joined = product(mine, dims, variable, self.program)
            steps.append((variable, joined, links.get(variable)))
            if variable in links:
                left.append(collapse(self.program, joined, links.pop(variable)))
                continue
            axis = joined.variables.index(variable)
            rest = tuple(v for v in joined.variables if v != variable)
            left.append(Tensor(rest, dims, jax.nn.logsumexp(joined.value, axis=axis)))
        return sum((jnp.sum(t.value) for t in left), jnp.zeros(())), steps

    def _check_links(self, variable: str, links: Mapping[str, Transition]) -> None:
        for chain, t in links.items():
            if variable in t.variables and variable != chain:
                raise ValueError(
                    f"site {variable!r}: it is discrete, and the steps of the chain {chain!r} "
                    "depend on it along the chain's dims; the two cannot be summed out one after "
                    f"the other: make them one chain whose states are pairs, or give {variable!r} "
                    "fewer dims"
                )

    # -- going back -------------------------------------------------------------------------

    def draw(
        self, key: Array, z: Mapping[str, Array], arrays: dict, view: View
    ) -> dict[str, Array]:
        """The discrete latents, drawn from their posterior given everything else."""
        _, _, tensors = self._collect(z, arrays, view)
        _, steps = self._eliminate(tensors)
        chosen: dict[str, Array] = {}
        for i, (variable, joined, chain) in enumerate(reversed(steps)):
            own = jax.random.fold_in(key, i)
            if chain is not None:
                chosen[variable] = draw_path(own, self.program, joined, chain, chosen)
                continue
            logits = self._given(joined, variable, chosen)
            chosen[variable] = jax.random.categorical(own, logits, axis=0)
        return {v: self._decoded(v, codes) for v, codes in chosen.items()}

    def _given(self, joined: Tensor, variable: str, chosen: Mapping[str, Array]) -> Array:
        """Logits of a variable (leading axis) with the variables drawn before it put in."""
        rest = [v for v in joined.variables if v != variable]
        value = spread(joined.value, joined.variables, (variable, *rest))
        return pick(value, 1, rest, joined.dims, chosen, self.program)

    def local_pointwise(self, z: Mapping[str, Array], arrays: dict, view: View) -> dict[str, Array]:
        """Log likelihood with a variable summed out, for sites that alone depend on it.

        An observation with a discrete variable of its own (a mixture) is scored by the mixture's
        density, not by the density at a drawn component.
        """
        _, _, tensors = self._collect(z, arrays, view)
        names = self._factors()
        by_name = dict(zip(names, tensors, strict=True))
        out = {}
        for name, tensor in by_name.items():
            if isinstance(tensor, Transition):
                continue
            if self.program.sites[name].kind != "observed" or len(tensor.variables) != 1:
                continue
            variable = tensor.variables[0]
            own = self.program.facts[variable].dims
            if set(own) != set(tensor.dims) or by_name[variable].variables != (variable,):
                continue
            users = [k for k in names if variable in self._variables(k)]
            if variable in self.chains:
                value = self._without(tensor, variable, [by_name[k] for k in users])
            elif set(users) == {name, variable}:
                prior: Any = by_name[variable]
                joint = tensor.value + aligned(prior, tensor.dims)
                value = jax.nn.logsumexp(joint, axis=0)
            else:
                value = None
            if value is None:
                continue
            if name in arrays["masked"]:
                value = jnp.where(self.program.holes(name, arrays), jnp.nan, value)
            out[name] = value
        return out

    def _without(self, site: Tensor, variable: str, factors: list) -> Array | None:
        """A chain's observed child, each element given all others; None where others interfere."""
        emissions = [t for t in factors if isinstance(t, Tensor)]
        chain = next(t for t in factors if isinstance(t, Transition))
        if any(t.variables != (variable,) for t in emissions):
            return None
        joined = product(emissions, chain.dims, variable, self.program)
        none = Tensor((variable,), (), jnp.zeros(self.program.facts[variable].support_size))
        rest = [none, *(t for t in emissions if t is not site)]
        others = product(rest, chain.dims, variable, self.program)
        return cavity(self.program, site, others, joined, chain)

    # -- the check at bind ------------------------------------------------------------------

    def check_elementwise(self, arrays: dict) -> None:
        """Raise if some element of a factor depends on other elements of a discrete variable."""
        from probkit.core._programs import compiled

        def errors(arrays: dict) -> dict[str, dict[str, Array]]:
            program = self.program
            view = program.view(arrays)
            key = jax.random.key(7)
            z = program.prior_point(key, arrays)
            env, _, tensors = self._collect(z, arrays, view)
            # Only for its errors: what cannot be eliminated is named here, not in the first run.
            self._eliminate(tensors)
            mixed, moved = {}, {}
            for i, (name, tensor) in enumerate(zip(self._factors(), tensors, strict=True)):
                codes = self._random_codes(jax.random.fold_in(key, i), tensor.variables)
                chosen = {v: self._decoded(v, c) for v, c in codes.items()}
                direct = self._density(name, env.get(name), env, arrays, view, chosen)
                mixed[name] = _gap(direct, self._look_up(tensor, codes))
                if name in env:
                    last = {v: self._constant(v, -1) for v in tensor.variables}
                    value, _ = self._value(name, z, {**env, **last}, view)
                    moved[name] = _gap(value, env[name])
            return {"mixed": mixed, "moved": moved}

        gaps = compiled(self.program, "elementwise", None, errors, (arrays,))(arrays)
        for name, gap in gaps["moved"].items():
            if float(gap) > 1e-3:
                variable = self._variables(name)[0]
                raise ValueError(
                    f"site {variable!r}: it is discrete, and the support of {name!r} depends on "
                    f"it, so that it cannot be summed out at a value of {name!r}; expected one "
                    f"support for all values of {variable!r}: scale or shift {name!r} instead"
                )
        for name, gap in gaps["mixed"].items():
            if float(gap) > 1e-3:
                variables = self._variables(name)
                raise ValueError(
                    f"site {variables[0]!r}: it is discrete, and {name!r} mixes its elements (an "
                    f"element of {name!r} depends on another element of {listing(variables)}), "
                    "which cannot be summed out element by element; index the variable by nothing "
                    "but its own dims, or declare it along the dims of its user"
                )

    def _random_codes(self, key: Array, variables: tuple[str, ...]) -> dict[str, Array]:
        out = {}
        for j, v in enumerate(variables):
            f = self.program.facts[v]
            out[v] = jax.random.randint(jax.random.fold_in(key, j), f.shape, 0, f.support_size)
        return out

    def _look_up(self, tensor: Tensor | Transition, codes: dict[str, Array]) -> Array:
        if isinstance(tensor, Transition):
            return look_up_link(self.program, tensor, codes)
        return pick(tensor.value, 0, tensor.variables, tensor.dims, codes, self.program)


def _gap(a: Array, b: Array) -> Array:
    """The largest relative difference; entries that are infinite in both do not count."""
    gap = jnp.abs(a - b) / (1.0 + jnp.abs(a))
    return jnp.max(jnp.where(jnp.isnan(gap), 0.0, gap), initial=0.0)
