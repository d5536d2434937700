r"""A mixture of K diagonal Gaussians, fitted by stratified draws.

    q(w) = sum_k a_k N(w; m_k, diag(s_k^2)),    E_q[f] = sum_k a_k E_k[f]

Every step draws equally often from each component and weighs a draw of component k by ``K a_k``
(its mass), which is differentiable in ``a``: no score function is needed. O(K d) a draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.vi._family import LOG_2PI, Family, Params, Pushed, pushed_by_density
from probkit.inference.vi._scale_maps import free_of, scale_of, settle_scale


@dataclass(frozen=True)
class Mixture(Family):
    """A mixture of diagonal Gaussians in the coordinates of a full frame.

    Attributes:
        components: number of components.
        spread: sd of the components' first locations, in the frame's units.
    """

    components: int
    scale: str = "linear"
    spread: float = 1.5
    dense: bool = True

    def init(self, key: Array, start: Params) -> Params:
        w, count = start["w"], self.components
        loc = w + self.spread * jax.random.normal(key, (count, w.shape[0]), w.dtype)
        loc = loc.at[0].set(w)
        scale = free_of(self.scale, jnp.full_like(loc, 0.8))
        return {"loc": loc, "scale": scale, "logits": jnp.zeros(count, w.dtype)}

    def noise(self, key: Array, n: int, size: int, dtype: Any) -> Array:
        """The last entry of a row is the number of its component."""
        noise = jax.random.normal(key, (n, size), dtype)
        which = (jnp.arange(n) % self.components).astype(dtype)
        return jnp.concatenate([noise, which[:, None]], axis=1)

    def push(self, params: Params, noise: Array) -> Pushed:
        k = noise[-1].astype(jnp.int32)
        w = params["loc"][k] + scale_of(self.scale, params["scale"][k]) * noise[:-1]
        mass = self.components * jax.nn.softmax(params["logits"])[k]
        return pushed_by_density(self, params, w, mass)

    def log_density(self, params: Params, w: Array) -> Array:
        s = scale_of(self.scale, params["scale"])
        white = (w - params["loc"]) / s
        each = -0.5 * jnp.sum(white**2, 1) - jnp.sum(jnp.log(s), 1) - 0.5 * w.shape[0] * LOG_2PI
        return jax.nn.logsumexp(each + jax.nn.log_softmax(params["logits"]))

    def draw(self, params: Params, key: Array, n: int, size: int) -> Array:
        first, second = jax.random.split(key)
        k = jax.random.categorical(first, params["logits"], shape=(n,))
        noise = jax.random.normal(second, (n, size), params["loc"].dtype)
        return params["loc"][k] + scale_of(self.scale, params["scale"][k]) * noise

    def settle(self, new: Params, old: Params, step: Params, prox: bool) -> Params:
        scale = settle_scale(self.scale, new["scale"], old["scale"], step["scale"], False)
        return {**new, "scale": scale}
