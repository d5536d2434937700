r"""The capability ``gaussian_latent`` of a declared model: see `probkit.core.GaussianLatent`.

A model has it when one node is a Gaussian process ``f``, no other latent depends on ``f``, and
every observation depends on one entry of ``f`` at the most. The first two are read off the graph.
The third is checked when data are bound, by three directional derivatives of every observation's
log density at random points:

    t_j depends on f_i alone   <=>   (J 1)_j = J_ji,  (J w)_j / (J 1)_j = w_i,  J v = (J 1) o v_i

with ``w = 1, 2, ..., n`` (which tells ``i``) and a random ``v`` (which a second dependence would
give away, but for a set of measure zero). The number ``i`` of each observation is kept among the
arrays, so that ``f[group]`` works and new data recompile nothing. The same pass finds the closed
forms: terms whose slope is a straight line as far as one looks are Gaussian (the second derivative
alone does not tell: that of ``|y - f|`` is zero but at a kink); those of `BernoulliProbit` whose
``eta`` is affine are probit terms. Cost: one small compilation, O(m + n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Batch, Flat, GaussianLatent, Target, Terms, listing
from probkit.core._programs import BRIEF, compiled
from probkit.models._centres import whereabouts
from probkit.models._centring import decentre
from probkit.models._gp import check_memory, processes
from probkit.models._graph import reaches
from probkit.models._kinks import kink_mark
from probkit.models._nodes import Deterministic, Factor, RandomVariable
from probkit.models._sites import call
from probkit.models.kernels._kernel import cross_covariance, diagonal

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram
    from probkit.models._plan import View

_ASIDE = "or use a method that needs no such form, such as pk.NUTS()"


class GraphLatent(GaussianLatent):
    """The Gaussian vector of a graph. Built once a program."""

    def __init__(self, program: GraphProgram):
        found = processes(program.nodes)
        _refuse(program, found)
        self.program = program
        self.name = next(iter(found))
        self.node = found[self.name]
        self.size = program.facts[self.name].shape[0]
        self.dim = program.facts[self.name].dims[0]
        self.theta = Flat({k: s for k, s in program.shapes.items() if k != self.name})
        self._whereabouts = whereabouts(program, self.theta.shapes)
        inside = reaches([self.name], program.nodes, program.plan.observed)
        self.inside = tuple(k for k in program.nodes if k in inside)
        self.observed = tuple(k for k in self.inside if k in likelihoods(program))
        self.above = ancestors([self.name], program)
        self.beside = ancestors(self.inside, program) - {self.name} - inside
        self.outside = frozenset(program.nodes) - inside - {self.name}

    def checked(self, arrays: dict) -> GraphLatent:
        """Itself, if the data these arrays hold keep the terms apart."""
        if not arrays.get("latent"):
            raise ValueError(
                f"an observation depends on several entries of {self.name!r} (or this target was "
                f"bound for prediction), expected one each; {_ASIDE}"
            )
        return self

    # -- walking ----------------------------------------------------------------------------

    def _walk(
        self, wanted: Iterable[str], theta: Array, arrays: dict, view: View
    ) -> tuple[dict[str, Any], Terms]:
        """Values of some nodes, none of which depends on ``f``, and their log density terms."""
        return walk(self.program, wanted, self.theta.unravel(theta), arrays, view)

    def _values(self, wanted: Iterable[str], theta: Array, view: View) -> dict[str, Any]:
        """The values alone: what is not asked for need not be traced."""
        return values_of(self.program, wanted, self.theta.unravel(theta), view)

    def _parents(self, theta: Array, arrays: dict) -> dict[str, Any]:
        """The values of the process' own parents."""
        view = self.program.view(arrays)
        return self.program.arguments(self.name, self._values(self.above, theta, view), view)

    # -- the prior --------------------------------------------------------------------------

    def log_prior(self, theta: Array, arrays: dict) -> Array:
        _, terms = self._walk(self.outside, theta, arrays, self.program.view(arrays))
        return jnp.asarray(terms.log_density(), self.program.dtype)

    def mean(self, theta: Array, arrays: dict) -> Array:
        return self.node.process.mean_of(self._parents(theta, arrays))

    def covariance(self, theta: Array, arrays: dict) -> Array:
        check_memory(self.name, self.size, self.program.dtype)
        values = self._parents(theta, arrays)
        x = self.node.process.points(values)
        return cross_covariance(self.node.process.kernel_of(values), x, x)

    def points(self, arrays: dict) -> Array:
        return self.node.process.points(self.program.view(arrays).data)

    def cross_covariance(self, theta: Array, a: Array, b: Array, arrays: dict) -> Array:
        return cross_covariance(self.node.process.kernel_of(self._parents(theta, arrays)), a, b)

    def variance(self, theta: Array, a: Array, arrays: dict) -> Array:
        return diagonal(self.node.process.kernel_of(self._parents(theta, arrays)), a)

    # -- the likelihood ---------------------------------------------------------------------

    def log_likelihood(self, theta: Array, f: Array, arrays: dict) -> Array:
        return self._summed(self.each(theta, f, arrays), arrays)

    def _summed(self, values: Mapping[str, Array], arrays: dict) -> Array:
        """Values by observation summed by the entry of ``f`` that they belong to."""
        total = jnp.zeros(self.size, self.program.dtype)
        if "by_row" in arrays["latent"]:
            return sum(values.values(), total)
        for name, value in values.items():
            total = total.at[jnp.asarray(arrays["latent"]["owner"][name])].add(value)
        return total

    def each(self, theta: Array, f: Array, arrays: dict, view: View | None = None) -> dict:
        """Log density terms of every observation, flat, by site."""
        view = self.program.view(arrays) if view is None else view
        env, terms = self._values(self.beside, theta, view), Terms({}, {}, {})
        env[self.name] = f
        for name in self.inside:
            self.program.visit(name, env, {}, arrays, view, terms)
        return {k: flat(self.program, k, terms.likelihood[k], view) for k in self.observed}

    def log_likelihood_rows(self, theta: Array, f: Array, rows: Array, arrays: dict) -> Array:
        if "by_row" not in arrays["latent"]:
            raise ValueError(
                f"site {self.name!r}: mini-batches need observations that lie along the rows of "
                f"{self.dim!r}, each depending on its own row; take all rows"
            )
        view = self.program.rows_view(arrays, Batch(self.dim, rows))
        return jnp.sum(jnp.stack(list(self.each(theta, f, arrays, view).values())), axis=0)

    def rows_apart(self, arrays: dict) -> bool:
        return "by_row" in arrays["latent"]

    def family(self, arrays: dict) -> str | None:
        for name in ("gaussian", "probit"):
            if name in arrays["latent"]:
                return name
        return None

    def kinks(self, arrays: dict) -> int:
        return len(arrays["latent"].get("kinked", ()))

    def gaussian_terms(self, theta: Array, arrays: dict) -> tuple[Array, Array, Array]:
        one, zero = (
            jnp.ones(self.size, self.program.dtype),
            jnp.zeros(self.size, self.program.dtype),
        )

        def value(f: Array) -> Array:
            return self.log_likelihood(theta, f, arrays)

        def sloping(f: Array) -> tuple[Array, Array]:
            return jax.jvp(value, (f,), (one,))

        (c, b), (_, bend) = jax.jvp(sloping, (zero,), (one,))
        return -bend, b, c

    def probit_terms(self, theta: Array, arrays: dict) -> tuple[Array, Array]:
        one, zero = (
            jnp.ones(self.size, self.program.dtype),
            jnp.zeros(self.size, self.program.dtype),
        )
        etas, slopes = jax.jvp(lambda f: self.etas(theta, f, arrays), (zero,), (one,))
        # A row without an observation: Phi(40) is one, in either precision.
        slope, offset = zero, 40.0 * one
        for name, eta in etas.items():
            owner = jnp.asarray(arrays["latent"]["owner"][name])
            sign = 2.0 * jnp.ravel(jnp.asarray(arrays["observed"][name])).astype(eta.dtype) - 1.0
            if name in arrays["masked"]:
                seen = ~jnp.ravel(self.program.holes(name, arrays))
                owner = jnp.where(seen, owner, self.size)  # beyond the end: dropped
            slope = slope.at[owner].set(sign * slopes[name], mode="drop")
            offset = offset.at[owner].set(sign * eta, mode="drop")
        return slope, offset

    def etas(self, theta: Array, f: Array, arrays: dict) -> dict[str, Array]:
        """The linear predictors of the observed probit sites, flat, by site."""
        view = self.program.view(arrays)
        env = self._values(self.beside, theta, view)
        env[self.name] = f
        out = {}
        for name in self.inside:
            node = self.program.nodes[name]
            if isinstance(node, Deterministic):
                env[name] = call(name, node, self.program.arguments(name, env, view))
            else:
                d = self.program.distribution(name, env, view)
                while "base_dist" in d.__dict__:
                    d = d.base_dist
                out[name] = flat(self.program, name, d.eta, view)
        return out

    # -- and back ---------------------------------------------------------------------------

    def point(self, theta: Array, f: Array, arrays: dict) -> dict[str, Array]:
        if not self.program.facts[self.name].style:
            return {**self.theta.unravel(theta), self.name: f}
        return self.pointing(theta, arrays)[1](f)

    def pointing(self, theta: Array, arrays: dict) -> tuple[Array, Callable[[Array], dict]]:
        view, style = self.program.view(arrays), self.program.facts[self.name].style
        d = self.program.distribution(self.name, self._values(self.above, theta, view), view)

        def point(f: Array) -> dict[str, Array]:
            weight = view.centred[self.name] if style == "auto" else False
            z = decentre(d, f, weight) if style else f
            return {**self.theta.unravel(theta), self.name: z}

        return d.scale_tril, point

    def split(self, z: dict[str, Array], arrays: dict) -> tuple[Array, Array]:
        theta = self.theta.ravel(z).astype(self.program.dtype)
        view = self.program.view(arrays)
        env = self._values(self.above, theta, view)
        d = self.program.distribution(self.name, env, view)
        return theta, self.program.latent(self.name, d, z[self.name], view)[0]

    def induced(self, target: Target, points: Any, jitter: float) -> Target:
        from probkit.models._gp_induced import induced_target

        return induced_target(self, target, np.asarray(points), jitter)


