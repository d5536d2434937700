r"""Stationary kernels with a mixture for a spectral density.

    k(x, y) = sum_q w_q cos(2 pi m_q . t) phi(2 pi |s_q o t|),      t = x - y

is the covariance whose spectral density is the (symmetrised) mixture of ``Q`` components with
weights ``w_q``, centres ``m_q`` and scales ``s_q``; ``phi`` is the components' characteristic
function. Normal components give ``phi(r) = exp(-r^2 / 2)`` (Wilson and Adams 2013, equation 12,
whose variances are ``s_q^2``). Student-t components with ``nu`` degrees of freedom give
``phi(r) = h_{nu/2}(nu r^2)``, a Matern kernel, so that lines in the spectrum have heavy tails; for
odd ``nu`` it has a closed form.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from probkit.models.kernels._kernel import Kernel, vector
from probkit.models.kernels._radial import half_integer


class SpectralMixture(Kernel):
    """A stationary kernel with a mixture of normals, or of Student-ts, as its spectral density.

    Args:
        weights: variances of the components, shape ``(Q,)``, positive.
        centres: frequencies (cycles per unit of the inputs), shape ``(Q,)``, or ``(Q, d)``.
        scales: widths in frequency, positive, shaped like ``centres``.
        df: degrees of freedom of the components, an odd number; None for normal ones.

    Example:
        >>> import jax.numpy as jnp
        >>> from probkit.models import kernels
        >>> k = kernels.SpectralMixture(jnp.array([2.0, 1.0]), jnp.array([0.0, 0.5]), 0.1)
        >>> float(k(1.0, 1.0))
        3.0
    """

    weights: Any
    centres: Any
    scales: Any
    df: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.df is not None and (
            not isinstance(self.df, int) or self.df < 1 or self.df % 2 == 0
        ):
            raise ValueError(
                f"kernels.SpectralMixture(df): expected an odd whole number (1, 3, 5, ...) or None "
                f"for normal components, found {self.df!r}; take the nearest odd one"
            )
        if jnp.ndim(self.weights) != 1 or jnp.shape(self.centres)[:1] != jnp.shape(self.weights):
            raise ValueError(
                "kernels.SpectralMixture: expected weights of shape (Q,) and centres of shape (Q,) "
                f"or (Q, d), found {jnp.shape(self.weights)} and {jnp.shape(self.centres)}"
            )

    def __call__(self, x: ArrayLike, y: ArrayLike) -> Array:
        gap = vector(x) - vector(y)
        centres = jnp.asarray(self.centres)
        centres = centres[:, None] if centres.ndim == 1 else centres
        scales = jnp.asarray(self.scales)
        scales = scales[:, None] if scales.ndim == 1 else scales
        square = jnp.sum(jnp.broadcast_to(2 * math.pi * scales * gap, centres.shape) ** 2, axis=-1)
        if self.df is None:
            decay = jnp.exp(-0.5 * square)
        else:
            decay = half_integer((self.df - 1) // 2, self.df * square)
        return jnp.sum(self.weights * jnp.cos(2 * math.pi * (centres @ gap)) * decay)
