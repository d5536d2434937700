"""The static half of a declared Model's Target: its graph, evaluated in natural shapes.

Sites are visited in the order of the graph. A site's function is called with its parents' values,
each in the shape of its own dims; the distribution it returns is evaluated at the site's value.
Latent values come from the unconstrained space through ``biject_to(support)``,

    log p(z) = sum_s log p(x_s | parents) + log |dx_s / dz_s|,    x_s = T_s(z_s),

or, for a location-scale site with a centring choice, through `probkit.models._centring`. Discrete
latents are summed out by `probkit.models._enumerate`. There are no plates and no handlers: dims
with their sizes say what repeats. The cost is that of the functions themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform

from probkit.core import Batch, GaussianLatent, GaussianLatents, Program, Site, Terms
from probkit.core._target import scaled_sum
from probkit.models._centring import centre
from probkit.models._enumerate import Enumeration
from probkit.models._facts import Facts
from probkit.models._gp import GaussianProcess, check_memory, processes
from probkit.models._gp_conditional import residuals, workspace
from probkit.models._gp_latent import GraphLatent
from probkit.models._gp_latents import GraphLatents
from probkit.models._graph import consumers
from probkit.models._inside import checked_density, log_density, settled, trusted
from probkit.models._markov import Markov
from probkit.models._minibatch import check_batch
from probkit.models._nodes import Deterministic, Factor, RandomVariable
from probkit.models._observed import as_observed
from probkit.models._parameters import elementwise
from probkit.models._plan import Plan, View, missing_dim
from probkit.models._points import random_point, unconstrained_point
from probkit.models._simulate import score, simulate
from probkit.models._sites import call, check_distribution


class GraphProgram(Program):
    """See the module's text. Built by `bind`; hashed by identity."""

    def __init__(self, plan: Plan, facts: dict[str, Facts], missing: Mapping[str, np.ndarray]):
        super().__init__()
        self.plan = plan
        self.nodes = plan.nodes
        self.sizes = dict(plan.sizes)
        self.data_dims = plan.data_dims
        self.dtype = np.dtype(plan.dtype)
        self.facts = dict(facts)
        self.masks = {k: v.ndim for k, v in missing.items()}
        for name, own in facts.items():
            for dim, size in zip(own.dims, own.shape, strict=True):
                known = self.sizes.setdefault(dim, size)
                if known != size:
                    raise ValueError(
                        f"site {name!r}: its axis {dim!r} has length {size}, expected {known}; "
                        "make the distribution's shape agree with the dim"
                    )
        self.discrete = tuple(
            k for k, f in self.facts.items() if f.discrete and k not in plan.observed
        )
        self.barren = self._barren()
        self.summed = tuple(k for k in self.discrete if k not in self.barren)
        self.imputed = {k: n for k, n in plan.missing.items() if not self.facts[k].discrete}
        self._check_masked()
        self.sites = self._describe()
        self.shapes = {
            k: f.unconstrained
            for k, f in self.facts.items()
            if isinstance(self.nodes[k], RandomVariable)
            and k not in plan.observed
            and not f.discrete
        }
        self.shapes.update({f"{k}_missing": (n,) for k, n in self.imputed.items()})

    @cached_property
    def enumeration(self) -> Enumeration | None:
        """How discrete latents are summed out; None where there are none.

        Raises:
            ValueError: they cannot be summed out.
        """
        return Enumeration(self) if self.summed else None

    @cached_property
    def latent_or_none(self) -> GraphLatent | None:
        """What is known of the model's one Gaussian process, if it is of that form."""
        try:
            return GraphLatent(self)
        except ValueError:
            return None

    def gaussian_latent(self, arrays: dict) -> GaussianLatent:
        latent = self.latent_or_none
        # (Building it a second time raises with the reason.)
        latent = GraphLatent(self) if latent is None else latent
        return latent.checked(arrays)

    @cached_property
    def latents_or_none(self) -> GraphLatents | None:
        """What is known of the model's Gaussian processes, if they are of that form."""
        try:
            return GraphLatents(self)
        except ValueError:
            return None

    def gaussian_latents(self, arrays: dict) -> GaussianLatents:
        latents = self.latents_or_none
        # (Building it a second time raises with the reason.)
        latents = GraphLatents(self) if latents is None else latents
        return latents.checked(arrays)

    def workspace(self, arrays: dict) -> int:
        return workspace(self, arrays)

    def in_turn(self) -> bool:
        # Two batches of Cholesky factors at once can wait for each other for ever on a CPU: each
        # holds a thread of XLA's pool while jaxlib (0.10) divides its batch among the same threads.
        return len(processes(self.nodes)) > 1

    def carried(self, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        return residuals(self, values, arrays)

    # -- what there is ----------------------------------------------------------------------

    def _describe(self) -> dict[str, Site]:
        sites = {}
        for name, node in self.nodes.items():
            if isinstance(node, RandomVariable):
                f = self.facts[name]
                kind = "discrete" if f.discrete else "latent"
                kind = "observed" if name in self.plan.observed else kind
                sites[name] = Site(name, kind, f.dims, f.shape, f.support_words, f.distribution)
                if name in self.imputed:
                    own, dim = f"{name}_missing", missing_dim(name, f.dims)
                    shape = (self.imputed[name],)
                    self.sizes[dim] = shape[0]
                    sites[own] = Site(own, "imputed", (dim,), shape, f.support_words, "")
            elif isinstance(node, Deterministic) and not node.hidden:
                f = self.facts[name]
                sites[name] = Site(name, "deterministic", f.dims, f.shape)
            elif isinstance(node, Factor):
                kind = "observed" if node.likelihood else "factor"
                f = self.facts[name]
                sites[name] = Site(name, kind, f.dims, f.shape, "", "factor")
        return sites

    def _barren(self) -> frozenset[str]:
        """Discrete latents (and deterministics) that no term of the density depends on.

        They sum to one, whatever their support, and are simulated once the rest is known: an
        outcome to be predicted, for example.
        """
        out: set[str] = set()
        for name in reversed(self.nodes):
            if name in self.discrete or isinstance(self.nodes[name], Deterministic):
                if all(k in out for k in consumers(name, self.nodes)):
                    out.add(name)
        return frozenset(out)

    def _check_masked(self) -> None:
        for name in self.plan.missing:
            users = consumers(name, self.nodes)
            if self.facts[name].discrete and users:
                raise ValueError(
                    f"site {name!r}: it is discrete and has missing entries, and {users[0]!r} "
                    "depends on it; a missing discrete value can be predicted, but not passed on: "
                    "drop those rows, fill them, or leave the variable out of the data"
                )

    def pack(self, columns: dict, values: dict, missing: dict) -> dict:
        """The dynamic half of a Target: host arrays in the computation's dtypes."""
        arrays: dict[str, Any] = {
            "data": dict(columns),
            "observed": {k: as_observed(k, v, self.facts[k]) for k, v in values.items()},
            "index": {},
            "masked": {},
            "centred": {},
        }
        for name, mask in missing.items():
            arrays["masked"][name] = np.asarray(mask)
            if name in self.imputed:
                arrays["index"][name] = np.flatnonzero(mask).astype(np.int32)
        for name in self.centring_sites:
            arrays["centred"][name] = np.ones(self.facts[name].centring, bool)
        return arrays

    @property
    def centring_sites(self) -> tuple[str, ...]:
        """Sites whose centring is a traced choice."""
        return tuple(k for k, f in self.facts.items() if f.style == "auto")

    # -- walking the graph ------------------------------------------------------------------

    def view(self, arrays: dict, batch: Batch | None = None) -> View:
        """The arrays of an evaluation; with a batch, its rows."""
        parts = ("data", "observed", "index", "centred")
        data, observed, index, centred = (jax.tree.map(jnp.asarray, arrays[k]) for k in parts)
        plain = View(data, observed, index, centred, self.sizes)
        if batch is None:
            return plain
        check_batch(self, batch.dim)
        return self.rows_view(arrays, batch)

    def rows_view(self, arrays: dict, batch: Batch) -> View:
        """The rows of a batch, whether or not the log density is a sum over them."""
        plain = self.view(arrays)
        rows = batch.index.shape[0]
        part = View(
            plain.data,
            {},
            {},
            {},
            {**self.sizes, batch.dim: rows},
            batch,
            self.sizes[batch.dim] / rows,
        )
        data = {k: part.rows(v, self.data_dims[k]) for k, v in plain.data.items()}
        observed = {k: part.rows(v, self.facts[k].dims) for k, v in plain.observed.items()}
        centred = {k: part.rows(v, self.facts[k].dims) for k, v in plain.centred.items()}
        return View(data, observed, {}, centred, part.sizes, batch, part.factor)

    def arguments(self, name: str, env: Mapping[str, Any], view: View) -> dict[str, Any]:
        """The values of a node's parents: variables, columns, or (full) dim sizes."""
        node = self.nodes[name]
        out: dict[str, Any] = {}
        for parent in node.parents:
            if parent in node.sizes:
                out[parent] = self.sizes[node.sizes[parent]]
            elif parent in self.nodes:
                out[parent] = env[parent]
            elif parent in view.data:
                out[parent] = view.data[parent]
            elif parent in self.sizes and parent not in node.optional:
                out[parent] = self.sizes[parent]
        return out

    def distribution(self, name: str, env: Mapping[str, Any], view: View) -> Any:
        """The distribution of a site given its parents, as its function returns it."""
        if isinstance(self.nodes[name], GaussianProcess):
            check_memory(name, self.facts[name].shape[0], self.dtype)
        d = call(name, self.nodes[name], self.arguments(name, env, view))
        check_distribution(name, d)
        return d

    def batch_shape(self, name: str, view: View) -> tuple[int, ...]:
        """The natural batch shape of a site under a view."""
        f = self.facts[name]
        dims = f.dims[: len(f.batch_shape)]
        return tuple(view.sizes[d] for d in dims)

    def latent(self, name: str, d: Any, z: Array, view: View) -> tuple[Array, Array]:
        """Value of a continuous latent and its log density terms, Jacobian included."""
        f = self.facts[name]
        if f.style in ("auto", "noncentred"):
            weight = view.centred[name] if f.style == "auto" else False
            return centre(d, z, weight)
        transform = biject_to(d.support)
        if isinstance(transform, IdentityTransform):
            return z, log_density(d, z)
        value = transform(z)
        return value, log_density(d, value) + transform.log_abs_det_jacobian(z, value)

    def latent_value(self, name: str, d: Any, z: Array, view: View) -> Array:
        """The value alone: nothing is traced of a density that nobody asks for."""
        if self.facts[name].style in ("auto", "noncentred"):
            return self.latent(name, d, z, view)[0]
        return biject_to(d.support)(z)

    def filled(self, name: str, missing: Array | None, view: View) -> Array:
        """An observed value with its imputed entries put in."""
        value = view.observed[name]
        if missing is None:
            return value
        flat = value.reshape(-1).at[view.index[name]].set(missing)
        return flat.reshape(value.shape)

    def imputed_value(self, name: str, d: Any, z: Array, view: View) -> tuple[Array, Array]:
        """Imputed entries in the model's space, and their log Jacobian."""
        transform = self.imputed_transform(name, d, view)
        value = transform(z)
        return value, jnp.sum(transform.log_abs_det_jacobian(z, value))

    def imputed_transform(self, name: str, d: Any, view: View) -> Any:
        """From the reals onto the support of the missing entries, whose bounds may vary."""
        shape, index = self.facts[name].shape, view.index[name]

        def pick(bound: Any) -> Any:
            return jnp.broadcast_to(bound, shape).reshape(-1)[index] if np.ndim(bound) else bound

        return biject_to(jax.tree.map(pick, elementwise(d.support)))

    def holes(self, name: str, arrays: dict, view: View | None = None) -> Array:
        """Where the terms of an observed site belong to missing entries (of a view's rows)."""
        mask = jnp.asarray(arrays["masked"][name])
        if view is not None:
            mask = view.rows(mask, self.facts[name].dims)
        extra = tuple(range(len(self.facts[name].batch_shape), mask.ndim))
        return mask.any(axis=extra) if extra else mask

    def terms(self, name: str, d: Any, value: Array) -> Array:
        """Log density terms of an observed site; see `_inside` for what is not checked again."""
        inside = settled(self.facts[name])
        return log_density(d, value) if inside else checked_density(d, value)

    def observed_terms(
        self, name: str, d: Any, value: Array, arrays: dict, view: View
    ) -> tuple[Array, Array]:
        """Log density terms of an observed site, split into seen and missing entries."""
        terms = self.terms(name, d, value)
        if name not in arrays["masked"]:
            return terms, jnp.zeros((), self.dtype)
        terms = jnp.broadcast_to(terms, self.batch_shape(name, view))
        mask = self.holes(name, arrays, view)
        return jnp.where(mask, 0.0, terms), jnp.sum(jnp.where(mask, terms, 0.0))

    # -- the contract of Program ------------------------------------------------------------

    def evaluate(self, z: Mapping[str, Array], arrays: dict, batch: Batch | None = None) -> Terms:
        view = self.view(arrays, batch)
        if self.enumeration is not None:
            return self.enumeration.terms(z, arrays, view)
        env: dict[str, Any] = {}
        terms = Terms({}, {}, {})
        with trusted():
            for name in self.nodes:
                if name not in self.barren:
                    self.visit(name, env, z, arrays, view, terms)
        return terms

    def visit(self, name: str, env: dict, z: Any, arrays: dict, view: View, terms: Terms) -> None:
        """Evaluate one node whose parents are in ``env``: its value goes there, its terms too."""
        node = self.nodes[name]
        if isinstance(node, RandomVariable):
            self._visit(name, env, z, arrays, view, terms)
            return
        value = call(name, node, self.arguments(name, env, view))
        if isinstance(node, Deterministic):
            env[name] = value
        else:
            self._add_factor(name, value, view, terms)

    def _visit(self, name: str, env: dict, z: Any, arrays: dict, view: View, terms: Terms) -> None:
        d = self.distribution(name, env, view)
        dims = self.facts[name].dims
        if name not in self.plan.observed:
            own = view.rows(z[name], dims)
            env[name], lp = self.latent(name, d, own, view)
            terms.prior[name] = scaled_sum(lp, view.scale(dims))
            return
        missing, jacobian = None, 0.0
        if name in self.imputed:
            own = f"{name}_missing"
            missing, jacobian = self.imputed_value(name, d, z[own], view)
        env[name] = self.filled(name, missing, view)
        seen, unseen = self.observed_terms(name, d, env[name], arrays, view)
        terms.likelihood[name] = seen
        terms.scale[name] = view.scale(dims)
        if missing is not None:
            terms.prior[f"{name}_missing"] = unseen + jacobian

    def _add_factor(self, name: str, value: Any, view: View, terms: Terms) -> None:
        dims = self.facts[name].dims
        if self.nodes[name].likelihood:  # type: ignore[attr-defined]
            terms.likelihood[name] = jnp.asarray(value)
            terms.scale[name] = view.scale(dims)
        else:
            terms.prior[name] = scaled_sum(value, view.scale(dims))

    def constrain(self, key: Array, z: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        view = self.view(arrays)
        chosen: dict[str, Array] = {}
        if self.enumeration is not None:
            chosen = self.enumeration.draw(key, z, arrays, view)
        out = self._values(jax.random.fold_in(key, 1), z, view, chosen)
        return {k: out[k] for k in self.sites if k in out}

    def _values(
        self, key: Array, z: Mapping[str, Array], view: View, chosen: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Values of all sites that are reported, at an unconstrained point."""
        env: dict[str, Any] = {}
        out: dict[str, Array] = {}
        for i, (name, node) in enumerate(self.nodes.items()):
            if isinstance(node, Deterministic):
                env[name] = call(name, node, self.arguments(name, env, view))
                if not node.hidden:
                    out[name] = jnp.asarray(env[name])
            elif name in chosen:
                env[name] = out[name] = chosen[name]
            elif name in self.discrete:
                env[name] = out[name] = self.draw(jax.random.fold_in(key, i), name, env, view)
            elif isinstance(node, RandomVariable):
                d = self.distribution(name, env, view)
                if name in self.plan.observed:
                    missing = None
                    if name in self.imputed:
                        own = f"{name}_missing"
                        missing, _ = self.imputed_value(name, d, z[own], view)
                        out[own] = missing
                    env[name] = self.filled(name, missing, view)
                else:
                    env[name], _ = self.latent(name, d, z[name], view)
                    out[name] = jnp.broadcast_to(env[name], self.facts[name].shape)
        return out

    def unconstrain(self, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        return unconstrained_point(self, values, arrays)

    def draw(self, key: Array, name: str, env: Mapping[str, Any], view: View) -> Array:
        """A draw of a site given its parents, in its natural shape."""
        d = self.distribution(name, env, view)
        batch = self.batch_shape(name, view)
        return (d if d.batch_shape == batch else d.expand(batch)).sample(key)

    def independent_dims(self, name: str) -> tuple[str, ...]:
        f = self.facts[name]
        return tuple(d for d in f.dims[: len(f.batch_shape)] if d != self.time_dim(name))

    def feeds(self, name: str) -> bool:
        return bool(consumers(name, self.nodes))

    def time_dim(self, name: str) -> str | None:
        node = self.nodes[name]
        return node.time if isinstance(node, Markov) else None

    def simulate(self, key: Array, values: Mapping[str, Any], arrays: dict) -> dict[str, Array]:
        return simulate(self, key, values, arrays)

    def prior_point(self, key: Array, arrays: dict) -> dict[str, Array]:
        return random_point(self, key, arrays)

    def pointwise(self, z: Mapping[str, Array], values: Mapping[str, Array], arrays: dict) -> dict:
        out = self.score(jax.random.key(0), values, arrays)
        if self.enumeration is not None:
            out.update(self.enumeration.local_pointwise(z, arrays, self.view(arrays)))
        return out

    def score(self, key: Array, values: Mapping[str, Any], arrays: dict) -> dict[str, Array]:
        return score(self, key, values, arrays)
