r"""The start: a Gaussian near the best one, by Newton's method on the ELBO; it gives the frame.

For ``q = N(m, S^{-1})`` the ELBO's natural gradients are averages over q of the log density's
gradient ``g`` and Hessian ``H`` (Opper and Archambeau 2009, equations 10 and 11), and so a step is

    S <- (1 - r) S + r |-E H|,      m <- m + r S^{-1} E g

with ``|.|`` the absolute value in the eigenvalues, and the averages over the same few antithetic
draws at every step. ``r`` is divided by 4 after a step that does not raise the ELBO of these draws
and multiplied by 4 after one that does. It is Laplace's approximation with the curvature averaged
over the width of q, and unlike it finds its way where the density has no mode (a centred
hierarchy's rises without bound as its scale falls). It is exact on Gaussians, and what the scales
of the coordinates are does not matter. A step costs 8 Hessians, of d gradients each: it is
done up to 64 dimensions. Beyond them a diagonal Gaussian is fitted by 400 steps of Adam.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Target
from probkit.inference.mcmc._start import find_start
from probkit.inference.vi._family import Family, Params

Frame = dict[str, Array]

#: Dimensions up to which Hessians are computed.
LARGEST_DENSE = 64
_DRAWS, _STEPS, _ADAM_STEPS = 8, 80, 400
_QUIET = 1e-3


def begin(family: Family, key: Array, target: Target, origin: bool) -> tuple[Frame, Params, Array]:
    """The frame, a family's parameters in it, and the start's log density."""
    first, second = jax.random.split(key)
    size = target.program.flat.size
    family.check_size(size)
    frame = gaussian_start(first, target, family.dense and size <= LARGEST_DENSE, origin)
    known = {k: frame.pop(k) for k in ("lp", "precision", "pattern") if k in frame}
    params = family.init(second, {"w": jnp.zeros(size, target.dtype), **known})
    return frame, params, known["lp"]


def gaussian_start(key: Array, target: Target, dense: bool, origin: bool) -> Frame:
    """Centre, scale and what is known of the precision, near the best Gaussian.

    Args:
        key: a typed key.
        target: the target.
        dense: whether the frame's scale is a full triangular matrix or a vector.
        origin: whether the origin is tried beside the random starting point.

    Returns:
        ``centre`` (d,), ``scale`` (d, d) or (d,), ``lp`` (whether the start is finite), and up to
        64 dimensions ``precision`` in the frame's coordinates and its ``pattern`` of zeros.
    """
    first, second = jax.random.split(key)
    z, lp, _ = find_start(first, target)
    fn = target.flat_log_density
    if origin:
        at_zero, slope = jax.value_and_grad(fn)(jnp.zeros_like(z))
        usable = jnp.isfinite(at_zero) & jnp.all(jnp.isfinite(slope)) & (at_zero > lp)
        z, lp = jnp.where(usable, 0.0, z), jnp.where(usable, at_zero, lp)
    if z.shape[0] > LARGEST_DENSE:
        return {**_by_adam(second, fn, z), "lp": lp}
    centre, precision, pattern = _by_newton(second, fn, z)
    if dense:
        return {"centre": centre, "scale": _root(precision), "lp": lp}
    # The best diagonal Gaussian has the diagonal of the precision, not that of the covariance.
    scale = 1.0 / jnp.sqrt(jnp.diag(precision))
    white = scale[:, None] * precision * scale
    return {"centre": centre, "scale": scale, "lp": lp, "precision": white, "pattern": pattern}


def _root(precision: Array) -> Array:
    """Lower triangular ``L`` with ``L L'`` the inverse of the precision."""
    flipped = jnp.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1]
    eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
    return jax.scipy.linalg.solve_triangular(flipped, eye, lower=False).T


def _absolute(matrix: Array) -> Array:
    """The matrix with the absolute values of its eigenvalues, none tiny."""
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.abs(values)
    values = jnp.maximum(values, 1e-6 * jnp.max(values) + 1e-10)
    return (vectors * values) @ vectors.T


