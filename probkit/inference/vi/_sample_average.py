r"""Sample-average approximation: one fixed set of draws, and L-BFGS until it has converged.

With base draws e_1 .. e_N held fixed the ELBO is a smooth function of the parameters,

    f(v) = 1/N sum_i [log p(T(e_i; v)) - log q(T(e_i; v))],

which a quasi-Newton method maximises to convergence: no step size, no noise, and a status that
says whether it converged. What it costs is the optimism of a sample: f is higher at its optimum
than the ELBO is. The draws are Sobol's points (a linear matrix scramble, a random digital shift),
in antithetic pairs, and linearly transformed to have unit covariance exactly, so that f is the ELBO
itself where log p is quadratic. The ELBO of the result is estimated from fresh draws, and compared
with f (the check ``fixed_draws``) and with the start's, which is kept where it is better.

Source: Giordano, Ingram and Broderick (2024), "Black box variational inference with a deterministic
objective", sections 2 and 3; Burroni, Domke and Sheldon (2023), "Sample average approximation for
black-box VI". Quasi-random and standardised draws are departures. Cost of an iteration: about N
gradients of the log density, N = 256 for mean-field and the power of 2 above 30 d (Burroni et al.
see full rank need so many) for families with correlations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from probkit.core import Approximation, Batch, Check, Inference, Status, Target
from probkit.inference.vi._engine import Recipe, compare, whitened
from probkit.inference.vi._finish import approximation
from probkit.inference.vi._sobol import LARGEST, sobol_normal
from probkit.inference.vi._start import begin

#: The families whose draws are a smooth map of normal noise.
SMOOTH = ("meanfield", "fullrank", "lowrank", "structured")
#: Iterations at the most, by default.
ITERATIONS = 1000
#: Iterations in one step of the driver.
_BLOCK = 10
_FEWEST, _PER_DIMENSION, _MOST_ENTRIES = 256, 30, 1 << 25
_MEMORY, _LINE_STEPS = 10, 15
# Largest entry of the gradient; in whitened coordinates a location one sd off has 1.
_FLAT = 1e-3
_PAIRS = 4096
_OPTIMISM = 0.1


class SampleAverage(Inference):
    """`VI`'s ``optimizer="saa"``: fixed draws, L-BFGS; the fields are those of `VI`.

    Attributes:
        recipe: family and number of draws (0: by the family's dimension).
        name: the family's name.
        tolerance: ends when three iterations in a row gain less than a hundredth of it (nats).
    """

    draws: int
    steps: int
    tolerance: float
    recipe: Recipe = eqx.field(static=True)
    name: str = eqx.field(static=True)
    starts: int = eqx.field(static=True)

    @property
    def chains(self) -> int:
        return self.starts

    @property
    def num_steps(self) -> int:
        return -(-int(self.steps) // _BLOCK)

    @property
    def density_only(self) -> bool:
        return True

    def count(self, width: int) -> int:
        """Draws in the average, a power of 2, for noise of this width."""
        least = self.recipe.particles
        if not least:
            wanted = _FEWEST if self.name == "meanfield" else _PER_DIMENSION * width
            least = max(_FEWEST, min(wanted, _MOST_ENTRIES // width))
        return 1 << (least - 1).bit_length()

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        first, second = jax.random.split(key)
        frame, params, lp = begin(self.recipe.family, first, target, self.starts == 1)
        width = jax.eval_shape(lambda: self._fresh(second, target)).shape[1]
        if width > LARGEST:
            raise ValueError(
                f"VI(optimizer='saa'): Sobol's points are tabulated up to {LARGEST} dimensions, "
                f"and this fit needs {width}; use optimizer='adam'"
            )
        flat = ravel_pytree(params)[0]
        zero = jnp.zeros((), target.dtype)
        return {
            "frame": frame,
            "params": flat,
            "best": params,
            "memory": jax.tree.leaves(self._optimiser().init(flat)),
            "shift": jax.random.bits(second, (width,), jnp.uint32),
            "value": zero - jnp.inf,
            "slope": zero + jnp.inf,
            "figures": {k: zero + jnp.inf for k in ("value", "se", "half_variance")},
            "quiet": jnp.int32(0),
            "count": zero,
            "lost": jnp.int32(0),
            "trouble": jnp.zeros_like(frame["centre"]),
            # No running moments of a gradient without noise.
            "m": zero,
            "v": zero,
            "lp": lp,
            "kept": jnp.asarray(False),
            "done": jnp.asarray(False),
        }

    def _optimiser(self) -> Any:
        import optax

        search = optax.scale_by_zoom_linesearch(max_linesearch_steps=_LINE_STEPS)
        return optax.lbfgs(memory_size=_MEMORY, linesearch=search)

    def _fresh(self, key: Array, target: Target) -> Array:
        size = target.program.flat.size
        return self.recipe.family.noise(key, 1, size, target.dtype)

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        import optax

        family, unravel = self.recipe.family, ravel_pytree(state["best"])[1]
        shift = state["shift"]
        noise = sobol_normal(shift, self.count(shift.shape[0]), target.dtype)
        log_p, optimiser = whitened(target, state["frame"]), self._optimiser()
        layout = jax.tree.structure(optimiser.init(state["params"]))

        def loss(flat: Array) -> Array:
            params = unravel(flat)
            w, log_q, _, _ = jax.vmap(lambda e: family.push(params, e))(noise)
            return -jnp.mean(jax.vmap(log_p)(w) - log_q)

        look = optax.value_and_grad_from_state(loss)

        def one(carry: dict[str, Any]) -> dict[str, Any]:
            flat, memory = carry["params"], jax.tree.unflatten(layout, carry["memory"])
            value, slope = look(flat, state=memory)
            more = {"value": value, "grad": slope, "value_fn": loss}
            change, memory = optimiser.update(slope, memory, flat, **more)
            ahead = optax.tree.get(memory, "value"), optax.tree.get(memory, "grad")
            return self._taken(
                carry, flat + change, jax.tree.leaves(memory), jnp.asarray(value), *ahead
            )

        names = ("params", "memory", "value", "slope", "quiet", "count", "lost", "done")
        carry = {**{k: state[k] for k in names}, "i": jnp.int32(0)}
        going = lambda c: (c["i"] < _BLOCK) & ~c["done"]  # noqa: E731
        carry = jax.lax.while_loop(going, one, carry)
        new = {**state, **{k: carry[k] for k in names}}
        new = self._judged(key, target, state, new, unravel(new["params"]))
        return new, {"objective": new["value"], "gradient": new["slope"]}

    def _taken(
        self,
        carry: dict[str, Any],
        flat: Array,
        memory: list[Array],
        before: Array,
        after: Array,
        slope: Array,
    ) -> dict[str, Any]:
        """The carry after an iteration; one that leads nowhere finite is not taken, and ends it."""
        fine = jnp.isfinite(after) & jnp.all(jnp.isfinite(slope)) & jnp.all(jnp.isfinite(flat))
        rounding = 8 * jnp.finfo(flat.dtype).eps * jnp.abs(before)
        least = jnp.maximum(0.01 * self.tolerance, rounding)
        quiet = jnp.where(before - after < least, carry["quiet"] + 1, 0)
        largest = jnp.max(jnp.abs(slope))
        pick = lambda a, b: jnp.where(fine, a, b)  # noqa: E731
        return {
            "params": pick(flat, carry["params"]),
            "memory": jax.tree.map(pick, memory, carry["memory"]),
            "value": pick(-after, carry["value"]).astype(flat.dtype),
            "slope": pick(largest, carry["slope"]),
            "quiet": quiet.astype(jnp.int32),
            "count": carry["count"] + 1.0,
            "lost": carry["lost"] + jnp.where(fine, 0, 1),
            "done": ~fine | (quiet >= 3) | (largest < _FLAT),
            "i": carry["i"] + 1,
        }

    def _judged(
        self, key: Array, target: Target, old: dict[str, Any], new: dict[str, Any], params: Any
    ) -> dict[str, Any]:
        """Once it is done: figures from fresh draws, of the better of the result and the start."""

        def look(carry: tuple) -> tuple:
            zero = jnp.zeros((), target.dtype)
            args = (target, new["frame"], params, new["best"], zero, _PAIRS)
            # The key depends on the count, lest the comparison be moved out of the loop.
            return carry[0] + 1, compare(self.recipe, jax.random.fold_in(key, carry[0]), *args)

        like = jax.eval_shape(lambda: look((jnp.int32(0), None))[1])
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        due = new["done"] & ~old["done"]
        # A loop of no or one iteration; see the module text of `_engine`.
        _, seen = jax.lax.while_loop(lambda c: (c[0] < 1) & due, look, (jnp.int32(0), blank))
        better = due & (seen["gain"] > 0)
        pick = lambda yes, a, b: jax.tree.map(lambda x, y: jnp.where(yes, x, y), a, b)  # noqa: E731
        return {
            **new,
            "best": pick(better, params, new["best"]),
            "figures": pick(due, pick(better, seen["new"], seen["old"]), new["figures"]),
            "kept": jnp.where(due, ~better, new["kept"]),
        }

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        none = ~jnp.isfinite(state["lp"])
        lost = none | (state["lost"] > 0)
        code = jnp.where(lost, int(Status.NONFINITE), int(Status.OK))
        return state["done"] | none, code.astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        if not np.any(state["done"]):
            # Cut before the comparison: the last point is the best, and not known better.
            unravel = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x[0]), state["best"]))[1]
            each = [unravel(jnp.asarray(x)) for x in state["params"]]
            state = {**state, "best": jax.tree.map(lambda *x: np.stack(x), *each)}
            figures = {**state["figures"], "value": state["value"]}
            state["figures"] = figures
        made = approximation(self.recipe, self.name, target, state, int(self.draws))
        values = np.where(state["done"], np.asarray(state["figures"]["value"], float), -np.inf)
        best = int(np.argmax(values))
        inside = float(state["value"][best])
        fixed = self.count(state["shift"].shape[1])
        stats = {**made.stats, "fixed_draws": fixed, "objective_of_fixed_draws": inside}
        stats.pop("gradient_snr", None)
        if not state["done"][best]:
            return replace(made, stats=stats)
        gap = inside - float(values[best])
        return replace(made, stats=stats, checks=(*made.checks, _optimism(gap, made, fixed)))


def _optimism(gap: float, made: Approximation, fixed: int) -> Check:
    """Whether the fixed draws say of the fit what fresh ones do."""
    limit = _OPTIMISM + 3.0 * float(made.stats["elbo_se"])
    good = bool(gap < limit)
    advice = f"more fixed draws: particles={4 * fixed}, or optimizer='adam'"
    where = f"nats between {fixed} fixed draws and fresh ones"
    return Check("fixed_draws", good, gap, limit, where, "" if good else advice)
