r"""Amortised variational inference: a network tells each row's latent variables from its data.

Latents split into those of the rows, z_n (n = 1..N), and global ones, g:

    q(g, z) = N(g; m, diag s^2)  prod_n N(z_n; mu(x_n), diag sigma(x_n)^2),

where the guide maps a row's data x_n to ``(mu, log sigma)``. The evidence lower bound is estimated
from a mini-batch of B rows, whose latents alone are drawn:

    ELBO ~ log p(g) + N/B sum_b [log p(y_b | z_b, g) + log p(z_b | g) + H(q_b)] + H(q(g))

by reparameterised draws in antithetic pairs, the entropies in closed form. The guide, m and log s
climb by Adam, the step size falling to nothing along a cosine. Everything lives in the
unconstrained space.

Source: Kingma and Welling (2014), "Auto-encoding variational Bayes", equations 7 and 8; global
variables as in its appendix F. Cost of a step: ``particles`` passes of the guide and gradients of
the log density of B rows; the memory of a draw is that of all rows' latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit.core import (
    Approximation,
    Batch,
    Batches,
    Inference,
    Status,
    Target,
    check_between,
    check_count,
    listing,
    nearest,
)
from probkit.core._trees import in_precision
from probkit.inference.vi._emphasis import adam, settled
from probkit.inference.vi._family import LOG_2PI

_FIRST_SD, _WIDEST = 0.05, 10.0


@dataclass(frozen=True, eq=False)
class _Rest:
    """What of a guide is no array (activations and the like); hashed by identity."""

    tree: Any


class Amortised(Inference):
    """Row latents by a guide, global latents by a mean-field Gaussian; see `VI`'s ``guide``.

    Args:
        guide: a callable equinox module from a row's inputs, one vector, to a vector of twice as
            many numbers as the row has latents: means, then log sds, in the order of the sites.
        inputs: names of the data that the guide reads, their rows flattened and put one after the
            other; None takes the observed variables.
        draws, steps, step_size, particles, batch_size, dim: as in `VI`.

    Raises:
        TypeError, ValueError: a guide that cannot be called, or (when fitting) one whose output
            has another length, inputs that do not exist, a model without latents along the rows.
    """

    arrays: Any
    rest: _Rest = eqx.field(static=True)
    draws: int
    steps: int
    step_size: float
    inputs: tuple[str, ...] = eqx.field(static=True)
    particles: int = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    dim: str | None = eqx.field(static=True)

    def __init__(
        self,
        guide: Any,
        inputs: str | tuple[str, ...] | None = None,
        draws: int = 1000,
        steps: int = 5000,
        step_size: float = 0.01,
        particles: int = 2,
        batch_size: int | None = None,
        dim: str | None = None,
    ):
        if not callable(guide):
            raise TypeError(
                f"VI(guide): expected a callable equinox module, found {type(guide).__name__}"
            )
        self.arrays, rest = eqx.partition(guide, eqx.is_inexact_array)
        if not jax.tree.leaves(self.arrays):
            raise TypeError(
                "VI(guide): expected an equinox module with floating arrays to learn, found "
                f"{type(guide).__name__} with none"
            )
        self.rest = _Rest(rest)
        self.inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs or ())
        self.draws = check_count("VI(draws)", draws)
        self.steps = check_count("VI(max_steps)", steps, least=20)
        self.step_size = check_between("VI(step_size)", step_size, 0.0, math.inf)
        self.particles = check_count("VI(particles)", particles)
        self.batch_size = None if batch_size is None else check_count("VI(batch_size)", batch_size)
        self.dim = dim

    @property
    def chains(self) -> int:
        return 1

    @property
    def num_steps(self) -> int:
        return int(self.steps)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("latents", "likelihood")

    @property
    def batches(self) -> Batches | None:
        return None if self.batch_size is None else Batches(self.batch_size, self.dim)

    def trained(self, arrays: Any) -> Callable[[Array], Array]:
        """The guide with learned arrays."""
        return eqx.combine(arrays, self.rest.tree)

    # -- the contract -------------------------------------------------------------------------

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        rows = _rows_of(target, self.dim, self.inputs)
        rows.check_guide(self.trained(self.arrays), target)
        point = target.program.prior_point(key, target.arrays)
        # A prior draw tells the weights of a network apart; single numbers begin in the middle.
        start = [
            jnp.ravel(point[k]) * (1.0 if target.program.shapes[k] else 0.0) for k in rows.shared
        ]
        loc = jnp.concatenate([*start, jnp.zeros(0)]).astype(target.dtype)
        loc = jnp.where(jnp.isfinite(loc), loc, 0.0)
        guide = jax.tree.map(lambda x: jnp.asarray(x, target.dtype), self.arrays)
        log_sd = jnp.full_like(loc, math.log(_FIRST_SD))
        params = {"guide": guide, "loc": loc, "log_sd": log_sd}
        blank = jax.tree.map(jnp.zeros_like, params)
        return {"params": params, "m": blank, "v": blank, "lost": jnp.asarray(False)}

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        loss = lambda p: -self._elbo(key, target, p, batch)  # noqa: E731
        value, slope = jax.value_and_grad(loss)(state["params"])
        finite = jnp.isfinite(value)
        for leaf in jax.tree.leaves(slope):
            finite = finite & jnp.all(jnp.isfinite(leaf))
        time = t.astype(target.dtype)
        fall = 0.5 * (1.0 + jnp.cos(jnp.pi * time / self.steps))
        new = adam(state, slope, jnp.asarray(self.step_size, target.dtype) * fall, time)
        # A step that is not finite is not taken: the last good state stays.
        new = {k: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new[k], state[k]) for k in new}
        return {**new, "lost": ~finite}, {"objective": -value}

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        code = jnp.where(state["lost"], int(Status.NONFINITE), int(Status.OK))
        return state["lost"], code.astype(jnp.int32)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        params = jax.tree.map(lambda x: np.asarray(x)[0], state["params"])
        rows = _rows_of(target, self.dim, self.inputs)
        with in_precision(target.dtype):
            fit = jax.jit(lambda p, arrays: self._whole(rows, p, arrays, target))
            mean, sd = (np.asarray(x) for x in fit(params, target.arrays))
        tail = max(history["objective"].shape[1] // 20, 1)
        late = np.asarray(history["objective"][0, -tail:], float)
        check = settled(history["objective"][0], tail, float(max(target.num_data, 1)))
        stats = {
            "family": "amortised",
            "objective": "elbo",
            "elbo": float(late.mean()),
            "elbo_se": float(late.std() / math.sqrt(tail)),
            "rows": rows.total,
        }
        return Approximation(
            sample=_sample,
            log_density=_log_density,
            params={"mean": mean, "sd": sd, "guide": params["guide"]},
            draws=int(self.draws),
            key="amortised",
            stats=stats,
            status=Status.OK if check.ok else Status.MAX_STEPS,
            checks=(check,),
        )

    # -- the bound ----------------------------------------------------------------------------

    def _encoded(self, params: dict[str, Any], x: Array) -> tuple[Array, Array]:
        """Means and log sds of the latents of rows ``x`` (B, p), shapes ``(B, k)``."""
        out = jax.vmap(self.trained(params["guide"]))(x)
        loc, log_sd = jnp.split(out, 2, axis=1)
        return loc, jnp.clip(log_sd, -_WIDEST, _WIDEST)

    def _elbo(
        self, key: Array, target: Target, params: dict[str, Any], batch: Batch | None
    ) -> Array:
        rows = _rows_of(target, self.dim, self.inputs)
        index = jnp.arange(rows.total) if batch is None else jnp.asarray(batch.index)
        loc, log_sd = self._encoded(params, rows.read(target.arrays)[index])
        first, second = jax.random.split(key)
        half = -(-self.particles // 2)
        own = jax.random.normal(first, (half, *loc.shape), loc.dtype)
        other = jax.random.normal(second, (half, params["loc"].shape[0]), loc.dtype)

        def one(own: Array, other: Array) -> Array:
            shared = params["loc"] + jnp.exp(params["log_sd"]) * other
            z = rows.point(shared, loc + jnp.exp(log_sd) * own, index, target)
            return target.log_density(z, batch)

        log_p = jax.vmap(one)(jnp.concatenate([own, -own]), jnp.concatenate([other, -other]))
        scale = rows.total / index.shape[0]
        entropy = scale * jnp.sum(log_sd) + jnp.sum(params["log_sd"])
        size = target.program.flat.size
        return jnp.mean(log_p) + entropy + 0.5 * size * (1.0 + LOG_2PI)

    def _whole(
        self, rows: _Rows, params: dict[str, Any], arrays: dict, target: Target
    ) -> tuple[Array, Array]:
        """Mean and sd of every coordinate, shape ``(d,)``: the guide's at all rows."""
        loc, log_sd = self._encoded(params, rows.read(arrays))
        index = jnp.arange(rows.total)
        flat = target.program.flat
        mean = flat.ravel(rows.point(params["loc"], loc, index, target))
        return mean, jnp.exp(flat.ravel(rows.point(params["log_sd"], log_sd, index, target)))