def _with_hessian(fn: Callable, x: Array) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian from one evaluation: what is compiled counts."""

    def along(v: Array) -> tuple[Array, Array, Array]:
        (value, slope), (_, bend) = jax.jvp(jax.value_and_grad(fn), (x,), (v,))
        return value, slope, bend

    return jax.vmap(along, out_axes=(None, None, 0))(jnp.eye(x.shape[0], dtype=x.dtype))


def _by_newton(key: Array, fn: Callable, z: Array) -> tuple[Array, Array, Array]:
    """Mean, precision, and which entries of the Hessian were ever not zero."""
    size = z.shape[0]
    half = jax.random.normal(key, (_DRAWS // 2, size), z.dtype)
    noise = jnp.concatenate([half, -half])

    def look(mean: Array, precision: Array) -> tuple:
        # Symmetric scaling first: coordinates may differ in scale by more than float32 can hold.
        unit = 1.0 / jnp.sqrt(jnp.diag(precision))
        root = unit[:, None] * _root(unit[:, None] * precision * unit)
        points = mean + noise @ root.T
        values, slopes, bends = jax.vmap(lambda x: _with_hessian(fn, x))(points)
        elbo = jnp.mean(values) + jnp.sum(jnp.log(jnp.diag(root)))
        fine = jnp.isfinite(elbo) & jnp.all(jnp.isfinite(slopes)) & jnp.all(jnp.isfinite(bends))
        elbo = jnp.where(fine, elbo, -jnp.inf)
        return elbo, jnp.mean(slopes, 0), jnp.mean(bends, 0), jnp.any(bends != 0, 0)

    def again(carry: tuple) -> Array:
        i, quiet, *_ = carry
        return (i < _STEPS) & (quiet < 3)

    def attempt(carry: tuple) -> tuple:
        i, quiet, rate, mean, precision, elbo, slope, bend, pattern = carry
        unit = 1.0 / jnp.sqrt(jnp.maximum(jnp.abs(jnp.diag(bend)), jnp.diag(precision) * 1e-3))
        curved = _absolute(-unit[:, None] * bend * unit) / (unit[:, None] * unit)
        wished = (1.0 - rate) * precision + rate * curved
        unit = 1.0 / jnp.sqrt(jnp.diag(wished))
        tril = jnp.linalg.cholesky(unit[:, None] * wished * unit)
        step = unit * jax.scipy.linalg.cho_solve((tril, True), unit * slope)
        # Before the first finite look only the spread shrinks.
        found = jnp.isfinite(elbo)
        new_mean = jnp.where(found, mean + rate * step, mean)
        new_precision = jnp.where(found, wished, 16.0 * precision)
        new_elbo, new_slope, new_bend, seen = look(new_mean, new_precision)
        better = jnp.isfinite(new_elbo) & ~(new_elbo <= elbo)
        gain = jnp.where(better & found, new_elbo - elbo, jnp.inf)
        small = (gain < _QUIET) | ((rate < 1e-6) & ~better)
        pick = lambda a, b: jnp.where(better, a, b)  # noqa: E731
        return (
            i + 1,
            jnp.where(small, quiet + 1, jnp.where(better, 0, quiet)),
            jnp.where(found, jnp.clip(rate * jnp.where(better, 4.0, 0.25), 1e-8, 1.0), rate),
            jnp.where(better | ~found, new_mean, mean),
            jnp.where(better | ~found, new_precision, precision),
            pick(new_elbo, elbo),
            pick(new_slope, slope),
            pick(new_bend, bend),
            pattern | seen,
        )

    zero = jnp.zeros((), z.dtype)
    eye = jnp.eye(size, dtype=z.dtype)
    # The first look is a failed one, so that the loop's body is compiled once; its curvature is 1.
    none = jnp.zeros((size, size), z.dtype)
    state = (
        jnp.int32(0),
        jnp.int32(0),
        zero + 1.0,
        z,
        eye / 16.0,
        zero - jnp.inf,
        jnp.zeros_like(z),
        none,
        jnp.zeros((size, size), bool),
    )
    done = jax.lax.while_loop(again, attempt, state)
    mean, precision, found = done[3], done[4], jnp.isfinite(done[5])
    # Nothing finite was found around the starting point: a narrow Gaussian at it.
    return mean, jnp.where(found, precision, 1e4 * eye), done[8] | (jnp.eye(size) > 0)


def _by_adam(key: Array, fn: Callable, z: Array) -> Frame:
    """Mean and sds of a diagonal Gaussian after a fixed number of noisy steps."""
    slope = jax.vmap(jax.grad(fn))
    size = z.shape[0]

    def climb(i: Array, carry: tuple) -> tuple:
        x, m, v, late = carry
        half = jax.random.normal(jax.random.fold_in(key, i), (2, size), z.dtype)
        noise = jnp.concatenate([half, -half])
        sd = jnp.exp(x[size:])
        g = jnp.nan_to_num(slope(x[:size] + sd * noise), nan=0.0, posinf=1e6, neginf=-1e6)
        g = jnp.concatenate([g.mean(0), (g * noise).mean(0) * sd + 1.0])
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        t = i.astype(z.dtype) + 1
        rate = 0.1 * jnp.minimum(1.0, 2.0 * (1.0 - t / _ADAM_STEPS) + 0.05)
        x = x + rate * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.99**t)) + 1e-8)
        return x, m, v, late + jnp.where(t > _ADAM_STEPS * 2 / 3, x, 0.0) * (3.0 / _ADAM_STEPS)

    zero = jnp.zeros(2 * size, z.dtype)
    first = jnp.concatenate([z, jnp.full(size, np.float32(-1.0), z.dtype)])
    late = jax.lax.fori_loop(0, _ADAM_STEPS, climb, (first, zero, zero, zero))[3]
    return {"centre": late[:size], "scale": jnp.exp(late[size:])}
