"""A normal distribution over the unconstrained space, from its mean and precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Check, Status, listing

_FLAT = 1e-6  # curvatures up to here count as none
_NAMED = 5


def sample(params: dict[str, Array], key: Array, n: int) -> Array:
    """``n`` draws, shape ``(n, d)``: ``m + L^{-T} e`` where ``L L'`` is the precision."""
    noise = jax.random.normal(key, (n, params["mean"].shape[0]), params["mean"].dtype)
    solve = jax.scipy.linalg.solve_triangular
    return params["mean"] + solve(params["tril"], noise.T, trans=1, lower=True).T


def log_density(params: dict[str, Array], x: Array) -> Array:
    """Log density at one point, shape ``(d,)``."""
    white = params["tril"].T @ (x - params["mean"])
    half_log_det = jnp.sum(jnp.log(jnp.diag(params["tril"])))
    return half_log_det - 0.5 * x.shape[0] * math.log(2 * math.pi) - 0.5 * jnp.dot(white, white)


class Mode(NamedTuple):
    """Where a log density is highest, and what goes into the result with it.

    Attributes:
        mean: the point, shape ``(d,)``.
        top: the log density there.
        draws: how many draws are to stand for the approximation.
        status: how the search ended.
        stats: figures of the search.
        names: of the coordinates, in their order.
    """

    mean: np.ndarray
    top: float
    draws: int
    status: Status
    stats: dict[str, Any]
    names: Sequence[str]


def normal_approximation(precision: np.ndarray, mode: Mode) -> Approximation:
    """The normal with this mean and precision; a precision that is not one sets an OK status.

    The check ``curvature`` then says which coordinates lie along the flat or rising directions.
    The log evidence is Laplace's, ``log p(m) + d/2 log 2 pi - 1/2 log |precision|``, which is exact
    where the log density is quadratic.
    """
    mean, top, draws, status, stats, names = mode
    size = mean.shape[0]
    checks: tuple[Check, ...] = ()
    try:
        tril = np.linalg.cholesky(precision.astype(np.float64))
    except np.linalg.LinAlgError:
        # The best normal there is: flat and negative directions get the curvature of the prior
        # scale 1, and the status says so.
        values, vectors = np.linalg.eigh(np.nan_to_num(precision.astype(np.float64)))
        roots = np.sqrt(np.where(values > _FLAT, values, 1.0))
        # A factor of V diag(roots^2) V' without forming it: that could lose its definiteness again
        # where curvatures differ by more than double precision holds.
        upper = np.asarray(np.linalg.qr((vectors * roots).T, mode="r"))
        tril = upper.T * np.sign(np.diag(upper))
        status = Status.NOT_POSITIVE_DEFINITE if status.ok else status
        checks = (_flatness(values, vectors, names),)
    evidence = top + 0.5 * size * math.log(2 * math.pi)
    evidence -= float(np.sum(np.log(np.diag(tril))))
    params = {"mean": mean, "tril": tril.astype(mean.dtype)}
    return Approximation(
        sample=sample,
        log_density=log_density,
        params=params,
        draws=draws,
        key="normal",
        log_evidence=evidence,
        stats=stats,
        status=status,
        checks=checks,
    )


def _flatness(values: np.ndarray, vectors: np.ndarray, names: Sequence[str]) -> Check:
    """The lowest curvature, and the coordinates that its directions are made of."""
    flat = vectors[:, values <= max(_FLAT, 1e-12 * float(values[-1]))]
    share = np.sqrt(np.sum(np.square(flat), axis=1))
    order = [int(i) for i in np.argsort(-share, kind="stable") if share[i] > 0.1]
    where = listing([names[i] for i in order], _NAMED)
    advice = (
        "the log density is flat or rises along these coordinates (in combination, where they are "
        "several): give them proper or tighter priors, leave out what the data cannot tell apart, "
        "or draw with pk.NUTS()"
    )
    return Check("curvature", False, float(values[0]), 0.0, where, advice, ">")