def walk(
    program: GraphProgram, wanted: Iterable[str], z: Mapping[str, Array], arrays: dict, view: View
) -> tuple[dict[str, Any], Terms]:
    """Values of some nodes, none of which depends on a process, and their log density terms."""
    env: dict[str, Any] = {}
    terms = Terms({}, {}, {})
    for name in program.nodes:
        if name in wanted and name not in program.barren:
            program.visit(name, env, z, arrays, view, terms)
    return env, terms


def values_of(
    program: GraphProgram, wanted: Iterable[str], z: Mapping[str, Array], view: View
) -> dict[str, Any]:
    """What `walk` gives without the density terms: nothing of them is traced."""
    env: dict[str, Any] = {}
    for name, node in program.nodes.items():
        if name not in wanted or name in program.barren or isinstance(node, Factor):
            continue
        if isinstance(node, Deterministic):
            env[name] = call(name, node, program.arguments(name, env, view))
            continue
        d = program.distribution(name, env, view)
        if name not in program.plan.observed:
            own = view.rows(z[name], program.facts[name].dims)
            env[name] = program.latent_value(name, d, own, view)
            continue
        missing = None
        if name in program.imputed:
            missing, _ = program.imputed_value(name, d, z[f"{name}_missing"], view)
        env[name] = program.filled(name, missing, view)
    return env


