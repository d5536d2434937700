r"""Centred or not: a traced choice, element by element, from how informative the data are.

A location-scale site ``x ~ F(m, s)`` with random ``m`` or ``s`` is sampled as ``z`` with

    centred:      x = z,           z ~ F(m, s)
    non-centred:  x = m + s z,     z ~ F(0, 1)

The choice is an array of the site's shape that is an argument of the compiled program, so new data
never recompile. It is made by a short pilot: with every candidate non-centred, a mean-field normal
is fitted to the posterior by 300 steps of Adam on the ELBO. A mean-field normal has the diagonal of
the posterior precision, which is ``1 + r_i`` along ``z_i``, where ``r_i = s_i^2 h_i`` compares the
data's information ``h_i`` about ``x_i`` with its prior's, so its variance tells ``r_i``. The rates
of the two parametrisations are ``1 / (1 + r)`` and ``r / (1 + r)`` (Papaspiliopoulos, Roberts and
Skold 2007, section 3): ``r_i > 1`` is centred. (A joint mode would not do: non-centred, its scale
``s`` is far too large.) Cost: 1,200 gradients and one small compilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import distributions as dist

from probkit.core import Target, listing, nearest
from probkit.core._programs import compiled, density_fingerprint
from probkit.models._inside import log_density

_ELEMENTWISE = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.Logistic, dist.Gumbel)
_STEPS, _RATE, _PAIRS = 300, 0.1, 2
_STYLES = ("auto", "centred", "noncentred", "off")


def parse_reparam(reparam: Any, nodes: Mapping[str, Any]) -> dict[str, str]:
    """``reparam=`` as a dictionary by site; the entry ``""`` is the default.

    Raises:
        ValueError: an unknown site or style, with the nearest one.
    """
    if not (reparam is None or isinstance(reparam, str | Mapping)):
        raise TypeError(
            f"reparam: expected one of {listing(_STYLES)}, or a mapping from sites to them, found "
            f"{reparam!r}"
        )
    given = dict(reparam) if isinstance(reparam, Mapping) else {"": reparam}
    out = {"": "auto"}
    for name, style in given.items():
        style = "off" if style is None else style
        if style not in _STYLES:
            raise ValueError(
                f"reparam: expected one of {listing(_STYLES)}, found {style!r}."
                f"{nearest(str(style), _STYLES)}"
            )
        if name and name not in nodes:
            raise ValueError(f"reparam: the model has no site {name!r}.{nearest(name, nodes)}")
        out[name] = style
    return out


def centring_shape(d: Any, shape: tuple, batch: tuple) -> tuple[int, ...] | None:
    """Shape of the centring choice of a distribution, or None where there is none to make."""
    d = _plain(d)
    if type(d) in _ELEMENTWISE:
        return shape
    if _is_vector(d):
        return batch
    return None


def _plain(d: Any) -> Any:
    """The distribution without `expand` and `to_event`, which change no element's density."""
    while type(d) in (dist.ExpandedDistribution, dist.Independent):
        if type(d) is dist.Independent and _is_vector(d.base_dist):
            return d
        d = d.base_dist
    return d


def _is_vector(d: Any) -> bool:
    return type(d) is dist.MultivariateNormal


def centre(d: Any, z: Array, weight: Any) -> tuple[Array, Array]:
    """The site's value at ``z``, and the log density terms of ``z``.

    Args:
        d: the site's distribution.
        z: the site's coordinate, of the site's shape.
        weight: True where ``z`` is the value itself; False alone for nowhere (not traced).
    """
    d = _plain(d)
    if _is_vector(d):
        return _centre_vectors(d, z, jnp.asarray(weight))
    if weight is False:
        return d.loc + d.scale * z, log_density(_standard(d), z)
    loc, scale = (jnp.asarray(x, z.dtype) for x in (d.loc, d.scale))
    value, residual, log_scale = _two_ways(loc, scale, z, weight)
    return value, log_density(_standard(d), residual) - log_scale


def _standard(d: Any) -> Any:
    """The distribution with location 0 and scale 1."""
    others = {k: getattr(d, k) for k in d.arg_constraints if k not in ("loc", "scale")}
    return type(d)(loc=0.0, scale=1.0, **others)


@jax.custom_jvp
def _two_ways(loc: Array, scale: Array, z: Array, weight: Array) -> tuple[Array, Array, Array]:
    """Value, standardised residual and log Jacobian between them, element by element.

    Centred ``z, (z - m) / s, log s``; elsewhere ``m + s z, z, 0``.
    """
    return _by_way(loc, scale, _reciprocal(scale, weight), z, weight)


def _by_way(
    loc: Array, scale: Array, reciprocal: Array, z: Array, weight: Array
) -> tuple[Array, Array, Array]:
    return (
        jnp.where(weight, z, loc + scale * z),
        jnp.where(weight, (z - loc) * reciprocal, z),
        jnp.where(weight, jnp.log(scale), 0.0),
    )


@_two_ways.defjvp
def _two_ways_jvp(primals: tuple, tangents: tuple) -> tuple:
    # Both ways obey x = m + s u. Written by hand, ``m`` and ``s`` have one sum over the elements
    # each in the gradient, where the two branches would have two, and all share one division.
    loc, scale, z, weight = primals
    loc_dot, scale_dot, z_dot, _ = tangents
    reciprocal = _reciprocal(scale, weight)
    found = _by_way(loc, scale, reciprocal, z, weight)
    shift = loc_dot + scale_dot * found[1]
    return found, (
        jnp.where(weight, z_dot, shift + scale * z_dot),
        jnp.where(weight, (z_dot - shift) * reciprocal, z_dot),
        jnp.where(weight, scale_dot * reciprocal, 0.0),
    )


