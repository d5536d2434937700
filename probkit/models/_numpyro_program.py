"""The static half of a Target made from a NumPyro model function.

The function is run under NumPyro's handlers: latent values come from the unconstrained space
through ``biject_to(support)``, and each site's density is that of the distribution which the run
hands to it,

    log p(z) = sum_s log p(x_s | ...) + log |dx_s / dz_s|,    x_s = T_s(z_s).

Discrete latents are summed out by NumPyro's enumeration (funsor) and drawn afterwards from their
posterior. Values keep their natural shapes here: axes of length one that only keep a place for a
plate are dropped. One run of the function a density; compiled, the handlers leave no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import biject_to

from probkit.core import Batch, Program, Site, Terms, listing, nearest
from probkit.models._numpyro_sites import NumpyroSite, describe, log_prob_of, mask_of


class NumpyroProgram(Program):
    """See the module's text. Built by `NumpyroModel.bind`; hashed by identity."""

    def __init__(
        self,
        fn: Callable[..., Any],
        static: Mapping[str, Any],
        example: Mapping[str, np.ndarray],
        dims: Mapping[str, tuple[str, ...]],
        fixed: Mapping[str, np.ndarray],
    ):
        super().__init__()
        self.fn, self.static, self.fixed = fn, dict(static), dict(fixed)
        self.dtype = np.dtype(jnp.result_type(float))
        self.sizes: dict[str, int] = {}
        self.data_dims: dict[str, tuple[str | None, ...]] = {}
        self.facts: dict[str, NumpyroSite] = {}
        jax.eval_shape(lambda a: self._look(a, dims), dict(example))
        self.sites = {
            k: Site(k, f.kind, f.dims, f.shape, f.support, f.distribution)
            for k, f in self.facts.items()
        }
        self.shapes = {k: f.unconstrained for k, f in self.facts.items() if f.kind == "latent"}
        self.nesting = max((f.nesting for f in self.facts.values()), default=0)
        self.discrete = tuple(k for k, f in self.facts.items() if f.kind == "discrete")

    # -- what there is ----------------------------------------------------------------------

    def _look(self, arrays: dict, dims: Mapping[str, tuple[str, ...]]) -> Array:
        trace = self._trace(arrays, jax.random.key(0), lambda site: None)
        for name, site in trace.items():
            if site["type"] == "plate":
                self._check_plate(name, site)
            elif site["type"] == "param":
                raise ValueError(
                    f"site {name!r}: numpyro.param is a value to optimise and no random variable; "
                    "give it a prior with numpyro.sample, or pass it as data"
                )
            elif site["type"] in ("sample", "deterministic"):
                found = describe(name, site, dims.get(name))
                self.facts[name] = found
                self._put_sizes(name, found.dims, found.shape)
        unknown = [k for k in dims if k not in self.facts and k not in arrays]
        if unknown:
            raise ValueError(
                f"dims: the model has no site or data {unknown[0]!r}."
                f"{nearest(unknown[0], self.facts)} Its sites are {listing(self.facts)}."
            )
        return jnp.zeros(())

    def _check_plate(self, name: str, site: Mapping[str, Any]) -> None:
        size, part = site["args"]
        if part is not None and part != size:
            raise ValueError(
                f"plate {name!r}: it takes {part} of its {size} rows at random, which would hide "
                "the others; leave subsample_size out and let the method take mini-batches"
            )

    def _put_sizes(self, name: str, dims: tuple[str, ...], shape: tuple[int, ...]) -> None:
        for dim, size in zip(dims, shape, strict=True):
            known = self.sizes.setdefault(dim, size)
            if known != size:
                raise ValueError(
                    f"site {name!r}: its dim {dim!r} has length {size}, but {known} elsewhere; "
                    "give the plates different names, or name the site's dims with dims="
                )

    # -- running the function ---------------------------------------------------------------

    def _trace(self, arrays: dict, key: Array, value_of: Callable[[Any], Any]) -> dict[str, Any]:
        model = handlers.substitute(handlers.seed(self.fn, key), substitute_fn=value_of)
        return handlers.trace(model).get_trace(**self.static, **self.fixed, **arrays)

    def _from_z(self, z: Mapping[str, Array]) -> Callable[[Any], Any]:
        """Values of latent sites at an unconstrained point; None leaves a site alone."""

        def value_of(site: Any) -> Any:
            if site["type"] != "sample" or site["name"] not in z:
                return None
            transform = biject_to(site["fn"].support)
            own = jnp.asarray(z[site["name"]])
            # Inside a NumPyro scan, sites are visited one time point at a time.
            step = site["infer"].get("_scan_current_index")
            inner = transform.inverse_shape(tuple(site["fn"].shape()))
            if step is not None and own.ndim > len(inner):
                own = own[step]
            return transform(own)

        return value_of

    def _from_values(self, values: Mapping[str, Any], key: Array) -> Callable[[Any], Any]:
        """Held values of sites; a pair ``(value, mask)`` holds a part and draws the rest."""
        numbers = {k: i for i, k in enumerate(self.facts)}

        def value_of(site: Any) -> Any:
            name = site["name"]
            if site["type"] != "sample" or name not in values or site["is_observed"]:
                return None
            held = values[name]
            shape = tuple(site["fn"].shape())
            if not isinstance(held, tuple):
                return self._full(name, held, shape)
            known, mask = (self._full(name, x, shape) for x in held)
            draw = site["fn"].sample(jax.random.fold_in(key, numbers[name]))
            return jnp.where(mask, known, draw)

        return value_of

    def _full(self, name: str, value: Any, shape: tuple[int, ...]) -> Array:
        value = jnp.asarray(value)
        full = self.facts[name].full_shape
        return value.reshape(full if value.size == int(np.prod(full)) else shape)

    # -- the density ------------------------------------------------------------------------

    def evaluate(self, z: Mapping[str, Array], arrays: dict, batch: Batch | None = None) -> Terms:
        if self.discrete:
            return self._enumerated(z, arrays, batch)
        data, factor = arrays["data"], {}
        if batch is not None:
            data, z, factor = self._rows(z, arrays, batch)
        trace = self._guarded_trace(data, z, batch)
        terms = Terms({}, {}, {})
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            f = self.facts[name]
            lp = log_prob_of(site)
            if f.kind == "latent":
                value = jnp.sum(lp) + self._jacobian(site, z[name])
                terms.prior[name] = value * factor.get(name, 1.0)
            elif f.kind == "factor":
                terms.prior[name] = jnp.sum(lp) * factor.get(name, 1.0)
            else:
                terms.likelihood[name] = self._natural_terms(name, lp)
                terms.scale[name] = factor.get(name, 1.0)
        return terms

    def _guarded_trace(self, data: dict, z: Mapping[str, Array], batch: Batch | None) -> dict:
        try:
            return self._trace(data, jax.random.key(0), self._from_z(z))
        except (TypeError, ValueError, AssertionError) as error:
            if batch is None:
                raise
            raise ValueError(
                f"mini-batches along {batch.dim!r}: the function fails on a part of its rows "
                f"({type(error).__name__}: {str(error).splitlines()[0]}); let the sizes of its "
                "plates follow from the data's shapes"
            ) from error

    def _rows(
        self, z: Mapping[str, Array], arrays: dict, batch: Batch
    ) -> tuple[dict, dict[str, Array], dict[str, float]]:
        """Data and latents of a batch's rows, and the factor of each site that has its dim."""
        dim, size = batch.dim, self.sizes[batch.dim]
        if self.fixed:
            raise ValueError(
                "mini-batches: the model function computes with the values of "
                f"{listing(self.fixed)} outside of JAX, so that parts of them cannot be passed; "
                "write it with jax.numpy, and pass sizes as whole numbers"
            )
        unnamed = [
            k
            for k, axes in self.data_dims.items()
            if None in axes and size in np.shape(arrays["data"][k])
        ]
        if unnamed:
            raise ValueError(
                f"mini-batches along {dim!r}: it is not known which axis of data {unnamed[0]!r} "
                f"are its rows; name them with dims={{{unnamed[0]!r}: (...)}}"
            )

        def take(value: Any, dims: tuple) -> Array:
            if dim not in dims:
                return jnp.asarray(value)
            return jnp.take(jnp.asarray(value), batch.index, axis=dims.index(dim))

        data = {k: take(v, self.data_dims[k]) for k, v in arrays["data"].items()}
        part = {}
        for name, value in z.items():
            f = self.facts[name]
            if f.unconstrained != f.full_shape and dim in f.dims:
                raise ValueError(
                    f"mini-batches along {dim!r}: site {name!r} has that dim and other axes in the "
                    "unconstrained space than in the model's; take all rows"
                )
            part[name] = take(value, f.placed)
        scale = size / batch.index.shape[0]
        return data, part, {k: scale for k, f in self.facts.items() if dim in (*f.dims, *f.plates)}

    def _jacobian(self, site: Mapping[str, Any], z: Array) -> Array:
        transform = biject_to(site["fn"].support)
        return jnp.sum(transform.log_abs_det_jacobian(jnp.asarray(z), site["value"]))

    def _natural_terms(self, name: str, terms: Array) -> Array:
        """Log density terms without place-holders; their shape follows the rows of a batch."""
        f = self.facts[name]
        batch = len(f.placed) - f.event
        kept = [i for i in range(batch) if f.placed[i]]
        terms = jnp.reshape(terms, (*(1,) * (batch - jnp.ndim(terms)), *jnp.shape(terms)))
        return jnp.reshape(terms, tuple(terms.shape[i] for i in kept))

    # -- discrete latents -------------------------------------------------------------------

    def _check_discrete(self) -> None:
        for name in self.discrete:
            if not self.facts[name].enumerable:
                raise ValueError(
                    f"site {name!r}: the discrete {self.facts[name].distribution} is not observed "
                    "and cannot be summed out, since its support is not finite; expected a latent "
                    "with finitely many values such as Categorical or Bernoulli, or data for it"
                )

    def _enumerated(self, z: Mapping[str, Array], arrays: dict, batch: Batch | None) -> Terms:
        """All factors with discrete latents as one term; priors of the others apart."""
        self._check_discrete()
        if batch is not None:
            raise ValueError(
                "mini-batches: a model with summed-out variables needs all of its rows; use a "
                "method without mini-batches"
            )
        from numpyro.contrib.funsor import config_enumerate, enum, log_density

        seeded = handlers.substitute(
            handlers.seed(self.fn, jax.random.key(0)), substitute_fn=self._from_z(z)
        )
        model = enum(config_enumerate(seeded), first_available_dim=-self.nesting - 1)
        kwargs = {**self.static, **self.fixed, **arrays["data"]}
        joint, trace = log_density(model, (), kwargs, {})
        terms = Terms({}, {}, {})
        rest = jnp.asarray(joint)
        for name in self.shapes:
            site = trace[name]
            lp = log_prob_of(site)
            apart = all(n in self.sizes for n in site["infer"]["dim_to_name"].values())
            own = jnp.sum(lp) if apart else jnp.zeros(())
            rest = rest - own
            terms.prior[name] = own + self._jacobian(site, z[name])
        observed = [k for k, f in self.facts.items() if f.kind == "observed"]
        place = terms.likelihood if observed else terms.prior
        place["+".join(observed or self.discrete)] = rest
        return terms

    def _draw_discrete(self, key: Array, z: Mapping[str, Array], arrays: dict) -> dict[str, Any]:
        """A run with the discrete latents drawn from their posterior given everything else."""
        from numpyro.contrib.funsor import config_enumerate, infer_discrete

        key_seed, key_draw = jax.random.split(key)
        seeded = handlers.substitute(
            handlers.seed(self.fn, key_seed), substitute_fn=self._from_z(z)
        )
        model = infer_discrete(
            config_enumerate(seeded),
            first_available_dim=-self.nesting - 1,
            temperature=1,
            rng_key=key_draw,
        )
        kwargs = {**self.static, **self.fixed, **arrays["data"]}
        return handlers.trace(model).get_trace(**kwargs)

    # -- the rest of the contract -----------------------------------------------------------

    def constrain(self, key: Array, z: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        if self.discrete:
            trace = self._draw_discrete(key, z, arrays)
        else:
            trace = self._trace(arrays["data"], key, self._from_z(z))
        return {
            k: jnp.reshape(trace[k]["value"], f.shape)
            for k, f in self.facts.items()
            if f.kind in ("latent", "discrete", "deterministic")
        }

    def unconstrain(self, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        held = {k: v for k, v in values.items() if k in self.shapes or k in self.discrete}
        key = jax.random.key(0)
        trace = self._trace(arrays["data"], key, self._from_values(held, key))
        return {
            k: biject_to(trace[k]["fn"].support)._inverse(trace[k]["value"]) for k in self.shapes
        }

    def simulate(self, key: Array, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        keys = jax.random.split(key, 3)
        trace = self._trace(arrays["data"], keys[0], self._from_values(values, keys[1]))
        out: dict[str, Array] = {}
        for i, (name, f) in enumerate(self.facts.items()):
            if f.kind == "factor" or (name in values and not isinstance(values[name], tuple)):
                continue
            value = trace[name]["value"]
            if f.kind == "observed":
                # The run itself saw the data; a replicate is drawn from the site's distribution.
                value = trace[name]["fn"].sample(jax.random.fold_in(keys[2], i))
            out[name] = jnp.reshape(value, f.shape)
        return out

    def prior_point(self, key: Array, arrays: dict) -> dict[str, Array]:
        return {
            name: jax.random.uniform(jax.random.fold_in(key, i), shape, self.dtype, -2.0, 2.0)
            for i, (name, shape) in enumerate(self.shapes.items())
        }

    def pointwise(self, z: Mapping[str, Array], values: Mapping[str, Array], arrays: dict) -> dict:
        return self.score(jax.random.key(0), values, arrays)

    def score(self, key: Array, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        keys = jax.random.split(key)
        trace = self._trace(arrays["data"], keys[0], self._from_values(values, keys[1]))
        out = {}
        for name, f in self.facts.items():
            if f.kind == "observed":
                lp = log_prob_of(trace[name])
                mask = mask_of(trace[name]["fn"])
                if mask is not None:
                    lp = jnp.where(jnp.broadcast_to(mask, lp.shape), lp, jnp.nan)
                out[name] = self._natural_terms(name, lp)
        return out

    def independent_dims(self, name: str) -> tuple[str, ...]:
        return self.facts[name].plates

    def observed_values(self, arrays: dict) -> dict[str, Array]:
        """What the observed sites were given, in natural shapes."""
        trace = self._trace(arrays["data"], jax.random.key(0), lambda site: None)
        return {
            k: jnp.reshape(jnp.asarray(trace[k]["value"]), f.shape)
            for k, f in self.facts.items()
            if f.kind == "observed"
        }