@dataclass(frozen=True)
class _Rows:
    """Which latents belong to the rows, which are shared, and what the guide reads."""

    dim: str
    total: int
    own: dict[str, tuple[int, ...]]
    shared: dict[str, tuple[int, ...]]
    inputs: tuple[str, ...]

    def read(self, arrays: dict) -> Array:
        """The guide's inputs, shape ``(N, p)``."""
        found = [arrays["observed"].get(k, arrays["data"].get(k)) for k in self.inputs]
        parts = [jnp.reshape(jnp.asarray(x), (self.total, -1)) for x in found]
        dtype = jnp.result_type(float, *(x.dtype for x in parts if x.dtype.kind == "f"))
        return jnp.concatenate([x.astype(dtype) for x in parts], axis=1)

    def point(self, shared: Array, own: Array, index: Array, target: Target) -> dict[str, Array]:
        """The dictionary of unconstrained arrays; rows outside ``index`` are zero."""
        out, position = {}, 0
        for name, shape in self.shared.items():
            size = math.prod(shape)
            out[name] = shared[position : position + size].reshape(shape)
            position += size
        position = 0
        for name, shape in self.own.items():
            size = math.prod(shape[1:])
            part = own[:, position : position + size].reshape(-1, *shape[1:])
            out[name] = jnp.zeros(shape, own.dtype).at[index].set(part)
            position += size
        return {k: out[k] for k in target.program.shapes}

    def check_guide(self, guide: Callable, target: Target) -> None:
        """Raise a ValueError where the guide's output does not fit the rows' latents."""
        width = jax.eval_shape(self.read, target.arrays).shape[1]
        wanted = 2 * sum(math.prod(shape[1:]) for shape in self.own.values())
        like = jax.ShapeDtypeStruct((width,), target.dtype)
        try:
            found = jax.eval_shape(guide, like)
        except Exception as error:
            raise ValueError(
                f"VI(guide): the guide does not take a vector of {width} numbers, which is a row "
                f"of {listing(self.inputs)}: {error}"
            ) from error
        if getattr(found, "shape", None) != (wanted,):
            raise ValueError(
                f"VI(guide): expected a vector of {wanted} numbers, a mean and a log sd for each "
                f"latent of a row ({listing(self.own)}), found {getattr(found, 'shape', found)}"
            )


