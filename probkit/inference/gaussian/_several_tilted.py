r"""Integrals and moments of a row's term under a normal of C dimensions, by nodes put in place.

    Z = E[t(f)],   e = E_t[z],   S = Cov_t[z],        f = m + T z,   T T' = V,   f ~ N(m, V),

``E_t`` being the expectation under ``t(f) N(f; m, V) / Z``. Nodes are where the integrand is (Liu
and Pierce 1994), around its mode, found by safeguarded Newton steps, in units of its curvature: a
product of Gauss and Hermite's rules, or Sobol points, as in `_several_rule`. Sobol points move
twice more, to the mean and the covariance that they gave, which is worth a factor of ten where the
integrand is far from a normal: errors of log Z and of moments are 1e-4 and 1e-3 for functions' sds
of 1, and 1e-2 for sds of 6, with five and with ten classes.

In two dimensions that is not enough where one function is another's scale: at a low scale the
integrand is a needle, and a product's nodes pass it by. Two dimensions are therefore nested, 64
equidistant nodes of an outer coordinate and 48 of the other, whose place and width are found anew
(Newton again) at each outer node. Inside goes the function in which the integrand is nearer to a
normal, given the other: the mean of outcomes, not their log scale. The outer nodes span ten
standard deviations on either side of the mean, both by Laplace's method along the inner coordinate,
on a coarse grid. Errors of log Z and of the moments, in units of the normal: 1e-8 for a normal
outcome whose log sd has an sd of 1 (2: 1e-8 and 1e-6), for softmax terms of three classes with
functions' sds of 1, 3 and 10: 1e-13, 1e-7 and 1e-3.

Value and moments are sums over the same weighted nodes, so that with the nodes fixed the moments
are the value's derivatives; all sums are of logarithms, taken relative to the mode.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array

from probkit.inference.gaussian._several_algebra import by_process, by_row
from probkit.inference.gaussian._several_rule import PRODUCT, Rowwise, chunks, derivatives

_CLIMBS, _INNER_CLIMBS = 30, 12
_COARSE, _OUTER, _INNER = 25, 64, 48
#: In sds of the coordinate by Laplace's method, in its sds, and in widths of the inner mode.
_COARSE_REACH, _REACH, _INNER_REACH = 8.0, 10.0, 9.0
_BENT = 1e3  # the most that counts of it
_RECENTRED = 2
_HALF_LOG_2PI = 0.5 * np.log(2.0 * np.pi)


class Tilted(NamedTuple):
    """``log Z`` ``(n,)``, ``e`` ``(n, C)``, and ``S`` and ``T`` ``(n, C, C)``."""

    log_z: Array
    mean: Array
    cov: Array
    root: Array


class Match(NamedTuple):
    """What a match of moments needs, by process.

    Attributes:
        value: ``log Z``, ``(n,)``.
        d1: its first derivative by the normal's mean, ``T^-T e``, ``(C, n)``.
        d2: its second, ``T^-T (S - I) T^-1``, ``(C, C, n)``.
        block: the precision that takes the normal's covariance to the tilted one,
            ``T^-T (S^-1 - I) T^-1``, ``(C, C, n)``.
    """

    value: Array
    d1: Array
    d2: Array
    block: Array


class Placed(NamedTuple):
    """Nodes ``z = centre + root x`` with ``x`` standard ones, in groups.

    Attributes:
        m: mean of the normal, ``(C, n)``.
        tail: ``T``, lower triangular, ``(n, C, C)``.
        origin: what moments are taken relative to, ``(n, C)``.
        centre: ``(groups, n, C)``.
        root: ``(groups, n, C, k)``.
        log_size: what the groups' log weights have beside those of ``x``, ``(groups, n)``.
    """

    m: Array
    tail: Array
    origin: Array
    centre: Array
    root: Array
    log_size: Array


def inverses(tril: Array) -> Array:
    """Of lower triangular matrices, ``(n, C, C)``."""
    eye = jnp.eye(tril.shape[1], dtype=tril.dtype)
    return jax.vmap(lambda t: solve_triangular(t, eye, lower=True))(tril)


def _steep(bend: Array) -> tuple[Array, Array]:
    """``1 + [-H]_+`` of rows ``(n, C, C)`` as eigenvalues and vectors."""
    values, vectors = jnp.linalg.eigh(jnp.where(jnp.isfinite(bend), -bend, 0.0))
    return 1.0 + jnp.maximum(values, 0.0), vectors


class _Climb(NamedTuple):
    z: Array
    length: Array
    left: Array
    steps: Array


def _top(fn: Rowwise, m: Array, tail: Array) -> tuple[Array, Array, Array]:
    """The mode in units of ``z``, ``(n, C)``, with the curvature there as eigenpairs."""

    def out(z: Array) -> Array:
        return m + jnp.einsum("nab,nb->an", tail, z)

    def height(z: Array) -> Array:
        return fn(out(z)) - 0.5 * jnp.sum(z**2, axis=1)

    def local(z: Array) -> tuple[Array, Array, Array]:
        d1, d2 = derivatives(fn, out(z))
        slope = jnp.einsum("nab,an->nb", tail, d1) - z
        bend = jnp.swapaxes(tail, 1, 2) @ by_row(d2) @ tail
        return slope, *_steep(bend)

    def body(c: _Climb) -> _Climb:
        slope, values, vectors = local(c.z)
        inside = jnp.einsum("nab,na->nb", vectors, slope) / values
        move = jnp.einsum("nab,nb->na", vectors, inside)
        move = jnp.where(jnp.isfinite(move), move, 0.0)
        new = c.z + c.length[:, None] * move
        up = height(new) >= height(c.z)
        decrement = jnp.sum(move * slope, axis=1)
        # (What rounding decides is at the top.)
        left = jnp.where(decrement > 1e-10, 1.0, 0.0)
        length = jnp.where(up, jnp.minimum(2.0 * c.length, 1.0), 0.25 * c.length)
        return _Climb(jnp.where(up[:, None], new, c.z), length, left, c.steps + 1)

    def going(c: _Climb) -> Array:
        return (c.steps < _CLIMBS) & jnp.any(c.left > 0)

    n = m.shape[1]
    one = jnp.ones(n, m.dtype)
    end = jax.lax.while_loop(going, body, _Climb(jnp.zeros_like(m.T), one, one, jnp.int32(0)))
    _, values, vectors = local(end.z)
    return end.z, values, vectors


def _all_around(m: Array, tail: Array, top: tuple[Array, Array, Array]) -> Placed:
    """One group, around the mode in all directions."""
    z, values, vectors = top
    root = vectors / jnp.sqrt(values)[:, None, :]
    size = -0.5 * jnp.sum(jnp.log(values), axis=1)
    return Placed(m, tail, z, z[None], root[None], size[None])


def _inner(
    fn: Rowwise, m: Array, tail: Array, outer: Array, start: Array
) -> tuple[Array, Array, Array]:
    """Along the second coordinate, with the first at ``outer`` ``(n,)``: mode, width, height."""

    def height(x: Array) -> Array:
        z = jnp.stack([outer, x], -1)
        return fn(m + jnp.einsum("nab,nb->an", tail, z)) - 0.5 * x**2

    def local(x: Array) -> tuple[Array, Array, Array]:
        one = jnp.ones_like(x)
        sloped = lambda y: jax.jvp(height, (y,), (one,))  # noqa: E731
        (value, slope), (_, bend) = jax.jvp(sloped, (x,), (one,))
        steep = jnp.maximum(jnp.where(jnp.isfinite(bend), -bend, 1.0), 1.0)
        return value, slope, steep

    def body(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, length = carry
        value, slope, steep = local(x)
        move = slope / steep
        new = x + length * jnp.where(jnp.isfinite(move), move, 0.0)
        up = height(new) >= value
        return jnp.where(up, new, x), jnp.where(up, jnp.minimum(2.0 * length, 1.0), 0.25 * length)

    # Where the term overflows at the guess, the normal's own middle is a place to begin.
    start = jnp.where(jnp.isfinite(height(start)), start, 0.0)
    x, _ = jax.lax.fori_loop(0, _INNER_CLIMBS, body, (start, jnp.ones_like(start)))
    value, _, steep = local(x)
    return x, 1.0 / jnp.sqrt(steep), value - 0.5 * outer**2


def _recentred(fn: Rowwise, at: Placed) -> Placed:
    """Nodes around the mean and with the covariance that nodes give."""
    found = weigh(fn, at)
    eye = jnp.eye(at.m.shape[0], dtype=at.m.dtype)
    root = jnp.linalg.cholesky(found.cov + 1e-12 * eye)
    size = jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), axis=1)
    fine = jnp.isfinite(size) & jnp.isfinite(found.log_z)
    centre = jnp.where(fine[:, None], found.mean, at.centre[0])
    root = jnp.where(fine[:, None, None], root, at.root[0])
    size = jnp.where(fine, size, at.log_size[0])
    return Placed(at.m, at.tail, centre, centre[None], root[None], size[None])


class _Outer(NamedTuple):
    """A first coordinate: where it is, how it is spread, and what it means for the other.

    Attributes:
        turn: orthogonal, ``z = turn z'`` for the coordinates ``z'`` that it is the first of.
        top: the mode in these, ``(n, C)``.
        aside: how far the mode along the second moves with the first, ``(n,)``.
        mean: mean of the first coordinate, ``(n,)``.
        sd: its standard deviation, ``(n,)``.
        bent: how far the second is from normal given the first, ``(n,)``.
    """

    turn: Array
    top: Array
    aside: Array
    mean: Array
    sd: Array
    bent: Array


def _across(fn: Rowwise, m: Array, tail: Array, at: _Outer, outer: Array) -> tuple[Array, ...]:
    """`_inner` for outer nodes ``(groups, n)``."""
    guess = at.top[:, 1] + at.aside * (outer - at.top[:, 0])
    return jax.lax.map(lambda own: _inner(fn, m, tail @ at.turn, *own), (outer, guess))


def _outer(
    fn: Rowwise, m: Array, tail: Array, turn: Array, top: tuple[Array, Array, Array]
) -> _Outer:
    """The first coordinate of ``T turn``, by Laplace's method along the second."""
    z, values, vectors = top
    z = jnp.einsum("nba,nb->na", turn, z)
    vectors = jnp.swapaxes(turn, 1, 2) @ vectors
    precision = (vectors * values[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)
    aside = -precision[:, 0, 1] / precision[:, 1, 1]
    sd = 1.0 / jnp.sqrt(precision[:, 0, 0] + aside * precision[:, 0, 1])
    zero = jnp.zeros_like(sd)
    blank = _Outer(turn, z, aside, zero, sd, zero)
    coarse = jnp.linspace(-_COARSE_REACH, _COARSE_REACH, _COARSE, dtype=m.dtype)
    outer = z[:, 0] + sd * coarse[:, None]
    x, width, height = _across(fn, m, tail, blank, outer)

    def height_at(outer: Array, inner: Array) -> Array:
        z = jnp.stack([outer, inner], -1)
        f = m + jnp.einsum("nab,qnb->qan", tail @ turn, z)
        return jax.vmap(fn)(f) - 0.5 * jnp.sum(z**2, axis=2)

    logs = height + jnp.log(width)
    logs = jnp.where(jnp.isfinite(logs), logs, -1e30)
    share = jax.nn.softmax(logs, axis=0)
    mean = jnp.sum(share * outer, axis=0)
    spread = jnp.sqrt(jnp.sum(share * (outer - mean) ** 2, axis=0) + (1e-3 * sd) ** 2)
    # Two widths from its mode, a normal's log density is lower by two.
    beside = jnp.stack([height_at(outer, x + side * width) for side in (-2.0, 2.0)])
    off = jnp.max(jnp.abs(beside - height + 2.0), axis=0)
    bent = jnp.sum(share * jnp.where(jnp.isfinite(off), jnp.minimum(off, _BENT), _BENT), axis=0)
    return blank._replace(mean=mean, sd=spread, bent=bent)


def _nested(fn: Rowwise, m: Array, tail: Array, at: _Outer) -> Placed:
    """Equidistant nodes of the first coordinate; groups around the mode along the second."""
    mean, reach = at.mean, _REACH * at.sd
    # No further out than the normal itself reaches.
    low = jnp.maximum(mean - reach, jnp.minimum(-_REACH, mean - 0.5 * reach))
    high = jnp.minimum(mean + reach, jnp.maximum(_REACH, mean + 0.5 * reach))
    outer = low + (high - low) * jnp.linspace(0.0, 1.0, _OUTER, dtype=m.dtype)[:, None]
    x, width, _ = _across(fn, m, tail, at, outer)
    centre = jnp.einsum("nab,gnb->gna", at.turn, jnp.stack([outer, x], -1))
    root = width[..., None, None] * at.turn[:, :, 1:]
    step = jnp.log((high - low) / (_OUTER - 1)) - _HALF_LOG_2PI
    origin = jnp.einsum("nab,nb->na", at.turn, at.top)
    return Placed(m, tail, origin, centre, root, step + jnp.log(width))


def place(fn: Rowwise, m: Array, v: Array) -> Placed:
    """Nodes for a term ``fn`` under ``N(m, V)``; ``m`` is ``(C, n)``, ``v`` ``(C, C, n)``."""
    tail = jnp.linalg.cholesky(by_row(v))
    top = _top(fn, m, tail)
    if m.shape[0] != 2:
        around = _all_around(m, tail, top)
        sampled = m.shape[0] not in PRODUCT
        again = _RECENTRED if sampled else 0
        return jax.lax.fori_loop(0, again, lambda _, at: _recentred(fn, at), around)
    # With the functions exchanged the root is another one, T times a reflection. (In closed form:
    # two batches of factors at the same time can wait for each other for ever, see ADR 15.)
    low, high = tail[:, 1, 0], tail[:, 1, 1]
    size = jnp.sqrt(low**2 + high**2)
    turn = jnp.stack([low, high, high, -low], -1).reshape(-1, 2, 2) / size[:, None, None]
    plain = jnp.broadcast_to(jnp.eye(2, dtype=m.dtype), turn.shape)
    orders = jax.vmap(lambda turn: _outer(fn, m, tail, turn, top))(jnp.stack([plain, turn]))
    # Inside goes the coordinate in which the integrand is nearer to a normal.
    first = orders.bent[0] <= orders.bent[1]

    def chosen(a: Array) -> Array:
        return jnp.where(first.reshape(-1, *[1] * (a.ndim - 2)), a[0], a[1])

    return _nested(fn, m, tail, jax.tree.map(chosen, orders))


def _nodes(at: Placed) -> tuple[Any, Any]:
    """What a scan over the nodes goes through, and how a turn of it makes nodes."""
    dtype = at.m.dtype
    if at.root.shape[-1] == at.root.shape[-2]:
        x, w = chunks(at.m.shape[0], dtype)

        def turn(own: tuple[Array, Array]) -> tuple[Array, Array]:
            x, w = own
            z = at.centre[0] + jnp.einsum("nab,qb->qna", at.root[0], x)
            return z, _log_weights(x, w) + at.log_size[0]

        return (x, w), turn
    x = jnp.linspace(-_INNER_REACH, _INNER_REACH, _INNER, dtype=dtype)[:, None]
    logs = jnp.log(x[1] - x[0]) - _HALF_LOG_2PI

    def one(own: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        centre, root, log_size = own
        return centre + jnp.einsum("nab,qb->qna", root, x), logs + log_size

    return (at.centre, at.root, at.log_size), one


def _log_weights(x: Array, w: Array) -> Array:
    """Of nodes ``(q, k)``, as for a density without the normal's own: ``(q, 1)``."""
    return (jnp.log(w) + 0.5 * jnp.sum(x**2, axis=1))[:, None]


def log_mass(fn: Rowwise, at: Placed) -> Array:
    """``log Z`` by row as a function of the term alone: nodes are constants."""
    at = jax.lax.stop_gradient(at)
    over, turn = _nodes(at)

    @jax.checkpoint
    def body(total: Array, own: Any) -> tuple[Array, None]:
        logs, _ = _logs(fn, at, *turn(own))
        return jnp.logaddexp(total, logsumexp(logs, axis=0)), None

    return jax.lax.scan(body, jnp.full_like(at.m[0], -jnp.inf), over)[0]


def _logs(fn: Rowwise, at: Placed, z: Array, log_weight: Array) -> tuple[Array, Array]:
    f = at.m + jnp.einsum("nab,qnb->qan", at.tail, z)
    value = jax.vmap(fn)(f)
    value = jnp.where(jnp.isnan(value), -jnp.inf, value)
    return value - 0.5 * jnp.sum(z**2, axis=2) + log_weight, z - at.origin


def weigh(fn: Rowwise, at: Placed) -> Tilted:
    """Value and moments."""
    over, turn = _nodes(at)
    n, count = at.origin.shape

    def body(total: tuple[Array, ...], own: Any) -> tuple[tuple[Array, ...], None]:
        log_z, first, second = total
        logs, gap = _logs(fn, at, *turn(own))
        new = jnp.logaddexp(log_z, logsumexp(logs, axis=0))
        safe = jnp.where(jnp.isfinite(new), new, 0.0)
        kept, share = jnp.exp(log_z - safe), jnp.exp(logs - safe)
        first = kept[:, None] * first + jnp.einsum("qn,qna->na", share, gap)
        outer = jnp.einsum("qn,qna,qnb->nab", share, gap, gap)
        return (new, first, kept[:, None, None] * second + outer), None

    zero = jnp.zeros((n, count), at.m.dtype)
    start = (jnp.full_like(at.m[0], -jnp.inf), zero, jnp.zeros((n, count, count), at.m.dtype))
    (log_z, first, second), _ = jax.lax.scan(body, start, over)
    cov = second - first[:, :, None] * first[:, None, :]
    return Tilted(log_z, at.origin + first, cov, at.tail)


def matched(of: Tilted) -> Match:
    """The tilted moments as derivatives, and as a change of precision."""
    eye = jnp.eye(of.mean.shape[1], dtype=of.mean.dtype)
    values, vectors = jnp.linalg.eigh(of.cov)
    eps = jnp.finfo(of.cov.dtype).eps
    values = jnp.maximum(values, 4.0 * eps * jnp.max(values, axis=1, keepdims=True))
    inverse = (vectors / values[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)
    up = inverses(of.root)

    def outside(inside: Array) -> Array:
        return by_process(jnp.swapaxes(up, 1, 2) @ inside @ up)

    d1 = jnp.einsum("nba,nb->an", up, of.mean)
    return Match(of.log_z, d1, outside(of.cov - eye), outside(inverse - eye))
