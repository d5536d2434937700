r"""Variational inference by stochastic gradients, with a start and a stop of its own.

``q`` maximises an objective, by default the evidence lower bound

    ELBO(q) = E_q[log p(z, y) - log q(z)] = log p(y) - KL(q || p(z | y)),

by Adam on reparameterised draws. The start (`_start`) is a Gaussian found by Newton's method; it
makes the coordinates in which one step size suits all targets. The stop (`_stop`) compares averages
with the best fit so far. Families, objectives and gradients are in files of their own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from probkit.core import (
    Approximation,
    Batch,
    Batches,
    Inference,
    Status,
    Target,
    check_between,
    check_choice,
    check_count,
    check_options,
)
from probkit.inference.vi._amortised import Amortised
from probkit.inference.vi._auto import escalated
from probkit.inference.vi._emphasis import STEPS, DataEmphasis
from probkit.inference.vi._engine import BLOCK, Recipe, block
from probkit.inference.vi._families import OWN_ENGINES, Shape, family_named
from probkit.inference.vi._finish import approximation
from probkit.inference.vi._objectives import ALLOWED, GRADIENTS, OBJECTIVES
from probkit.inference.vi._options import NAMES, OPTIMIZERS, check_saa, family_for, recipe_for
from probkit.inference.vi._sample_average import ITERATIONS, SampleAverage
from probkit.inference.vi._scale_maps import SCALE_MAPS
from probkit.inference.vi._score import no_control
from probkit.inference.vi._start import begin
from probkit.inference.vi._stop import MOST_BAD, judge

_MOST_STEPS = 20_000
_WINDOW = 4


class VI(Inference):
    """Variational inference: the best member of a family of distributions.

    Args:
        family: "flow" (affine couplings that start as a Gaussian; they are left out where the
            Gaussian is right already), "meanfield", "fullrank", "lowrank", "structured" (sparse
            as the model's graph), "student_t", "laplace" (the start itself), "mixture",
            "coupling" and "autoregressive" (flowjax's), or "auto": the first of mean-field, low
            rank, full rank and flow that passes its checks.
        objective: "elbo", "iwelbo", "renyi", "forward_kl", or "data_emphasised": the likelihood
            counts ``kappa`` times, which learns the hyperparameters of models with more weights
            than data (the weights' prior scale in closed form, all other sites as points; one
            isotropic Gaussian for the weights, so no ``family`` is chosen).
        gradient: "stl" (path), "reparam", "dreg" (for "iwelbo") or "score"; the best that the
            objective has by default.
        scale: the map to the scales of Gaussian families: "linear" (the default; with a proximal
            step where the gradient is "reparam"), "softplus" or "exp" (the default with "saa").
        draws: draws that stand for the approximation in the posterior.
        starts: independent fits; the best is kept, and their agreement is reported.
        particles: draws a step, 16 by default (2 with "data_emphasised", an antithetic pair). With
            "saa" the fixed draws, rounded up to a power of 2: 256 for "meanfield" and 30 d for the
            others by default.
        max_steps: optimiser steps at the most, 20,000 by default (1,000 with "saa"); the stop needs
            far fewer, or the status says so. With "data_emphasised" the number of steps, 5,000 by
            default.
        tolerance: nats that a window of steps has to gain.
        step_size: the first step size, in units of the start's sds; None chooses.
        samples: draws in each bound of "iwelbo" and "renyi".
        alpha: order of the Renyi bound, below 1.
        tempering: steps over which the log density is raised from a hundredth to all of itself.
        batch_size: rows of a mini-batch; None takes all rows.
        dim: the dim whose rows are drawn; None takes that of the observed variable.
        rank, components, df, layers, width: of the families "lowrank", "mixture", "student_t"
            (degrees of freedom) and the flows.
        weights: of "data_emphasised": the site of the weights, a `pk.module` or a random variable;
            None takes the model's one module. Its prior is replaced by ``N(0, tau I)``.
        kappa: of "data_emphasised": how often the likelihood counts; None is weights / data, and
            1 the ordinary evidence lower bound of the same family.
        guide: an equinox module that tells each row's latents from its data (amortised inference;
            mini-batches by ``batch_size``): from one row's ``inputs``, flattened to a vector, to
            the means and log sds of the row's latents. Global latents have a mean-field Gaussian.
        inputs: data that the guide reads; None takes the observed variables.
        optimizer: "adam", stochastic steps that the automatic stop ends; or "saa", sample-average
            approximation: L-BFGS on the ELBO of fixed quasi-random draws ("meanfield", "fullrank",
            "lowrank", "structured"), a few dozen iterations, and no noise.

    Raises:
        TypeError, ValueError: a misspelt option, a number out of range, or options that do not
            go together.

    Example:
        >>> import probkit as pk
        >>> pk.VI(family="meanfield", max_steps=2000).num_steps
        40
    """

    draws: int
    max_steps: int
    tolerance: float
    step_size: float
    alpha: float
    tempering: float
    starts: int = eqx.field(static=True)
    recipe: Recipe = eqx.field(static=True)
    family: str = eqx.field(static=True)
    shape: Shape = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    dim: str | None = eqx.field(static=True)
    own: DataEmphasis | Amortised | SampleAverage | None

    def __init__(
        self,
        family: str | None = None,
        objective: str = "elbo",
        gradient: str | None = None,
        scale: str | None = None,
        draws: int = 4000,
        starts: int = 1,
        particles: int | None = None,
        max_steps: int | None = None,
        tolerance: float = 0.005,
        step_size: float | None = None,
        samples: int = 8,
        alpha: float = 0.5,
        tempering: int = 0,
        batch_size: int | None = None,
        dim: str | None = None,
        rank: int = 4,
        components: int = 4,
        df: float = 5.0,
        layers: int = 4,
        width: int = 32,
        weights: str | None = None,
        kappa: float | None = None,
        guide: Any = None,
        inputs: str | tuple[str, ...] | None = None,
        optimizer: str = "adam",
        **unknown: Any,
    ):
        check_options("VI", unknown, NAMES)
        check_choice("VI(objective)", objective, OBJECTIVES)
        given = {"weights": weights, "kappa": kappa, "guide": guide, "inputs": inputs}
        family = family_for(objective, family, given)
        check_choice("VI(optimizer)", optimizer, OPTIMIZERS)
        saa = optimizer == "saa"
        if saa:
            chosen = {"objective": objective, "gradient": gradient, "step_size": step_size}
            check_saa(family, {**chosen, "batch_size": batch_size, "tempering": tempering})
            gradient = "reparam"
        scale = ("exp" if saa else "linear") if scale is None else scale
        check_choice("VI(scale)", scale, SCALE_MAPS)
        gradient = ALLOWED[objective][0] if gradient is None else gradient
        check_choice("VI(gradient)", gradient, GRADIENTS)
        if gradient not in ALLOWED[objective]:
            raise ValueError(
                f"VI(gradient={gradient!r}): the objective {objective!r} has no such gradient; "
                f"choose one of {', '.join(map(repr, ALLOWED[objective]))}"
            )
        self.draws = check_count("VI(draws)", draws)
        self.starts = check_count("VI(starts)", starts)
        self.max_steps = check_count(
            "VI(max_steps)", _MOST_STEPS if max_steps is None else max_steps
        )
        self.tolerance = check_between("VI(tolerance)", tolerance, 0.0, math.inf)
        self.alpha = check_between("VI(alpha)", alpha, -math.inf, 1.0)
        self.tempering = float(check_count("VI(tempering)", tempering, least=0))
        self.batch_size = None if batch_size is None else check_count("VI(batch_size)", batch_size)
        self.dim = dim
        self.family = family
        self.shape = Shape(
            scale=scale,
            rank=check_count("VI(rank)", rank),
            components=check_count("VI(components)", components, least=2),
            df=check_between("VI(df)", df, 0.0, math.inf),
            layers=check_count("VI(layers)", layers),
            width=check_count("VI(width)", width),
        )
        made = family_named(family, self.shape)
        count = 0 if particles is None else check_count("VI(particles)", particles, least=2)
        if particles is None:
            particles = 2 if family in OWN_ENGINES else 16
        self.recipe = recipe_for(made, family, objective, gradient, scale, particles, samples)
        if objective == "iwelbo":
            self.alpha = 0.0  # Renyi's bound of order 0 is the importance-weighted one
        first = 0.01 if family in ("flow", "coupling", "autoregressive") else 0.03
        given = step_size if step_size is not None else first
        self.step_size = check_between("VI(step_size)", given, 0.0, math.inf)
        same: dict[str, Any] = {
            "draws": draws,
            "steps": STEPS if max_steps is None else max_steps,
            "step_size": 0.01 if step_size is None else step_size,
            "particles": particles,
            "batch_size": batch_size,
            "dim": dim,
        }
        self.own = None
        if family == "isotropic":
            self.own = DataEmphasis(weights=weights, kappa=kappa, starts=starts, **same)
        elif family == "amortised":
            self.own = Amortised(guide, inputs, **same)
        elif saa:
            most = ITERATIONS if max_steps is None else int(self.max_steps)
            fixed = replace(self.recipe, particles=count, prox=False)
            self.own = SampleAverage(self.draws, most, self.tolerance, fixed, family, self.starts)

    def encoder(self, posterior: Any) -> Any:
        """The trained guide of a posterior that this method fitted with ``guide=``.

        Args:
            posterior: what `fit` returned.

        Returns:
            The module: from a row's inputs to the means and log sds of its latents, unconstrained.

        Raises:
            ValueError: the method has no guide.
        """
        if not isinstance(self.own, Amortised):
            raise ValueError("VI.encoder: this method has no guide; pass guide= to pk.VI")
        return self.own.trained(posterior.approximation.params["guide"])

    @property
    def chains(self) -> int:
        return self.starts

    @property
    def num_steps(self) -> int:
        if self.own is not None:
            return self.own.num_steps
        return 0 if self.family == "laplace" else -(-int(self.max_steps) // BLOCK)

    @property
    def requires(self) -> tuple[str, ...]:
        whole = self.batch_size is None and self.density_only
        return ("latents",) if whole else ("latents", "likelihood")

    @property
    def batches(self) -> Batches | None:
        if self.own is not None:
            return self.own.batches
        if self.batch_size is None:
            return None
        return Batches(self.batch_size, self.dim, per_step=BLOCK)

    @property
    def density_only(self) -> bool:
        return self.own is None or self.own.density_only

    # -- the contract -------------------------------------------------------------------------

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        if self.own is not None:
            return self.own.init(key, target)
        frame, params, lp = begin(self.recipe.family, key, target, self.starts == 1)
        zero = jnp.zeros((), target.dtype)
        flat = ravel_pytree(params)[0]
        blank = jnp.zeros_like(flat)
        control = {"control": no_control(flat)} if self.recipe.gradient == "score" else {}
        return {
            **control,
            "frame": frame,
            "params": flat,
            "best": params,
            "m": blank,
            "v": blank,
            "sum": blank,
            "terms": zero,
            "count": zero,
            "rate": self._number(target, self.step_size),
            "value": zero,
            # Of the best fit; known from the first comparison on.
            "figures": {k: zero + jnp.inf for k in ("value", "se", "half_variance")},
            "gain": zero,
            "quiet": zero,
            "window": jnp.int32(_WINDOW),
            "inside": jnp.int32(0),
            "bad": jnp.int32(0),
            "lost": jnp.int32(0),
            "trouble": jnp.zeros_like(frame["centre"]),
            "lp": lp,
            "done": jnp.asarray(False),
        }

    def _number(self, target: Target, value: Any) -> Array:
        return jnp.asarray(value, target.dtype)

    def _pairs(self, size: int) -> int:
        if self.batch_size is not None:
            return 256
        return 2048 if size <= 500 else 256

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        if self.own is not None:
            return self.own.step(key, target, state, batch, t)
        first, second = jax.random.split(key)
        numbers = {
            "alpha": self._number(target, self.alpha),
            "tolerance": self._number(target, self.tolerance),
            "temper": self._number(target, self.tempering),
            "first": (t * BLOCK).astype(target.dtype),
            "settled": (t + 1) * BLOCK > self.tempering,
        }
        climbed = block(self.recipe, first, target, state, batch, numbers)
        pairs = self._pairs(target.program.flat.size)
        new = judge(self.recipe, second, target, climbed, numbers, pairs)
        info = {
            "objective": new["value"],
            "best": new["figures"]["value"],
            "gain": new["gain"],
            "step_size": new["rate"],
            "nonfinite_steps": new["lost"],
        }
        return new, info

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        if self.own is not None:
            return self.own.terminate(state, info)
        none = ~jnp.isfinite(state["lp"])
        lost = none | (state["bad"] >= MOST_BAD)
        code = jnp.where(lost, int(Status.NONFINITE), int(Status.OK))
        return state["done"] | none, code.astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        if self.own is not None:
            return self.own.finish(key, target, state, history)
        made = approximation(self.recipe, self.family, target, state, int(self.draws))
        if self.family == "auto":
            return escalated(self, key, target, made)
        return made


def with_family(method: VI, family: str) -> VI:
    """The same method with another family; the step size is that family's default."""
    recipe = method.recipe
    return VI(
        family=family,
        objective=recipe.objective,
        gradient=recipe.gradient,
        scale=method.shape.scale,
        draws=int(method.draws),
        starts=method.starts,
        particles=recipe.particles,
        max_steps=int(method.max_steps),
        tolerance=float(method.tolerance),
        samples=max(recipe.group, 2),
        alpha=float(method.alpha),
        tempering=int(method.tempering),
        batch_size=method.batch_size,
        dim=method.dim,
        **{k: v for k, v in vars(method.shape).items() if k != "scale"},
    )
