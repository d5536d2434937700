r"""The end of a sparse fit on all rows: q at its optimum, and the hyperparameters at theirs.

Natural-gradient steps take q to its optimum at given hyperparameters (`polish`). There the ELBO's
derivative with q held is that of ``max_q ELBO``, and L-BFGS (`_search`) goes from where the steps
of `_sparse_learning` ended to the optimum: a handful of evaluations where these took all rows, some
twenty after mini-batches, whose noise it removes. The hybrid's field follows from there, by
Broyden's method (`_broyden`), as in the dense hybrid. Rows are taken in blocks, differentiated
through one block at a time: O(n m^2) an evaluation, memory O(m) a row of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.gaussian import _sparse as sparse
from probkit.inference.gaussian._broyden import begin_root, chosen, follow, handed_over
from probkit.inference.gaussian._problem import Problem
from probkit.inference.gaussian._search import Search, advance, begin
from probkit.inference.gaussian._sparse import Basis, Gaussian, Natural
from probkit.inference.gaussian._sparse_rows import BLOCK, blocks_of, part

#: Steps of `polish` at the most, and the residual it stops at.
_STEPS, _FINE = 60, 1e-6
#: Evaluations of a search at the most, trials refused in a row that end it, nats that do.
_LOOKS, _REFUSED, _GAIN = 60, 8, 1e-5
_ROUGH = 1e-3  # residual of q in a search: it costs its square in the bound
_ROOT_LOOKS, _ROOT_REFUSED = 15, 4


class Polished(NamedTuple):
    """Sites on v at the optimum, how far they were still to move, steps, ELBO."""

    sites: Natural
    residual: Array
    steps: Array
    elbo: Array


class Ended(NamedTuple):
    """Hyperparameters and sites on v at the end of a search, evaluations, nats left to gain."""

    theta: Array
    sites: Natural
    looks: Array
    gain: Array


def summed(problem: Problem, block: int, fn: Callable[[Problem, Array | float], Any]) -> Any:
    """``fn(rows' problem, weights)`` summed over blocks of rows; no row, no weight."""
    blocks, n = blocks_of(problem, block), problem.latent.size
    if blocks is None:
        return fn(problem, 1.0)

    @jax.checkpoint
    def some(rows: Array) -> Any:
        few = part(problem, jnp.minimum(rows, n - 1))
        return fn(few, (rows < n).astype(float))

    like = jax.eval_shape(some, jnp.asarray(blocks[0]))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)

    def add(total: Any, rows: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, some(rows)), None

    return jax.lax.scan(add, zero, jnp.asarray(blocks))[0]


def whole(
    problem: Problem, theta: Array, z: Array, at: Basis, q: Gaussian, block: int = BLOCK
) -> tuple[Array, Natural]:
    """Expected log terms summed over all rows, and the sites that a whole step leads to."""

    def some(few: Problem, weight: Array | float) -> tuple[Array, Natural]:
        seen = sparse.project(few, theta, z, at)
        terms = sparse.expected_terms(few, theta, seen, sparse.marginals(seen, q))
        return jnp.sum(weight * terms.value), sparse.target(seen, terms, weight)

    return summed(problem, block, some)


def energy(problem: Problem, theta: Array, z: Array, own: Natural, block: int = BLOCK) -> Array:
    """Eq. 2 of `_sparse` on all rows, differentiable in ``theta`` at frozen sites of the rows."""
    at, still = sparse.basis(problem, theta, z), sparse.gaussian(own)

    def pulled(few: Problem, weight: Array | float) -> Natural:
        seen = sparse.project(few, theta, z, at)
        return sparse.pull(seen, sparse.frozen_sites(few, theta, seen, still), weight)

    moving = summed(problem, block, pulled)
    moved = jax.tree.map(lambda a, b: a + (b - jax.lax.stop_gradient(b)), own, moving)
    q = sparse.gaussian(moved)

    def each(few: Problem, weight: Array | float) -> Array:
        seen = sparse.project(few, theta, z, at)
        terms = sparse.frozen_sites(few, theta, seen, still)
        return sparse.energy_terms(few, theta, seen, q, terms, weight)

    return sparse.evidence_of(moved, q) + summed(problem, block, each)


