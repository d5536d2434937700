r"""Objectives, as weights on three gradients of each draw.

A draw ``w = T(e; v)`` has ``r = log p(w) - log q(w)``. Each gradient of an objective in ``v`` is

    sum_i  a_i' dT(e_i) + b_i d(log q(T(e_i))) + c_i d(log q)(w_i held fixed) + ...

so that one pass gives all of them (``slope`` and ``score`` are the gradients of log p and log q in
``w``; ``u`` are normalised weights within each group of K draws, to the power ``1 - alpha``):

    ELBO, reparam           a = -slope,               b = 1
    ELBO, stl               a = score - slope                       (Roeder, Wu and Duvenaud 2017)
    IWELBO, Renyi, reparam  a = -u slope,             b = u         (Burda 2016; Li and Turner 2016)
    IWELBO, Renyi, stl      a = u (score - slope)
    IWELBO, dreg            a = u^2 (score - slope)                 (Tucker et al. 2019)
    forward KL              c = -u over all draws                   (self-normalised)

Draws are divided by their number, and all of it is minimised. The ELBO's score-function gradient
has no need of ``slope``, and a file of its own, `_score`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

#: "data_emphasised" has an engine of its own, `_emphasis`.
OBJECTIVES = ("elbo", "iwelbo", "renyi", "forward_kl", "data_emphasised")
GRADIENTS = ("reparam", "stl", "dreg", "score")

#: The gradients that each objective can have, its own default first.
ALLOWED = {
    "elbo": ("stl", "reparam", "score"),
    "iwelbo": ("dreg", "stl", "reparam"),
    "renyi": ("stl", "reparam"),
    "forward_kl": ("reparam",),
    "data_emphasised": ("reparam",),
}


def cotangents(
    objective: str,
    gradient: str,
    group: int,
    alpha: Array,
    ratio: Array,
    slope: Array,
    score: Array,
) -> tuple[Array, Array, Array]:
    """The weights ``a`` (n, d), ``b`` (n,) and ``c`` (n,) of the module's text.

    Args:
        objective: one of `OBJECTIVES`.
        gradient: one of those that ``ALLOWED`` gives it, but "score".
        group: draws in each importance-weighted bound.
        alpha: Renyi's order; 0 is the importance-weighted bound.
        ratio: ``log p - log q`` of each draw, shape ``(n,)``.
        slope: gradient of log p, shape ``(n, d)``.
        score: gradient of log q, shape ``(n, d)``.
    """
    none = jnp.zeros_like(ratio)
    if objective == "forward_kl":
        return jnp.zeros_like(slope), none, -jax.nn.softmax(ratio)
    n = ratio.shape[0]
    weight = jnp.full_like(ratio, 1.0 / n)
    if objective in ("iwelbo", "renyi"):
        power = (1.0 - alpha) * ratio.reshape(-1, group)
        share = jax.nn.softmax(power, axis=1).reshape(-1)
        weight = (share**2 if gradient == "dreg" else share) * (group / n)
    if gradient == "reparam":
        return -weight[:, None] * slope, weight, none
    return weight[:, None] * (score - slope), none, none


def bounds(objective: str, group: int, alpha: Array, ratio: Array) -> Array:
    """The objective's value at each group of draws (each draw for the ELBO)."""
    if objective in ("elbo", "forward_kl"):
        return ratio
    power = (1.0 - alpha) * ratio.reshape(-1, group)
    return (jax.nn.logsumexp(power, axis=1) - jnp.log(group)) / (1.0 - alpha)
