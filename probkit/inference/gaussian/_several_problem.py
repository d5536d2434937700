"""What an engine sees of a model with several Gaussian vectors whose terms meet row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import Target
from probkit.core._latents import GaussianLatents
from probkit.core._target import Program
from probkit.inference.gaussian._conditioning import Prior, Sites
from probkit.inference.gaussian._problem import Problem, aside_of, wall
from probkit.inference.gaussian._several_algebra import positive, softmax_blocks, times
from probkit.inference.gaussian._several_rule import (
    Rowwise,
    contrasts,
    derivatives,
    mean_term,
)
from probkit.inference.gaussian._several_rule import expected as expected_terms
from probkit.inference.gaussian._several_tilted import (
    Match,
    Placed,
    log_mass,
    matched,
    place,
    weigh,
)
from probkit.inference.gaussian._tilted import Moments


@dataclass(frozen=True, eq=False)
class Several:
    """Gaussian vectors with their data; vectors have shape ``(C, n)``, blocks ``(C, C, n)``.

    Attributes:
        latent: the capability of the Target's Program.
        arrays: the Target's arrays.
        kind: ``"softmax"`` where sites are the probabilities of softmax terms, else None.
    """

    latent: GaussianLatents
    arrays: dict
    kind: str | None

    def prior(self, theta: Array) -> Prior:
        """Covariances ``(C, n, n)`` and means of the vectors."""
        latent = self.latent
        return Prior(latent.covariance(theta, self.arrays), latent.mean(theta, self.arrays))

    def terms(self, theta: Array) -> Rowwise:
        """The rows' log likelihood at ``theta``."""
        return lambda f: self.latent.log_likelihood(theta, f, self.arrays)

    def blank(self, dtype: Any) -> Sites:
        """Sites that say nothing."""
        shape = (len(self.latent.names), self.latent.size)
        second = shape if self.kind == "softmax" else (shape[0], *shape)
        parts: Any = (np.zeros(shape, dtype), np.zeros(second, dtype))
        return Sites(*parts)

    def start(self, theta: Array, prior: Prior) -> Sites:
        """Sites to start from: almost flat."""
        tiny = jnp.full_like(prior.m, 1e-6)
        if self.kind == "softmax":
            return Sites(1e-6 * prior.m, tiny)
        eye = jnp.eye(prior.m.shape[0], dtype=prior.m.dtype)
        return Sites(1e-6 * prior.m, eye[:, :, None] * tiny)

    def touching(self, theta: Array, f: Array, sds: Array) -> Sites:
        """The Gaussian sites that touch the terms at ``f``, without negative curvature.

        ``sds`` are the prior's standard deviations, the units in which curvature is positive.
        """
        d1, d2 = derivatives(self.terms(theta), f)
        if self.kind == "softmax":
            # A label's derivative is 1 - p, the only positive one of its row; the others' are -p.
            p = jnp.clip(jnp.where(d1 > 0.0, 1.0, 0.0) - d1, 0.0, 1.0)
            return Sites(times(softmax_blocks(p), f) + d1, p)
        blocks = positive(-d2, sds)
        return Sites(times(blocks, f) + d1, blocks)

    def curvature(self, theta: Array, f: Array) -> Array:
        """The blocks of `touching`, as a function to be differentiated, ``(C, C, n)``."""
        _, d2 = derivatives(self.terms(theta), f)
        if self.kind == "softmax":
            return -d2
        sds = jnp.sqrt(self.latent.variance(theta, self.arrays, self.arrays))
        return positive(-d2, sds)

    def expected(self, theta: Array, m: Array, v: Array) -> Moments:
        """``E[log t_i]`` under ``N(m_i, V_i)``, its slope, and twice its derivative by ``V_i``."""
        value, d1, d2 = expected_terms(self._seen(theta), *self._along(m, v))
        return Moments(value, self._back(d1), self._both_back(d2))

    def mean_terms(self, theta: Array, m: Array, v: Array) -> Array:
        """``E[log t_i]`` alone, as a function to be differentiated by ``theta``, ``(n,)``."""
        return mean_term(self._seen(theta), *self._along(m, v))

    def place(self, theta: Array, m: Array, v: Array, power: float = 1.0) -> Placed:
        """Nodes for ``E[t_i^power]`` under ``N(m_i, V_i)``."""
        return place(self._seen(theta, power), *self._along(m, v))

    def weigh(self, theta: Array, placed: Placed, power: float = 1.0) -> Match:
        """``log E[t_i^power]`` and what matches its tilted moments, from nodes in place."""
        value, d1, d2, block = matched(weigh(self._seen(theta, power), placed))
        return Match(value, self._back(d1), self._both_back(d2), self._both_back(block))

    def log_mass(self, theta: Array, placed: Placed, power: float = 1.0) -> Array:
        """``log E[t_i^power]`` alone, as a function to be differentiated by ``theta``, ``(n,)``."""
        return log_mass(self._seen(theta, power), placed)

    def log_tilted(self, theta: Array, m: Array, v: Array) -> Array:
        """``log E[t_i]`` under ``N(m_i, V_i)``, ``(n,)``."""
        return self.log_mass(theta, self.place(theta, m, v))

    # -- what the terms do not see --------------------------------------------------------------

    def _axes(self) -> Array | None:
        """Orthonormal directions that the terms are functions of, where they are fewer than C."""
        labels = self.latent.softmax(self.arrays)
        return jnp.asarray(contrasts(len(self.latent.names))) if labels else None

    def _seen(self, theta: Array, power: float = 1.0) -> Rowwise:
        """The terms to a power, along the axes."""
        fn, axes = self.terms(theta), self._axes()
        if axes is None:
            return lambda f: power * fn(f)
        return lambda u: power * fn(axes.T @ u)

    def _along(self, m: Array, v: Array) -> tuple[Array, Array]:
        axes = self._axes()
        if axes is None:
            return m, v
        return axes @ m, jnp.einsum("ab,bcn,dc->adn", axes, v, axes)

    def _back(self, d: Array) -> Array:
        axes = self._axes()
        return d if axes is None else axes.T @ d

    def _both_back(self, d: Array) -> Array:
        axes = self._axes()
        return d if axes is None else jnp.einsum("ba,bcn,cd->adn", axes, d, axes)

    def penalty(self, theta: Array) -> Array:
        """The wall around the hyperparameters: zero inside."""
        return wall(aside_of(self.latent, theta))