def elbo(problem: Problem, theta: Array, z: Array, own: Natural, block: int = BLOCK) -> Array:
    """The ELBO on all rows, differentiable in ``theta`` with the sites on v held."""
    at, q = sparse.basis(problem, theta, z), sparse.gaussian(own)
    return whole(problem, theta, z, at, q, block)[0] - sparse.divergence(q)


def polish(
    problem: Problem,
    theta: Array,
    z: Array,
    start: Natural,
    step: Array | float = 1.0,
    block: int = BLOCK,
    tolerance: float = _FINE,
) -> Polished:
    """The optimal ``q(v)`` at ``theta``; steps are halved where they overshoot.

    The residual is the step that is left, in units of q itself: ``|R^-1 (dl1 - dl2 mu)|`` plus
    ``|R^-1 dl2 R^-T|`` with ``P = R R'``.
    """
    at = sparse.basis(problem, theta, z)
    big = jnp.asarray(jnp.inf, z.dtype)

    def going(c: tuple) -> Array:
        return (c[2] < _STEPS) & (c[1] > tolerance)

    def body(c: tuple) -> tuple:
        sites, before, count, beta, _ = c
        q = sparse.gaussian(sites)
        value, new = whole(problem, theta, z, at, q, block)
        gap = jax.tree.map(jnp.subtract, new, sites)
        shift = q.root @ (gap.l1 - gap.l2 @ q.mu)
        residual = jnp.linalg.norm(shift) + jnp.linalg.norm(q.root @ gap.l2 @ q.root.T)
        beta = jnp.where(residual > 1.2 * before, 0.5 * beta, beta)
        move = jnp.where(residual <= tolerance, 1.0, beta)
        moved = Natural(sites.l1 + move * gap.l1, sites.l2 + move * gap.l2)
        return moved, residual, count + 1, beta, value - sparse.divergence(q)

    carry = (start, big, jnp.int32(0), jnp.asarray(step, z.dtype), -big)
    sites, residual, steps, _, value = jax.lax.while_loop(going, body, carry)
    return Polished(sites, residual, steps, value)


def search(
    problem: Problem,
    theta: Array,
    z: Array,
    sites: Natural,
    beside: Callable[[Array], Array],
    field: bool,
    block: int = BLOCK,
) -> Ended:
    """The optimum of ``max_q ELBO + beside`` from ``theta``, or (``field``) the hybrid's root.

    Args:
        problem: all rows.
        theta: hyperparameters to begin with.
        z: inducing points.
        sites: those on v to begin with.
        beside: what the objective has besides the bound, of ``theta``.
        field: whether the energy's field at frozen sites is followed to its root afterwards.
        block: rows at a time.
    """
    candidates = theta[None]

    def look(form: Callable[..., Array], trial: Array, warm: Natural) -> tuple[Any, Array, Natural]:
        own = polish(problem, trial, z, warm, block=block, tolerance=_ROUGH).sites
        loss = lambda t: -form(problem, t, z, own, block) - beside(t)  # noqa: E731
        value, slope = jax.value_and_grad(loss)(trial)
        return value, slope, own

    def going(c: tuple[Search, Natural]) -> Array:
        at = c[0]
        return (at.looks < _LOOKS) & (at.gain > _GAIN) & (at.refused < _REFUSED)

    def body(c: tuple[Search, Natural]) -> tuple[Search, Natural]:
        at, held = c
        value, slope, own = look(elbo, at.trial, held)
        new, taken = advance(at, value, slope, candidates)
        return new, chosen(taken, own, held)

    at, held = jax.lax.while_loop(going, body, (begin(candidates), sites))
    if not field:
        return Ended(at.x, held, at.looks, at.gain)

    def further(c: tuple) -> Array:
        at, count = c[0], c[3]
        return (count < _ROOT_LOOKS) & (at.gain > _GAIN) & (at.refused < _ROOT_REFUSED)

    def onward(c: tuple) -> tuple:
        at, root, held, count = c
        value, slope, own = look(energy, at.trial, held)
        new, root, taken = follow(at, root, value, slope)
        return new, root, chosen(taken, own, held), count + 1

    root = begin_root(theta.shape[0], theta.dtype)
    carry = (handed_over(at), root, held, jnp.int32(0))
    at, _, held, _ = jax.lax.while_loop(further, onward, carry)
    return Ended(at.x, held, at.looks, at.gain)
