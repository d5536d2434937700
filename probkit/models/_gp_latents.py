r"""The capability ``gaussian_latents`` of a declared model: see `probkit.core.GaussianLatents`.

A model has it when its Gaussian processes lie along one dim and none depends on another, no other
latent depends on them, and every observation depends on one row of theirs at the most. The last is
checked as for one process (`_gp_latent`), by directional derivatives process by process: those that
an observation depends on must agree on the row.

The same pass tells softmax terms. One label ``y`` given ``logits = f + offset`` has

    p = softmax(logits),   dl/df = e_y - p,   d2l/df2 = p p' - diag p,

so ``p`` is read off the first derivative (whose one positive entry is the label's) and compared
with the second. Rows without a label have both zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Flat, GaussianLatents, Terms, listing
from probkit.models._centres import whereabouts
from probkit.models._centring import decentre
from probkit.models._gp import check_memory, processes
from probkit.models._gp_latent import ancestors, flat, likelihoods, refuse, values_of, walk
from probkit.models._graph import reaches
from probkit.models.kernels._kernel import cross_covariance, diagonal

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram

_ASIDE = "or use a method that needs no such form, such as pk.NUTS()"


class GraphLatents(GaussianLatents):
    """The Gaussian vectors of a graph. Built once a program."""

    def __init__(self, program: GraphProgram):
        found = processes(program.nodes)
        refuse(program, found)
        facts = program.facts
        self.program = program
        self.names = tuple(found)
        self.nodes = found
        self.size, self.dim = facts[self.names[0]].shape[0], facts[self.names[0]].dims[0]
        for name in found:
            if facts[name].dims[0] != self.dim:
                raise ValueError(
                    f"sites {self.names[0]!r} and {name!r}: the processes lie along {self.dim!r} "
                    f"and {facts[name].dims[0]!r}, expected the same rows; {_ASIDE}"
                )
            between = set(found) & ancestors([name], program)
            if between:
                raise ValueError(
                    f"site {name!r}: the process depends on {listing(between)}, expected processes "
                    f"that are independent given the hyperparameters; {_ASIDE}"
                )
        self.theta = Flat({k: s for k, s in program.shapes.items() if k not in found})
        self._whereabouts = whereabouts(program, self.theta.shapes)
        inside = reaches(self.names, program.nodes, program.plan.observed)
        self.inside = tuple(k for k in program.nodes if k in inside)
        self.observed = tuple(k for k in self.inside if k in likelihoods(program))
        self.above = {k: ancestors([k], program) for k in found}
        self.beside = ancestors(self.inside, program) - set(found) - inside
        self.outside = frozenset(program.nodes) - inside - set(found)

    def checked(self, arrays: dict) -> GraphLatents:
        """Itself, if the data these arrays hold keep the rows apart."""
        if not arrays.get("latent"):
            raise ValueError(
                f"an observation depends on several rows of {listing(self.names)} (or this target "
                f"was bound for prediction), expected one each; {_ASIDE}"
            )
        return self

    # -- the prior --------------------------------------------------------------------------

    def _parents(self, name: str, theta: Array, arrays: dict) -> dict[str, Any]:
        """The values of one process' own parents."""
        view = self.program.view(arrays)
        env = values_of(self.program, self.above[name], self.theta.unravel(theta), view)
        return self.program.arguments(name, env, view)

    def log_prior(self, theta: Array, arrays: dict) -> Array:
        view, z = self.program.view(arrays), self.theta.unravel(theta)
        _, terms = walk(self.program, self.outside, z, arrays, view)
        return jnp.asarray(terms.log_density(), self.program.dtype)

    def mean(self, theta: Array, arrays: dict) -> Array:
        nodes = self.nodes.items()
        return jnp.stack([n.process.mean_of(self._parents(k, theta, arrays)) for k, n in nodes])

    def covariance(self, theta: Array, arrays: dict) -> Array:
        check_memory(self.names[0], self.size, self.program.dtype)
        return self.cross_covariance(theta, arrays, arrays)

    def cross_covariance(self, theta: Array, arrays: dict, other: dict) -> Array:
        out = []
        for name, node in self.nodes.items():
            values, there = (self._parents(name, theta, a) for a in (arrays, other))
            x, y = (node.process.points(v) for v in (values, there))
            out.append(cross_covariance(node.process.kernel_of(values), x, y))
        return jnp.stack(out)

    def variance(self, theta: Array, arrays: dict, other: dict) -> Array:
        out = []
        for name, node in self.nodes.items():
            values, there = (self._parents(name, theta, a) for a in (arrays, other))
            out.append(diagonal(node.process.kernel_of(values), node.process.points(there)))
        return jnp.stack(out)

    # -- the likelihood ---------------------------------------------------------------------

    def each(self, theta: Array, f: Array, arrays: dict) -> dict[str, Array]:
        """Log density terms of every observation, flat, by site."""
        view, z = self.program.view(arrays), self.theta.unravel(theta)
        env = values_of(self.program, self.beside, z, view)
        terms = Terms({}, {}, {})
        env.update(zip(self.names, f, strict=True))
        for name in self.inside:
            self.program.visit(name, env, {}, arrays, view, terms)
        return {k: flat(self.program, k, terms.likelihood[k], view) for k in self.observed}

    def log_likelihood(self, theta: Array, f: Array, arrays: dict) -> Array:
        total = jnp.zeros(self.size, self.program.dtype)
        for name, value in self.each(theta, f, arrays).items():
            total = total.at[jnp.asarray(arrays["latent"]["owner"][name])].add(value)
        return total

    def rows_apart(self, arrays: dict) -> bool:
        return "own_row" in arrays["latent"]

    def softmax(self, arrays: dict) -> bool:
        return "softmax" in arrays["latent"]

    # -- and back ---------------------------------------------------------------------------

    def point(self, theta: Array, f: Array, arrays: dict) -> dict[str, Array]:
        program, view = self.program, self.program.view(arrays)
        z = dict(self.theta.unravel(theta))
        for name, value in zip(self.names, f, strict=True):
            style = program.facts[name].style
            if style:
                env = values_of(program, self.above[name], z, view)
                weight = view.centred[name] if style == "auto" else False
                value = decentre(program.distribution(name, env, view), value, weight)
            z[name] = value
        return z