def flat(program: GraphProgram, name: str, value: Array, view: View) -> Array:
    """An observation's values or log density terms, one an element, as a vector."""
    facts = program.facts[name]
    if isinstance(program.nodes[name], Factor):
        return jnp.ravel(value)
    dims = facts.dims[: len(facts.batch_shape)]
    return jnp.ravel(jnp.broadcast_to(value, tuple(view.sizes[d] for d in dims)))


def likelihoods(program: GraphProgram) -> set[str]:
    """Observed variables and likelihood factors."""
    nodes = program.nodes
    factors = {k for k, n in nodes.items() if isinstance(n, Factor) and n.likelihood}
    return factors | set(program.plan.observed)


def ancestors(names: Iterable[str], program: GraphProgram) -> frozenset[str]:
    """Nodes that any of ``names`` depends on, through any number of others."""
    nodes, found = program.nodes, set()
    frontier = list(names)
    while frontier:
        node = nodes[frontier.pop()]
        for parent in node.parents:
            if parent in nodes and parent not in node.sizes and parent not in found:
                found.add(parent)
                frontier.append(parent)
    return frozenset(found)


def _refuse(program: GraphProgram, found: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the graph is that of one Gaussian vector with terms."""
    if len(found) > 1:
        raise ValueError(
            f"it has {len(found)} Gaussian processes ({listing(found)}), expected one; "
            "pk.GPLaplace(), pk.EP(), pk.CVI(), pk.HybridEP() and pk.Marginal() take several along "
            "the same rows. Else add their kernels up in one node (a sum of processes is a "
            f"process), stack the outputs in rows with kernels.ICM, {_ASIDE}"
        )
    refuse(program, found)


def refuse(program: GraphProgram, found: Mapping[str, Any]) -> None:
    """Raise a ValueError unless observed terms are all that depends on the processes found."""
    if not found:
        raise ValueError(
            "it has no Gaussian process; declare a latent function as f=pk.gp(kernel_fn, at='x'), "
            f"{_ASIDE}"
        )
    seen = [k for k in found if k in program.plan.observed]
    if seen:
        raise ValueError(
            f"site {seen[0]!r} is observed, so there is no latent function; leave it out of the "
            "data"
        )
    if program.summed:
        raise ValueError(f"{listing(program.summed)} are summed out along with it; {_ASIDE}")
    inside = reaches(list(found), program.nodes, program.plan.observed)
    if not inside & likelihoods(program):
        raise ValueError(
            f"no observed variable depends on {listing(found)}; pass one in the data, or, to look "
            "at the prior, use pk.prior_predictive"
        )
    for key in program.nodes:
        node = program.nodes[key]
        if key not in inside or key in program.barren or isinstance(node, Deterministic):
            continue
        if key in program.imputed:
            raise ValueError(
                f"site {key!r} has missing entries, which become latent variables that depend on "
                f"{listing(found)}; drop those rows and predict them with posterior.predict, "
                f"{_ASIDE}"
            )
        if key not in likelihoods(program):
            kind = "variable" if isinstance(node, RandomVariable) else "prior factor"
            raise ValueError(
                f"the {kind} {key!r} depends on {listing(found)} and is not observed; observe it, "
                f"{_ASIDE}"
            )


# -- what is found when data are bound -----------------------------------------------------------


def with_owners(target: Target) -> Target:
    """The target with the owners of its observations among the arrays, where it has latents."""
    from probkit.models import _gp_latents as several

    program: Any = target.program
    latent, look, judge = program.latent_or_none, _probe, _judge
    if latent is None:
        latent, look, judge = program.latents_or_none, several.probe, several.judge
    if latent is None:
        return target

    def probe(probes: dict, arrays: dict) -> dict:
        return look(latent, probes, arrays)

    args = (_probes(latent), target.arrays)
    found = compiled(program, "latent", latent.name, probe, args, options=BRIEF)(*args)
    with np.errstate(all="ignore"):
        part = judge(latent, jax.tree.map(np.asarray, found), args[0])
    if part and isinstance(latent, GraphLatent) and not {"gaussian", "probit"} & set(part):
        part |= kink_mark(latent, target.arrays | {"latent": part}, args[0]["theta"])
    return Target(program, {**target.arrays, "latent": part}, target.labels)


def _probe(latent: GraphLatent, probes: dict, arrays: dict) -> dict:
    """Directional derivatives of every observation's log density, ``(points, directions, m)``."""
    one = probes["along"][0]

    def value(f: Array) -> dict:
        return latent.each(probes["theta"], f, arrays)

    def slope(f: Array, along: Array) -> dict:
        return jax.jvp(value, (f,), (along,))[1]

    def at(f: Array) -> dict:
        out = {
            "slope": jax.vmap(lambda along: slope(f, along))(probes["along"]),
            "bend": jax.jvp(lambda g: slope(g, one), (f,), (one,))[1],
        }
        if _all_probit(latent):
            etas = lambda g: latent.etas(probes["theta"], g, arrays)  # noqa: E731
            out["eta"] = jax.jvp(etas, (f,), (one,))[1]
        return out

    return jax.vmap(at)(probes["points"])


def _probes(latent: Any) -> dict[str, np.ndarray]:
    """Where derivatives are taken (two near points, two beyond any kink), and along what.

    Several processes have no closed form that a kink could be taken for: the near ones do.
    """
    n, rng = latent.size, np.random.default_rng(20)
    theta = rng.uniform(-0.2, 0.2, latent.theta.size)
    several = () if isinstance(latent, GraphLatent) else (len(latent.names),)
    near = 0.7 * rng.normal(size=(2, *several, n))
    made = {
        "theta": theta,
        "points": near if several else np.stack([*near, near[0] - 1e6, near[1] + 1e6]),
        "along": np.stack([np.ones(n), np.arange(1.0, n + 1), rng.normal(size=n)]),
    }
    return {k: v.astype(latent.program.dtype) for k, v in made.items()}


def _all_probit(latent: GraphLatent) -> bool:
    """Whether every observation is a scalar probit variable."""
    facts = latent.program.facts
    return all(facts[k].distribution == "BernoulliProbit" for k in latent.observed)


def _is_line(slopes: np.ndarray, bend: np.ndarray, f: np.ndarray, tol: float) -> bool:
    """Whether slopes ``(points, m)`` of terms are those of parabolas with curvature ``bend``."""
    rise = bend * (f - f[0])
    size = np.abs(slopes) + np.abs(slopes[0]) + np.abs(rise)
    return bool(np.all(np.abs(slopes - slopes[0] - rise) <= tol * size))


def _judge(latent: GraphLatent, found: dict, probes: dict) -> dict:
    """Owners and families, or nothing if an observation depends on several entries of ``f``."""
    loose = latent.program.dtype == np.float32
    tol, n, direction = (2e-3 if loose else 1e-7), latent.size, probes["along"][2]
    owners, flat, by_row, straight = {}, True, True, "eta" in found
    for name in latent.observed:
        slopes, bends = found["slope"][name], found["bend"][name]
        # Of the two near points, the one where the observation has more to say.
        best = np.argmax(np.abs(slopes[:2, 0]), axis=0)
        one, w, v = np.take_along_axis(slopes, best[None, None], axis=0)[0]
        alive = one != 0
        place = np.nan_to_num(np.rint(w / np.where(alive, one, 1.0)) - 1)
        own = np.arange(len(one)) % n
        owner = np.clip(np.where(alive, place, own), 0, n - 1).astype(int)
        gap = np.abs(v - one * direction[owner])
        # A NaN is no dependence on one entry either.
        if not np.all(gap <= tol * (np.abs(one) + np.abs(v) + 1e-30)):
            return {}
        owners[name] = owner.astype(np.int32)
        flat &= bool(np.all(bends[:2] <= 0))
        flat &= _is_line(slopes[:, 0], bends[0], probes["points"][:, owner], tol)
        dims = latent.program.facts[name].dims
        by_row &= dims == (latent.dim,) and bool(np.all(owner == np.arange(n)))
        if straight:
            etas = found["eta"][name]
            straight &= bool(np.all(np.ptp(etas, axis=0) <= tol * np.abs(etas).max(axis=0)))
    every = np.concatenate(list(owners.values()))
    straight &= len(np.unique(every)) == len(every)
    marks = {"gaussian": flat, "probit": straight and not flat, "by_row": by_row}
    return {"owner": owners, **{k: () for k, holds in marks.items() if holds}}
