r"""Affine coupling layers on one vector (Dinh, Sohl-Dickstein and Bengio 2017, equations 6 to 8).

A layer with the mask ``c`` (1 where an entry conditions, 0 where it is moved) is

    y = x exp(s) + t,    (s, t) = (1 - c) net(c x),    log |det| = sum s,

with one hidden layer of tanh units in ``net``. Departures from the paper: ``s`` is bounded by
``B tanh(s / B)``, so that a step of an optimiser cannot overflow; the last layer of every net is
zero at first, so that the flow starts as the identity.

`forward_with_score` carries the score ``g = grad log q`` along the layers without inverting them:

    moved entries          g' = g exp(-s)
    conditioning entries   g' = g - vjp_net(g' x exp(s) + 1, g')

which is ``g' = J^{-T} (g - grad log |det J|)`` written out (Vaitl et al. 2024).
Layers are the iterations of one loop, so that compiling costs one layer whatever their number; a
pass costs O(layers width d) a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

_BOUND = 3.0

Params = dict[str, Any]


@dataclass(frozen=True)
class AffineCoupling:
    """A stack of affine coupling layers on vectors of one length.

    Attributes:
        layers: number of layers; neighbours condition on complementary entries.
        width: hidden units of each layer's net.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> flow = AffineCoupling(layers=4, width=8)
        >>> params = flow.init(jax.random.key(0), 3, jnp.float32)
        >>> y, log_det = flow.forward(params, jnp.ones(3))
        >>> y.tolist(), float(log_det)
        ([1.0, 1.0, 1.0], 0.0)
    """

    layers: int = 4
    width: int = 32

    def masks(self, size: int) -> np.ndarray:
        """Conditioning masks, shape ``(layers, size)``: odd and even entries, then halves."""
        place = np.arange(size)
        kinds = [place % 2 == 0, place % 2 == 1, place < size // 2, place >= size // 2]
        masks = np.stack([kinds[i % 4] for i in range(self.layers)])
        # A vector of one entry has nothing to condition on: it is always moved.
        return masks & (size > 1)

    def init(self, key: Array, size: int, dtype: Any) -> Params:
        """Parameters of the identity."""
        w1 = jax.random.normal(key, (self.layers, self.width, size), dtype) / np.sqrt(size)
        return {
            "w1": w1.astype(dtype),
            "b1": jnp.zeros((self.layers, self.width), dtype),
            "w2": jnp.zeros((self.layers, 2 * size, self.width), dtype),
            "b2": jnp.zeros((self.layers, 2 * size), dtype),
        }

    def forward(self, params: Params, x: Array) -> tuple[Array, Array]:
        """``y`` and ``log |det dy/dx|`` of one vector, shape ``(size,)``."""

        def layer(carry: tuple, at: tuple) -> tuple:
            x, total = carry
            p, mask = at
            s, t = _net(p, mask, jnp.where(mask, x, 0.0))
            return (x * jnp.exp(s) + t, total + jnp.sum(s)), None

        first = (x, jnp.zeros((), x.dtype))
        return jax.lax.scan(layer, first, (params, self.masks(x.shape[0])))[0]

    def inverse(self, params: Params, y: Array) -> tuple[Array, Array]:
        """``x`` and ``log |det dy/dx|`` at it, of one vector of shape ``(size,)``."""

        def layer(carry: tuple, at: tuple) -> tuple:
            y, total = carry
            p, mask = at
            s, t = _net(p, mask, jnp.where(mask, y, 0.0))
            return ((y - t) * jnp.exp(-s), total + jnp.sum(s)), None

        first = (y, jnp.zeros((), y.dtype))
        return jax.lax.scan(layer, first, (params, self.masks(y.shape[0])), reverse=True)[0]

    def forward_with_score(
        self, params: Params, x: Array, score: Array
    ) -> tuple[Array, Array, Array]:
        """``forward``, and the score of the pushed density at ``y`` from that at ``x``.

        The score is a constant to differentiation.
        """

        def layer(carry: tuple, at: tuple) -> tuple:
            x, total, g = carry
            p, mask = at
            (s, t), back = jax.vjp(lambda v: _net(p, mask, v), jnp.where(mask, x, 0.0))
            grown = x * jnp.exp(s)
            moved = g * jnp.exp(-s)
            (pulled,) = back((moved * grown + 1.0, moved))
            new = jax.lax.stop_gradient(jnp.where(mask, g - pulled, moved))
            return (grown + t, total + jnp.sum(s), new), None

        first = (x, jnp.zeros((), x.dtype), score)
        return jax.lax.scan(layer, first, (params, self.masks(x.shape[0])))[0]


def _net(p: Params, mask: Array, x: Array) -> tuple[Array, Array]:
    """Log scales and shifts of one layer, zero on the conditioning entries."""
    hidden = jnp.tanh(p["w1"] @ x + p["b1"])
    s, t = jnp.split(p["w2"] @ hidden + p["b2"], 2)
    return jnp.where(mask, 0.0, _BOUND * jnp.tanh(s / _BOUND)), jnp.where(mask, 0.0, t)