def is_several(program: Program, arrays: dict) -> bool:
    """Whether a model needs the engines for several processes.

    Raises:
        ValueError: no engine can take it.
    """
    try:
        program.gaussian_latent(arrays)
    except ValueError:
        program.gaussian_latents(arrays)
        return True
    return False


def posed(program: Program, arrays: dict, closed: bool) -> Problem | Several:
    """The problem of a model: of one process where that will do, else of several.

    Args:
        program: the static half of a Target.
        arrays: the arrays of a Target.
        closed: whether the sites of softmax terms are their probabilities.
    """
    if not is_several(program, arrays):
        return Problem.of(Target(program, arrays))
    latent = program.gaussian_latents(arrays)
    return Several(latent, arrays, "softmax" if closed and latent.softmax(arrays) else None)


def check_rows(problem: Several, bytes_each: float, most: float) -> None:
    """Raise where some matrices of the size that the engine factorises do not fit in memory."""
    count, n = len(problem.latent.names), problem.latent.size
    closed = problem.kind == "softmax"
    entries = float(count * n**2 if closed else (count * n) ** 2)
    if bytes_each * entries <= most:
        return
    rows = int((most / bytes_each / (count if closed else count**2)) ** 0.5)
    other = "" if closed else "; pk.GPLaplace() on softmax terms needs no more than one process"
    raise ValueError(
        f"sites {problem.latent.name!r}: {count} Gaussian processes of {n} rows whose terms couple "
        f"them need about {bytes_each * entries / 1e9:.0f} GB, and this machine has "
        f"{most / 1e9:.0f} GB: fit a subset of at most {rows} rows, or one process at a time "
        f"(one class against the rest) with pk.SVGP(){other}"
    )