def _rows_of(target: Target, dim: str | None, inputs: tuple[str, ...]) -> _Rows:
    program = target.program
    observed = {k: s.dims for k, s in target.sites.items() if s.kind == "observed"}
    if dim is None:
        dim = next((dims[0] for dims in observed.values() if dims), None)
    if dim is None or dim not in program.sizes:
        raise ValueError(
            f"VI(guide): expected rows along a dim, found {dim!r}; name it with dim=. The model's "
            f"dims are {listing(program.sizes)}."
        )
    total, own, shared = program.sizes[dim], {}, {}
    for name, shape in program.shapes.items():
        axes: tuple[str, ...] = target.sites[name].dims if name in target.sites else ()
        if dim not in axes:
            shared[name] = shape
        elif axes[:1] == (dim,) and shape[:1] == (total,):
            own[name] = shape
        else:
            raise ValueError(
                f"VI(guide): site {name!r} has dims {axes}; its rows, {dim!r}, must be its first "
                "dim for a guide to tell them one by one"
            )
    if not own:
        raise ValueError(
            f"VI(guide): no latent variable has the dim {dim!r}, so that a guide has nothing to "
            f"tell; latent sites are {listing(program.shapes)}"
        )
    known = {**target.arrays["data"], **target.arrays["observed"]}
    inputs = inputs or tuple(k for k, dims in observed.items() if dims[:1] == (dim,))
    for name in inputs:
        if name not in known:
            raise ValueError(
                f"VI(inputs): the data have no {name!r}.{nearest(name, known)} They are "
                f"{listing(known)}."
            )
    return _Rows(dim, total, own, shared, inputs)


def _sample(params: dict[str, Any], key: Array, n: int) -> Array:
    noise = jax.random.normal(key, (n, params["mean"].shape[0]), params["mean"].dtype)
    return params["mean"] + params["sd"] * noise


def _log_density(params: dict[str, Any], z: Array) -> Array:
    white = (z - params["mean"]) / params["sd"]
    return -0.5 * jnp.sum(white**2 + LOG_2PI) - jnp.sum(jnp.log(params["sd"]))
