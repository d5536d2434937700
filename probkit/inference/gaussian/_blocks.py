r"""Curvature of a hierarchy: blocks of one dim's latents, independent given all the others.

With global entries u and those of each group x_j (j = 1..J) the precision is an arrow,

    P = | A    C_1' .. C_J' |        A  (G, G),   C_j  (b, G),   D_j  (b, b),
        | C_1  D_1          |
        | ..        ..      |        S = A - sum_j C_j' D_j^{-1} C_j    (Schur's complement),
        | C_J           D_J |

and everything costs O(J b (b + G)^2 + G^3). Its parts are read off ``b + G`` Hessian-vector
products, whatever J: a vector of ones at the k-th entry of every group gives the k-th column of
every D_j at once (Curtis, Powell and Reid 1974). One more product, with random signs, tells whether
there is anything outside the arrow.

Made positive, ``|P| + l = L diag(|D_j| + l, |S| + l) L'`` with absolute eigenvalues in each block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Approximation, Check, Status, Target, listing
from probkit.core._target import Program
from probkit.inference.gaussian._curvature import FLAT, Curvature
from probkit.inference.gaussian._normal import Mode

_MISFIT = 1e-2
Parts = dict[str, Any]


@dataclass(frozen=True)
class Blocks(Curvature):
    """Blocks along one dim.

    Attributes:
        dim: the dim; None takes the one with the most latent entries.
    """

    dim: str | None = None

    def layout(self, program: Program) -> tuple[np.ndarray, np.ndarray]:
        """Flat places of the groups' entries, shape ``(J, b)``, and of the global ones, ``(G,)``.

        Raises:
            ValueError: there is no such dim, or nothing is latent along it.
        """
        found = {d: _places(program, d) for d in program.sizes}
        found = {d: p for d, p in found.items() if p.size}
        if self.dim is not None and self.dim not in found:
            raise ValueError(
                f"Laplace(dim={self.dim!r}): expected a dim along which latent variables are "
                f"independent given the others; this model has {listing(found) or 'none'}"
            )
        if not found:
            raise ValueError(
                "Laplace(structure='blocks'): no latent variable has a dim along which its entries "
                "are independent given the others; use structure='dense' or 'lowrank'"
            )
        dim = self.dim or max(found, key=lambda d: found[d].size)
        local = found[dim]
        return local, np.setdiff1d(np.arange(program.flat.size), local)

    def measure(self, target: Target, z: Array, old: Any) -> Parts:
        local, rest = self.layout(target.program)
        size, width, count = z.shape[0], local.shape[1], rest.shape[0]
        probes = np.zeros((width + count + 1, size))
        for k in range(width):
            probes[k, local[:, k]] = 1.0
        probes[width + np.arange(count), rest] = 1.0
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size)
        probes[-1] = signs
        slope = jax.grad(target.flat_log_density)
        product = lambda v: -jax.jvp(slope, (z,), (v,))[1]  # noqa: E731
        seen = jax.vmap(product)(jnp.asarray(probes, z.dtype))
        inner = jnp.moveaxis(seen[:width][:, local], 0, 2)
        outer = seen[width : width + count]
        parts = {
            "D": 0.5 * (inner + jnp.swapaxes(inner, 1, 2)),
            "C": jnp.moveaxis(outer[:, local], 0, 2),
            "A": 0.5 * (outer[:, rest] + outer[:, rest].T),
            "local": jnp.asarray(local),
            "rest": jnp.asarray(rest),
        }
        gap = seen[-1] - _times(parts, jnp.asarray(signs, z.dtype))
        # Relative to what the parts of a row could add up to: signs cancel.
        size_of = _times(jax.tree.map(jnp.abs, parts), jnp.ones_like(z))
        return {**parts, "misfit": jnp.max(jnp.abs(gap) / (size_of + jnp.finfo(z.dtype).tiny))}

    def solve(self, parts: Parts, slope: Array, damping: Array) -> tuple[Array, Array]:
        values, vectors = jnp.linalg.eigh(parts["D"])
        least = FLAT * jnp.max(jnp.abs(values)) + jnp.finfo(slope.dtype).tiny
        none = jnp.zeros_like(damping)
        whole = _solve(parts, values, vectors, slope, none, least)
        damped = _solve(parts, values, vectors, slope, damping, none)
        return damped, 0.5 * jnp.dot(slope, whole)

    def normal(self, parts: Any, mode: Mode) -> Approximation:
        mean, top, draws, status, stats, _ = mode
        D, C, A = (np.asarray(parts[k], np.float64) for k in ("D", "C", "A"))
        tril, fine = _factor(D)
        W = np.linalg.solve(tril, C)
        # A flat block is given curvature 1, and then so is what is left of A.
        global_tril, definite = _factor((A - np.einsum("jbg,jbh->gh", W, W))[None])
        if not (fine and definite) and status.ok:
            status = Status.NOT_POSITIVE_DEFINITE
        diagonals = [np.diagonal(x, axis1=1, axis2=2) for x in (tril, global_tril)]
        half_log_det = float(sum(np.sum(np.log(x)) for x in diagonals))
        params = {
            "mean": mean,
            "D": tril.astype(mean.dtype),
            "W": W.astype(mean.dtype),
            "S": global_tril[0].astype(mean.dtype),
            "local": parts["local"],
            "rest": parts["rest"],
        }
        return Approximation(
            sample=sample,
            log_density=log_density,
            params=params,
            draws=draws,
            key="normal in blocks",
            log_evidence=top + 0.5 * mean.shape[0] * math.log(2 * math.pi) - half_log_det,
            stats={**stats, "groups": D.shape[0], "misfit": float(parts["misfit"])},
            status=status,
        )

    def checks(self, parts: Any) -> list[Check]:
        misfit = float(parts["misfit"])
        advice = (
            "the log density couples entries of different groups, whose correlations are left out: "
            "name another dim=, or use structure='dense'"
        )
        good = misfit < _MISFIT
        where = "share of a row's curvature that is outside the blocks"
        return [Check("structure", good, misfit, _MISFIT, where, "" if good else advice)]


def _places(program: Program, dim: str) -> np.ndarray:
    """Flat places of latent entries along a dim, one row for each of its positions."""
    rows = []
    for name, shape in program.shapes.items():
        dims = program.sites[name].dims if name in program.sites else ()
        if dim not in dims or dim not in program.independent_dims(name):
            continue
        axis = dims.index(dim)
        if axis < len(shape) and shape[axis] == program.sizes[dim]:
            flat = program.flat.offsets[name] + np.arange(math.prod(shape)).reshape(shape)
            rows.append(np.moveaxis(flat, axis, 0).reshape(shape[axis], -1))
    return np.concatenate(rows, axis=1) if rows else np.zeros((0, 0), int)


def _times(parts: Parts, v: Array) -> Array:
    """The arrow times a vector."""
    x, u = v[parts["local"]], v[parts["rest"]]
    inner = jnp.einsum("jbc,jc->jb", parts["D"], x) + parts["C"] @ u
    outer = parts["A"] @ u + jnp.einsum("jbg,jb->g", parts["C"], x)
    return jnp.zeros_like(v).at[parts["local"]].set(inner).at[parts["rest"]].set(outer)


def _solve(
    parts: Parts, values: Array, vectors: Array, slope: Array, damping: Array, least: Array
) -> Array:
    scale = jnp.maximum(jnp.abs(values), least) + damping
    C = parts["C"]

    def within(x: Array) -> Array:
        """``(|D_j| + l)^{-1} x_j`` of every group, ``x`` of shape (J, b, k)."""
        along = jnp.einsum("jbc,jbk->jck", vectors, x)
        return jnp.einsum("jbc,jck->jbk", vectors, along / scale[..., None])

    x, u = slope[parts["local"]][..., None], slope[parts["rest"]]
    ahead = within(x)
    schur, turn = jnp.linalg.eigh(parts["A"] - jnp.einsum("jbg,jbh->gh", C, within(C)))
    left = turn.T @ (u - jnp.einsum("jbg,jb->g", C, ahead[..., 0]))
    outer = turn @ (left / (jnp.maximum(jnp.abs(schur), least) + damping))
    inner = within(x - (C @ outer)[..., None])[..., 0]
    return jnp.zeros_like(slope).at[parts["local"]].set(inner).at[parts["rest"]].set(outer)


def _factor(matrices: np.ndarray) -> tuple[np.ndarray, bool]:
    """Cholesky factors of a stack; flat and negative directions get curvature 1, and are told."""
    try:
        return np.linalg.cholesky(matrices), True
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(np.nan_to_num(matrices))
        fixed = np.where(values > 1e-6, values, 1.0)
        whole = np.einsum("jbc,jc,jdc->jbd", vectors, fixed, vectors)
        return np.linalg.cholesky(whole), False


def _turned(tril: Array) -> Callable[[Array], Array]:
    return lambda x: jax.scipy.linalg.solve_triangular(tril, x, trans=1, lower=True)


def sample(params: dict[str, Array], key: Array, n: int) -> Array:
    """``n`` draws, shape ``(n, d)``."""
    mean, local, rest = params["mean"], params["local"], params["rest"]
    noise = jax.random.normal(key, (n, mean.shape[0]), mean.dtype)
    outer = _turned(params["S"])(noise[:, rest].T)
    gap = jnp.moveaxis(noise[:, local], 0, 2) - params["W"] @ outer
    inner = jax.vmap(lambda tril, x: _turned(tril)(x))(params["D"], gap)
    moved = jnp.zeros_like(noise).at[:, local].set(jnp.moveaxis(inner, 2, 0))
    return mean + moved.at[:, rest].set(outer.T)


def log_density(params: dict[str, Array], x: Array) -> Array:
    """Log density at one point, shape ``(d,)``."""
    gap = x - params["mean"]
    inner, outer = gap[params["local"]], gap[params["rest"]]
    white = jnp.einsum("jcb,jc->jb", params["D"], inner) + params["W"] @ outer
    whole = params["S"].T @ outer
    half = jnp.sum(jnp.log(jnp.diagonal(params["D"], axis1=1, axis2=2)))
    half += jnp.sum(jnp.log(jnp.diag(params["S"])))
    square = jnp.sum(white**2) + jnp.sum(whole**2)
    return half - 0.5 * x.shape[0] * math.log(2 * math.pi) - 0.5 * square