# -- what is found when data are bound -----------------------------------------------------------


def probe(latent: GraphLatents, probes: dict, arrays: dict) -> dict:
    """Derivatives of every observation's log density at each of the probes' points.

    By site: ``slope``, ``(points, C, directions, m)``, along each process in turn; and of the sum
    over each row, ``first`` ``(points, C, n)`` and ``second`` ``(points, C, C, n)``.
    """
    count, n = len(latent.names), latent.size

    def at(f: Array) -> dict:
        def value(f: Array) -> dict:
            return latent.each(probes["theta"], f, arrays)

        def slope(c: Array, along: Array) -> dict:
            tangent = jnp.zeros_like(f).at[c].set(along)
            return jax.jvp(value, (f,), (tangent,))[1]

        def total(f: Array) -> Array:
            return sum(jnp.sum(v) for v in value(f).values())  # type: ignore[return-value]

        def bend(c: Array) -> Array:
            tangent = jnp.zeros((count, n), f.dtype).at[c].set(1.0)
            return jax.jvp(jax.grad(total), (f,), (tangent,))[1]

        which = jnp.arange(count)
        inner = jax.vmap(slope, (None, 0))
        return {
            "slope": jax.vmap(lambda c: inner(c, probes["along"]))(which),
            "first": jax.grad(total)(f),
            "second": jax.vmap(bend)(which),
        }

    return jax.vmap(at)(probes["points"])


def judge(latent: GraphLatents, found: dict, probes: dict) -> dict:
    """Owners and the family, or nothing if an observation depends on several rows."""
    n, direction = latent.size, probes["along"][2]
    tol = 2e-3 if latent.program.dtype == np.float32 else 1e-7
    owners = {}
    for name in latent.observed:
        slopes = found["slope"][name]  # (points, C, directions, m)
        slopes = slopes.reshape(-1, *slopes.shape[2:])
        # Of all points and processes, the one where the observation has most to say.
        best = np.argmax(np.abs(slopes[:, 0]), axis=0)
        one, w = (np.take_along_axis(slopes[:, k], best[None], axis=0)[0] for k in (0, 1))
        alive = one != 0
        place = np.nan_to_num(np.rint(w / np.where(alive, one, 1.0)) - 1)
        owner = np.clip(np.where(alive, place, np.arange(len(one)) % n), 0, n - 1).astype(int)
        gap = np.abs(slopes[:, 2] - slopes[:, 0] * direction[owner])
        size = np.abs(slopes[:, 0]) + np.abs(slopes[:, 2])
        # (What rounding leaves of a slope that is zero is judged against the largest one.)
        if not np.all(gap <= tol * (size + 1e-6 * np.max(size, axis=0) + 1e-30)):
            return {}
        owners[name] = owner.astype(np.int32)
    marks = {"softmax": ()} if _is_softmax(found["first"], found["second"], tol) else {}
    dims = [latent.program.facts[k].dims for k in latent.observed]
    if dims == [(latent.dim,)] and all(np.all(v == np.arange(n)) for v in owners.values()):
        marks["own_row"] = ()
    return {"owner": owners, **marks}


def _is_softmax(first: np.ndarray, second: np.ndarray, tol: float) -> bool:
    """Whether the derivatives are those of one label a row; see the module's text."""
    p = np.where(first > 0, 1.0, 0.0) - first
    eye = np.eye(p.shape[1])[:, :, None]
    want = p[:, :, None] * (p[:, None] - eye)
    summed = np.sum(p, axis=1)
    labelled = np.abs(summed - 1) <= 10 * tol
    empty = np.max(np.abs(first), axis=1) == 0
    fine = np.all(np.abs(second - want) <= 10 * tol) and np.all(labelled | empty)
    return bool(fine and p.shape[1] > 1)