def _reciprocal(scale: Array, weight: Array) -> Array:
    """``1 / scale``; 1 where no element is centred: there a scale of zero does no harm."""
    lead = weight.ndim - scale.ndim
    shared = [i for i in range(weight.ndim) if i < lead or scale.shape[i - lead] == 1]
    used = jnp.any(weight, axis=shared, keepdims=True)
    return 1.0 / jnp.where(used.reshape(used.shape[max(lead, 0) :]), scale, 1.0)


def _centre_vectors(d: Any, z: Array, weight: Array) -> tuple[Array, Array]:
    """`centre` for a multivariate normal, one choice for each draw."""
    w = weight[..., None]
    eye = jnp.eye(d.event_shape[0], dtype=d.loc.dtype)
    tril = jnp.where(w[..., None], d.scale_tril, eye)
    own = dist.MultivariateNormal(jnp.where(w, d.loc, 0.0), scale_tril=tril)
    moved = d.loc + (d.scale_tril @ z[..., None])[..., 0]
    # A factor that failed is this site's fault, not that of the sites that use its value.
    failed = ~jnp.isfinite(d.scale_tril[..., -1, -1])
    return jnp.where(w, z, moved), jnp.where(failed, jnp.nan, log_density(own, z))


def decentre(d: Any, value: Array, weight: Any) -> Array:
    """The inverse of `centre` on values."""
    d = _plain(d)
    w = jnp.asarray(weight)
    if _is_vector(d):
        shape = jnp.broadcast_shapes(value.shape, d.batch_shape + d.event_shape)
        residual = jnp.broadcast_to(value - d.loc, shape)[..., None]
        tril = jnp.broadcast_to(d.scale_tril, (*shape, shape[-1]))
        z = jax.scipy.linalg.solve_triangular(tril, residual, lower=True)[..., 0]
        return jnp.where(w[..., None], value, z)
    return jnp.where(w, value, (value - d.loc) / d.scale)


def choose_centring(target: Target, like: Target | None) -> Target:
    """The target with its centring choices made (or taken from another target of the model)."""
    names = target.program.centring_sites  # type: ignore[attr-defined]
    if not names:
        return target
    if like is not None:
        old = like.arrays.get("centred", {})
        shapes = {k: np.shape(target.arrays["centred"][k]) for k in names}
        chosen = {
            k: np.asarray(old[k]) if np.shape(old.get(k)) == s else np.zeros(s, bool)
            for k, s in shapes.items()
        }
        return _with_choice(target, chosen)
    # Centring only matters where data speak; without any, non-centred is exact.
    if not target.arrays["observed"]:
        return _with_choice(target, {k: np.zeros_like(target.arrays["centred"][k]) for k in names})
    ratios = _pilot(target, names)
    return _with_choice(target, {k: np.asarray(r > 1.0) for k, r in ratios.items()})


def _with_choice(target: Target, chosen: dict[str, np.ndarray]) -> Target:
    return Target(target.program, {**target.arrays, "centred": chosen}, target.labels)


def _pilot(target: Target, names: tuple[str, ...]) -> dict[str, Array]:
    program = target.program
    shapes = {k: target.arrays["centred"][k].shape for k in names}

    def ratios(arrays: dict) -> dict[str, Array]:
        flat = program.flat
        none = {**arrays, "centred": {k: jnp.zeros(s, bool) for k, s in shapes.items()}}
        slope = jax.vmap(jax.grad(Target(program, none).flat_log_density))
        size, kind = flat.size, program.dtype

        def elbo_slope(key: Array, mean: Array, log_sd: Array) -> Array:
            half = jax.random.normal(key, (_PAIRS, size), kind)
            noise = jnp.concatenate([half, -half])
            g = slope(mean + jnp.exp(log_sd) * noise)
            g = jnp.clip(jnp.nan_to_num(g, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)
            return jnp.concatenate([g.mean(0), (g * noise).mean(0) * jnp.exp(log_sd) + 1.0])

        def climb(i: Array, carry: tuple) -> tuple:
            x, m, v, late = carry
            g = elbo_slope(jax.random.fold_in(jax.random.key(0), i), x[:size], x[size:])
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            t = i.astype(kind) + 1
            rate = _RATE * jnp.minimum(1.0, 2.0 * (1.0 - t / _STEPS) + 0.05)
            x = x + rate * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.99**t)) + 1e-8)
            # The last third is averaged: single steps are noisy.
            return x, m, v, late + jnp.where(t > _STEPS * 2 / 3, x, 0.0) * (3.0 / _STEPS)

        zero = jnp.zeros(2 * size, kind)
        start = zero.at[size:].set(-1.0)
        late = jax.lax.fori_loop(0, _STEPS, climb, (start, zero, zero, zero))[3]
        found = flat.unravel(jnp.exp(-2.0 * late[size:]) - 1.0)
        return {k: _by_choice(found[k], shapes[k]) for k in names}

    parts = (density_fingerprint(target), repr(sorted(shapes.items())))
    return compiled(program, "pilot", names, ratios, (target.arrays,), parts)(target.arrays)


def _by_choice(ratio: Array, shape: tuple[int, ...]) -> Array:
    """One ratio for each choice: those of a multivariate draw's entries are averaged."""
    return ratio if ratio.shape == shape else jnp.mean(ratio, axis=-1)


def describe_centring(target: Target) -> dict[str, str]:
    """The choice for each site in words: ``centred``, ``non-centred`` or the share centred."""
    out = {}
    for name, choice in target.arrays.get("centred", {}).items():
        share = float(np.mean(choice))
        words = {0.0: "non-centred", 1.0: "centred"}.get(share, f"{share:.0%} centred")
        out[name] = words
    return out
