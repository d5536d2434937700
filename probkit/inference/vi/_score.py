r"""The score-function gradient of the ELBO, for densities whose own gradient is of no use.

With ``h_i = grad_v log q(w_i; v)`` and ``r = log p - log q`` of n draws the gradient of -ELBO is

    -1/n sum_i h_i (r_i - b_i - a),    b_i the mean of the other draws' r,

entry by entry of the parameters v. Both controls leave it unbiased, as neither depends on draw i:
``b`` is the leave-one-out baseline (Kool, van Hoof and Welling 2019), which follows the level of r
at once; ``a`` is the control variate of smallest variance for what is left,

    a = E[h^2 (r - b)] / E[h^2]        (Ranganath, Gerrish and Blei 2014, section 3.2),

of which both means run over the draws of past steps: it knows that r and h^2 go together, as they
do for scales. Cost: n gradients of log q in the parameters; no gradient of log p.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from probkit.inference.vi._family import Family, Params

Control = dict[str, Array]

#: What the running means keep at each step: they reach over some fifty.
_KEEP = 0.98


def no_control(flat: Array) -> Control:
    """The running means before the first step: the leave-one-out baseline alone."""
    return {"top": jnp.zeros_like(flat), "bottom": jnp.zeros_like(flat)}


def score_gradient(
    family: Family, noise: Array, params: Params, log_p: Callable, heat: Array, control: Control
) -> tuple[Array, Array, Array, Control]:
    """Gradient of -ELBO (one vector), the ELBO's estimate, the draws, and the running means after.

    Args:
        family: the family.
        noise: of at least two draws, shape ``(n, k)``.
        params: the family's parameters.
        log_p: log density of one draw.
        heat: multiplies ``log_p`` (tempering).
        control: running means of past steps.
    """
    pushed = jax.vmap(lambda e: family.push(params, e))(noise)
    w = jax.lax.stop_gradient(pushed.w)
    ratio = heat * jax.vmap(log_p)(w) - pushed.log_q
    slope = jax.vmap(lambda x: ravel_pytree(jax.grad(family.log_density)(params, x))[0])(w)
    n = ratio.shape[0]
    left = (ratio - jnp.mean(ratio)) * (n / (n - 1))
    tiny = jnp.finfo(w.dtype).tiny
    ahead = control["top"] / (control["bottom"] + tiny)
    grad = -(left @ slope) / n + ahead * jnp.mean(slope, 0)
    seen = {"top": left @ slope**2 / n, "bottom": jnp.mean(slope**2, 0)}
    fine = jnp.all(jnp.isfinite(seen["top"])) & jnp.all(jnp.isfinite(seen["bottom"]))
    move = lambda old, new: jnp.where(fine, _KEEP * old + (1.0 - _KEEP) * new, old)  # noqa: E731
    return grad, jnp.mean(ratio), w, jax.tree.map(move, control, seen)
