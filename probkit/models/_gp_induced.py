r"""A model with a Gaussian process seen through its values at inducing points.

    theta ~ p(theta),    u = g(Z) ~ N(0, K_ZZ),    f = m + g,    f_i | u  independent by row

``g`` is the process less its mean. The unconstrained space is that of ``theta`` and ``u``: O(m)
numbers whatever the rows are. Rows (those of the data and new ones) are drawn given ``u`` by the
road that new rows of any process take (`_gp_conditional`), with Z in the place of the old points;
likelihood terms integrate each row's own normal given ``u``, which is the density of a fully
independent training conditional (Quinonero-Candela and Rasmussen 2005, section 6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

from probkit.core import Batch, Program, Site, Target, Terms
from probkit.models._gp_conditional import robust_cholesky, workspace
from probkit.models._nodes import Deterministic
from probkit.models.kernels._kernel import cross_covariance

if TYPE_CHECKING:
    from probkit.models._gp_latent import GraphLatent

DIM = "inducing"


class InducedProgram(Program):
    """The static half; ``arrays`` are the data's own with the inducing points among them."""

    def __init__(self, latent: GraphLatent, count: int):
        super().__init__()
        base = latent.program
        self.latent, self.base = latent, base
        self.site = f"{latent.name}_inducing"
        self.sizes = {**base.sizes, DIM: count}
        self.data_dims, self.dtype = base.data_dims, base.dtype
        self.shapes = {**latent.theta.shapes, self.site: (count,)}
        gone = {k for k in latent.inside if isinstance(base.nodes[k], Deterministic)}
        self.sites = {k: s for k, s in base.sites.items() if k not in {*gone, latent.name}}
        self.sites[self.site] = Site(self.site, "latent", (DIM,), (count,), "real", "Normal")

    # -- walking ----------------------------------------------------------------------------

    def _beside(self, z: Mapping[str, Array], arrays: dict) -> tuple[dict[str, Any], Terms]:
        """Values and terms of every node that does not depend on the function."""
        theta = self.latent.theta.ravel(z)
        wanted = [k for k in self.base.nodes if k != self.latent.name]
        wanted = [k for k in wanted if k not in self.latent.inside]
        return self.latent._walk(wanted, theta, arrays, self.base.view(arrays))

    def _factor(self, env: Mapping[str, Any], arrays: dict) -> Array:
        """The lower factor of ``K_ZZ``, given the values of the process' parents."""
        process, view = self.latent.node.process, self.base.view(arrays)
        kernel = process.kernel_of(self.base.arguments(self.latent.name, env, view))
        x = jnp.asarray(arrays["process"][self.latent.name], self.dtype)
        gram = cross_covariance(kernel, x, x)
        share = arrays["process_jitter"][self.latent.name]
        return robust_cholesky(gram, share * jnp.mean(jnp.diagonal(gram)))

    def _held(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the base's names: the residual at Z stands under the process' own."""
        out = {k: v for k, v in values.items() if k != self.site}
        if self.site in values:
            out[self.latent.name] = values[self.site]
        return out

    # -- the contract of Program ------------------------------------------------------------

    def evaluate(self, z: Mapping[str, Array], arrays: dict, batch: Batch | None = None) -> Terms:
        if batch is not None:
            raise ValueError(
                f"site {self.site!r}: the density given inducing points takes all rows; leave the "
                "batches out"
            )
        env, terms = self._beside(z, arrays)
        tril = self._factor(env, arrays)
        white = solve_triangular(tril, z[self.site], lower=True)
        log_det = jnp.sum(jnp.log(jnp.diagonal(tril)))
        size = white.shape[0]
        prior = -0.5 * jnp.dot(white, white) - log_det - 0.5 * size * np.log(2.0 * np.pi)
        likelihood = self.pointwise(z, {**env, self.site: z[self.site]}, arrays)
        return Terms({**terms.prior, self.site: prior}, likelihood)

    def pointwise(self, z: Mapping[str, Array], values: Mapping[str, Array], arrays: dict) -> dict:
        return self.score(jax.random.key(0), values, arrays)

    def constrain(self, key: Array, z: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        env, _ = self._beside(z, arrays)
        values = {**env, self.site: z[self.site]}
        kinds = ("latent", "deterministic")
        return {k: jnp.asarray(values[k]) for k, s in self.sites.items() if s.kind in kinds}

    def unconstrain(self, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        # The base asks for the process' values at its rows, which do not matter to the rest.
        rows = jnp.zeros(self.latent.size, self.dtype)
        out = self.base.unconstrain({**values, self.latent.name: rows}, arrays)
        own = jnp.asarray(values[self.site], self.dtype)
        return {**{k: out[k] for k in self.latent.theta.shapes}, self.site: own}

    def simulate(self, key: Array, values: Mapping[str, Any], arrays: dict) -> dict[str, Array]:
        held = self._held(values)
        if self.latent.name in held:
            return self.base.simulate(key, held, arrays)
        # The process is drawn from its prior at Z first: its parents are drawn by the same key.
        zero = jnp.zeros(self.sizes[DIM], self.dtype)
        env = {**self.base.simulate(key, {**held, self.latent.name: zero}, arrays), **held}
        noise = jax.random.normal(jax.random.fold_in(key, 2**31 - 1), zero.shape, self.dtype)
        u = self._factor(env, arrays) @ noise
        out = self.base.simulate(key, {**held, self.latent.name: u}, arrays)
        return {**{k: v for k, v in out.items() if k in self.sites}, self.site: u}

    def score(self, key: Array, values: Mapping[str, Any], arrays: dict) -> dict[str, Array]:
        return self.base.score(key, self._held(values), arrays)

    def prior_point(self, key: Array, arrays: dict) -> dict[str, Array]:
        aside = jax.random.uniform(key, (self.latent.theta.size,), self.dtype, -2.0, 2.0)
        theta = self.latent.theta.unravel(jnp.asarray(self.latent.centre, self.dtype) + aside)
        return {**theta, self.site: jnp.zeros(self.sizes[DIM], self.dtype)}

    def independent_dims(self, name: str) -> tuple[str, ...]:
        return () if name == self.site else self.base.independent_dims(name)

    def gaussian_latent(self, arrays: dict) -> Any:
        raise ValueError("it is a sparse approximation's own; fit the model that it came from")

    def carried(self, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        return {self.latent.name: values[self.site]}

    def workspace(self, arrays: dict) -> int:
        return workspace(self.base, arrays)


def induced_target(
    latent: GraphLatent, target: Target, points: np.ndarray, jitter: float
) -> Target:
    """See `probkit.core.GaussianLatent.induced`."""
    program = target.program.cached(
        ("induced", len(points)), lambda: InducedProgram(latent, len(points))
    )
    coords = {**target.labels.coords, DIM: np.arange(len(points))}
    rebind = partial(_rebound, target, latent.name, points, jitter)
    labels = dataclasses.replace(target.labels, coords=coords, rebind=rebind)
    return Target(program, {**_rest(target), **_own(target, latent.name, points, jitter)}, labels)


def _rest(target: Target) -> dict:
    return {k: v for k, v in target.arrays.items() if k != "latent"}


def _own(target: Target, name: str, points: np.ndarray, jitter: float) -> dict:
    """The inducing points as what rows are drawn from, among a Target's arrays."""
    # Each row's terms are integrated where they depend on that row alone.
    apart: dict = {"pointwise": ()} if "by_row" in target.arrays["latent"] else {}
    return {
        "process": {name: points.astype(target.dtype)},
        "process_jitter": {name: np.asarray(jitter, target.dtype)},
        **apart,
    }


def _rebound(
    target: Target, name: str, points: np.ndarray, jitter: float, data: Any, **options: Any
) -> Target:
    """The model bound to new data, rows drawn given the values at the inducing points."""
    rebind = target.labels.rebind
    assert rebind is not None  # a declared model's Target has one
    new = rebind(data, **{**options, "like": target})
    return Target(new.program, {**_rest(new), **_own(target, name, points, jitter)}, new.labels)
