r"""Stochastic gradient Langevin dynamics (Welling and Teh 2011, equation 4).

    z <- z + (e_t / 2) grad U_hat(z) + sqrt(e_t) N(0, I),    e_t = e (1 + t / b)^(-g)

``grad U_hat`` is the gradient of the log prior plus the scaled-up log likelihood of a mini-batch.
Batches are drawn without replacement, a fresh permutation every epoch. With a decreasing step size
the draws converge to the posterior at a rate of at best T^(-1/3); with a constant one they keep a
bias of the order of the step size. A step costs one gradient of a mini-batch.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import (
    Batch,
    Batches,
    Draws,
    Inference,
    Status,
    Target,
    check_between,
    check_count,
    check_options,
)
from probkit.core._rows import data_dim
from probkit.core._wrappers import split_history
from probkit.inference.sgmcmc._step_size import Estimate, tuned_start

_OPTIONS = (
    "draws",
    "warmup",
    "chains",
    "step_size",
    "decay",
    "decay_after",
    "batch_size",
    "dim",
    "thin",
)


class SGLD(Inference):
    """Stochastic gradient Langevin dynamics with mini-batches.

    Args:
        draws: draws a chain that are kept, each ``thin`` steps apart.
        warmup: draws a chain that are thrown away before them.
        chains: chains; each has its own noise, while all of them see the same mini-batches.
        step_size: the first step size ``e`` (squared units of the unconstrained space). None takes
            0.2 over the largest curvature plus the variance of the mini-batch gradient at a mode
            that is searched first, so that the bias of the variance is about five per cent (see
            `probkit.inference.sgmcmc._step_size`). With small batches the noise rules, and steps
            are short: ask for more of them (``thin``), or choose a larger size and its bias.
        decay: the exponent ``g`` of the step size's decay; 0 keeps it constant.
        decay_after: the number of draws ``b`` after which the decay sets in.
        batch_size: rows a mini-batch; None takes all rows.
        dim: the dim whose rows are drawn; None takes that of the observed variable.
        thin: steps between draws.

    Raises:
        TypeError, ValueError: a misspelt option or a number out of range.

    Example:
        >>> import probkit as pk
        >>> pk.SGLD(batch_size=32, step_size=1e-4, warmup=200).num_steps
        1200
    """

    draws: int
    warmup: int
    step_size: float | None
    decay: float
    decay_after: float
    _chains: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    dim: str | None = eqx.field(static=True)
    thin: int = eqx.field(static=True)

    def __init__(
        self,
        draws: int = 1000,
        warmup: int = 1000,
        chains: int = 4,
        step_size: float | None = None,
        decay: float = 0.0,
        decay_after: float = 1000.0,
        batch_size: int | None = None,
        dim: str | None = None,
        thin: int = 1,
        **unknown: Any,
    ):
        check_options("SGLD", unknown, _OPTIONS)
        self.draws = check_count("SGLD(draws)", draws)
        self.warmup = check_count("SGLD(warmup)", warmup, least=0)
        self._chains = check_count("SGLD(chains)", chains)
        given = step_size is not None
        self.step_size = check_between("SGLD(step_size)", step_size, 0.0, np.inf) if given else None
        self.decay = check_between("SGLD(decay)", decay, -1e-12, 1.0)
        self.decay_after = check_between("SGLD(decay_after)", decay_after, 0.0, np.inf)
        self.batch_size = None if batch_size is None else check_count("SGLD(batch)", batch_size)
        self.dim = dim
        self.thin = check_count("SGLD(thin)", thin)

    @property
    def chains(self) -> int:
        return self._chains

    @property
    def num_steps(self) -> int:
        return self.draws + self.warmup

    @property
    def num_warmup(self) -> int:
        return self.warmup

    @property
    def requires(self) -> tuple[str, ...]:
        return ("latents",) if self.batch_size is None else ("latents", "likelihood")

    @property
    def batches(self) -> Batches | None:
        if self.batch_size is None:
            return None
        return Batches(self.batch_size, self.dim, per_step=self.thin)

    @property
    def density_only(self) -> bool:
        return True

    def init(self, key: Array, target: Target) -> dict[str, Array]:
        from probkit.inference.mcmc._start import find_start

        position, value, _ = find_start(key, target)
        if self.step_size is not None:
            size = jnp.asarray(self.step_size, target.dtype)
            return {"position": position, "lp": value, "size": size}
        estimate = self._estimator(target)
        position, size = tuned_start(jax.random.fold_in(key, 1), estimate, position)
        return {"position": position, "lp": value, "size": size}

    def _estimator(self, target: Target) -> Estimate:
        """Value and gradient from a mini-batch drawn with replacement; from all rows without."""
        size = self.batch_size
        if size is None:
            return lambda key, z: jax.value_and_grad(target.flat_log_density)(z)
        dim = self.dim or data_dim(target)
        total = target.program.sizes[dim]

        def estimate(key: Array, z: Array) -> tuple[Array, Array]:
            rows = jax.random.randint(key, (size,), 0, total)
            return jax.value_and_grad(target.flat_log_density)(z, Batch(dim, rows))

        return estimate

    def step(
        self, key: Array, target: Target, state: dict[str, Array], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        size = (state["size"] * (1.0 + t / self.decay_after) ** -self.decay).astype(target.dtype)
        rows = None if batch is None else batch.index.reshape(self.thin, -1)

        def inner(i: Array | int, carry: tuple) -> tuple:
            z, _, fine = carry
            part = None if batch is None or rows is None else Batch(batch.dim, rows[i])
            value, slope = jax.value_and_grad(target.flat_log_density)(z, part)
            noise = jax.random.normal(jax.random.fold_in(key, i), z.shape, z.dtype)
            new = z + 0.5 * size * slope + jnp.sqrt(size) * noise
            fine = fine & jnp.isfinite(value) & jnp.all(jnp.isfinite(new))
            return jnp.where(fine, new, z), value, fine

        first = (state["position"], state["lp"], jnp.isfinite(state["lp"]))
        z, value, fine = jax.lax.fori_loop(0, self.thin, inner, first)
        # The value is that of the last mini-batch, at the point before its step. A chain that left
        # the finite numbers stays where it last was finite, and ends the run.
        info = {"position": z, "lp": jnp.where(fine, value, state["lp"]), "step_size": size}
        lp = jnp.where(fine, value, -jnp.inf)
        return {"position": z, "lp": lp, "size": state["size"]}, info

    def terminate(self, state: dict[str, Array], info: dict[str, Array]) -> tuple[Array, Array]:
        lost = ~jnp.isfinite(state["lp"])
        return lost, jnp.where(lost, int(Status.NONFINITE), int(Status.OK)).astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Draws:
        return split_history(self, state, history)
