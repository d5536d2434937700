"""Target: a model with data, seen as a log density over an unconstrained dictionary of arrays.

A `Target` is two halves. The static half is a `Program`: it knows the sites, their shapes and how
to evaluate them; it is hashed by identity and shared by every Target of the same model and sizes,
so that compiled programs are shared too. The other half is a dictionary of arrays (data, positions
of missing entries, centring weights): these are arguments of every compiled program, never
constants in it.

The log density includes the log Jacobians of the maps to the unconstrained space; ``log_prior``
holds them, ``log_likelihood`` has none.
"""

from __future__ import annotations

import abc
import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from probkit.core._abreast import one_by_one
from probkit.core._errors import listing, nearest
from probkit.core._latent import GaussianLatent
from probkit.core._latents import GaussianLatents
from probkit.core._trees import Flat, in_precision


@dataclass(frozen=True)
class Site:
    """What is known of one site before anything is computed.

    Attributes:
        name: the variable's name.
        kind: ``latent``, ``discrete``, ``observed``, ``imputed``, ``deterministic`` or ``factor``.
        dims: names of the value's axes (batch dims, then event dims).
        shape: the value's shape, in the constrained space.
        support: the distribution's support in words (``""`` where there is no distribution).
        distribution: the distribution's name (``""`` where there is none).
    """

    name: str
    kind: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    support: str = ""
    distribution: str = ""


@dataclass(frozen=True)
class Terms:
    """Log density terms by site at one point.

    ``prior`` holds one scalar a latent site (log Jacobian included) and one a prior factor;
    ``likelihood`` holds an array a site, in the natural shape of its terms. ``scale`` holds the
    factor of each likelihood site under a mini-batch (rows in the data / rows in the batch).
    """

    prior: dict[str, Array]
    likelihood: dict[str, Array]
    scale: dict[str, float] = field(default_factory=dict)

    def log_prior(self) -> Array:
        """Sum of the prior terms."""
        return _total(list(self.prior.values()))

    def log_likelihood(self) -> Array:
        """Sum of the likelihood terms, scaled up to the whole data set."""
        return _total([scaled_sum(v, self.scale.get(k, 1.0)) for k, v in self.likelihood.items()])

    def log_density(self) -> Array:
        """Prior plus likelihood."""
        return _total(
            list(self.prior.values())
            + [scaled_sum(v, self.scale.get(k, 1.0)) for k, v in self.likelihood.items()]
        )


def scaled_sum(terms: ArrayLike, scale: float) -> Array:
    """The sum times ``scale``, without the operations that change nothing."""
    total = jnp.sum(terms) if jnp.ndim(terms) else jnp.asarray(terms)
    return total if scale == 1.0 else total * scale


def _total(terms: list[Array]) -> Array:
    if not terms:
        return jnp.zeros(())
    dtype = jnp.result_type(*terms)
    # (The primitive: JAX traces an operator as a function of its own.)
    return functools.reduce(jax.lax.add, [jnp.asarray(t, dtype) for t in terms])


class Batch(eqx.Module):
    """Rows of one dim that a stochastic gradient uses: a dim's name and an index array."""

    dim: str = eqx.field(static=True)
    index: Array | np.ndarray


class Program(abc.ABC):
    """The static half of a Target. Hashed by identity; final classes implement every method.

    Attributes:
        sites: every site by name, in the order of the graph.
        shapes: shape of each *unconstrained* latent array by name (the density's argument).
        sizes: size of every dim.
        data_dims: the dims of each data array, where they are known.
        dtype: floating dtype of the computation (``float32`` or ``float64``).
    """

    sites: dict[str, Site]
    shapes: dict[str, tuple[int, ...]]
    sizes: dict[str, int]
    data_dims: dict[str, tuple[str | None, ...]]
    dtype: np.dtype

    @abc.abstractmethod
    def evaluate(self, z: Mapping[str, Array], arrays: dict, batch: Batch | None = None) -> Terms:
        """Log density terms at the unconstrained point ``z``."""

    @abc.abstractmethod
    def pointwise(self, z: Mapping[str, Array], values: Mapping[str, Array], arrays: dict) -> dict:
        """Log likelihood of each observation; imputed entries are left out (NaN)."""

    @abc.abstractmethod
    def constrain(self, key: Array, z: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        """Values of all latent and deterministic sites; summed-out sites are drawn with ``key``."""

    @abc.abstractmethod
    def unconstrain(self, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        """The inverse of ``constrain`` on the latent sites."""

    @abc.abstractmethod
    def simulate(self, key: Array, values: Mapping[str, Any], arrays: dict) -> dict[str, Array]:
        """Forward simulation of every site, with the sites in ``values`` held.

        A pair ``(value, mask)`` holds a site's entries under the mask and draws the others.
        """

    @abc.abstractmethod
    def score(self, key: Array, values: Mapping[str, Any], arrays: dict) -> dict[str, Array]:
        """``pointwise`` given values of (some) latent sites; the others are simulated first."""

    @abc.abstractmethod
    def prior_point(self, key: Array, arrays: dict) -> dict[str, Array]:
        """One draw from the prior, in the unconstrained space."""

    def independent_dims(self, name: str) -> tuple[str, ...]:
        """Dims of a site along which its elements are independent given its parents."""
        return ()

    def feeds(self, name: str) -> bool:
        """Whether other sites depend on a site's value."""
        return False

    def time_dim(self, name: str) -> str | None:
        """The dim along which each element of a site is drawn given the one before, if any."""
        return None

    def gaussian_latent(self, arrays: dict) -> GaussianLatent:
        """The capability of that name: one Gaussian vector with pointwise terms.

        Raises:
            ValueError: the model is not of that form; the message says why and what to do.
        """
        raise ValueError(
            "it has no Gaussian process; declare a latent function as f=pk.gp(kernel_fn, at='x'), "
            "or use a method that needs none, such as pk.NUTS()"
        )

    def gaussian_latents(self, arrays: dict) -> GaussianLatents:
        """The capability of that name: Gaussian vectors whose terms meet row by row.

        Raises:
            ValueError: the model is not of that form; the message says why and what to do.
        """
        raise ValueError(
            "it has no Gaussian process; declare a latent function as f=pk.gp(kernel_fn, at='x'), "
            "or use a method that needs none, such as pk.NUTS()"
        )

    def carried(self, values: Mapping[str, Array], arrays: dict) -> dict[str, Array]:
        """What new rows of a site are drawn from, given the values of latent sites: by site.

        `simulate` and `score` of a Target bound to new rows take it in place of the site's value.
        """
        return {}

    def workspace(self, arrays: dict) -> int:
        """Array elements that one evaluation needs beyond its result, where these are many."""
        return 0

    def in_turn(self) -> bool:
        """Whether draws must be evaluated one after the other instead of as a batch."""
        return False

    def __init__(self) -> None:
        self._compiled: OrderedDict[Any, Any] = OrderedDict()

    @property
    def flat(self) -> Flat:
        """The density's argument as one vector."""
        return self.cached("flat", lambda: Flat(self.shapes))

    def cached(self, key: Any, make: Callable[[], Any], limit: int = 64) -> Any:
        """A compiled program (or another derived object) that lives as long as this Program."""
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key]
        value = make()
        self._compiled[key] = value
        while len(self._compiled) > limit:
            self._compiled.popitem(last=False)
        return value


@dataclass(frozen=True, eq=False)
class Labels:
    """Coordinates by dim and the caller's own data: what labels results, never what computes."""

    coords: dict[str, np.ndarray] = field(default_factory=dict)
    observed: dict[str, np.ndarray] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    rows: str | None = None
    categorical: frozenset[str] = frozenset()
    rebind: Callable[..., Target] | None = None
    source: Any = None


_NO_LABELS = Labels()


class Target(eqx.Module):
    """A log density over an unconstrained dictionary of arrays, and what else is known about it.

    Made by ``model.bind(data)`` or by `Target.from_log_density`. All methods are pure and can be
    traced; ``z`` is a dictionary of unconstrained arrays shaped like ``target.example``.

    Example:
        >>> import jax.numpy as jnp
        >>> normal = lambda z: -0.5 * jnp.sum(z["x"] ** 2)
        >>> target = Target.from_log_density(normal, {"x": jnp.ones(2)})
        >>> float(target.log_density({"x": jnp.zeros(2)}))
        -0.0
    """

    program: Program = eqx.field(static=True)
    arrays: dict
    labels: Labels = eqx.field(static=True, default=_NO_LABELS)

    @staticmethod
    def from_log_density(fn: Callable, example: Mapping[str, Any], data: Any = None) -> Target:
        """A Target for a plain log density ``fn(z)``, or ``fn(z, data)`` when data are given.

        Args:
            fn: traceable; returns a scalar log density (up to a constant) of a dictionary of
                unconstrained arrays.
            example: a dictionary of arrays: a point, for shapes, dtype and as a starting point.
            data: a pytree of arrays that becomes an argument of the compiled programs.
        """
        from probkit.core._function import function_target

        return function_target(fn, example, data)

    @property
    def example(self) -> dict[str, np.ndarray]:
        """A point: zeros of the right shapes and dtype (unconstrained)."""
        return {k: np.zeros(s, self.program.dtype) for k, s in self.program.shapes.items()}

    @property
    def sites(self) -> dict[str, Site]:
        """Every site by name."""
        return self.program.sites

    @property
    def dtype(self) -> np.dtype:
        """Floating dtype of the computation."""
        return self.program.dtype

    @property
    def coords(self) -> dict[str, np.ndarray]:
        """Coordinate labels by dim."""
        return self.labels.coords

    def __repr__(self) -> str:
        kinds: dict[str, list[str]] = {}
        for name, site in self.sites.items():
            kinds.setdefault(site.kind, []).append(name)
        parts = [f"{k}: {', '.join(v)}" for k, v in kinds.items()]
        return f"Target of {self.program.flat.size} unconstrained dimensions ({'; '.join(parts)})"

    @property
    def gaussian_latent(self) -> GaussianLatent:
        """What is known of the model's one Gaussian vector: see `GaussianLatent`.

        Its functions take ``target.arrays``.

        Raises:
            ValueError: the model is not of that form; the message says why.
        """
        return self.program.gaussian_latent(self.arrays)

    @property
    def gaussian_latents(self) -> GaussianLatents:
        """What is known of the model's Gaussian vectors, one or several: see `GaussianLatents`.

        Its functions take ``target.arrays``.

        Raises:
            ValueError: the model is not of that form; the message says why.
        """
        return self.program.gaussian_latents(self.arrays)

    @property
    def num_data(self) -> int:
        """Number of observed values (imputed ones excluded)."""
        return sum(
            int(np.sum(~np.isnan(np.asarray(v, float)))) for v in self.labels.observed.values()
        )

    def without_labels(self) -> Target:
        """The same density without labels: what compiled programs are traced with."""
        return Target(self.program, self.arrays)

    def _point(self, z: Mapping[str, ArrayLike]) -> dict[str, Array]:
        return {k: jnp.asarray(v, self.dtype) for k, v in z.items()}

    def terms(self, z: Mapping[str, ArrayLike], batch: Batch | None = None) -> Terms:
        """Log density terms by site."""
        with in_precision(self.dtype):
            return self.program.evaluate(self._point(z), self.arrays, batch)

    def log_prior(self, z: Mapping[str, ArrayLike]) -> Array:
        """Log prior density of ``z`` in the unconstrained space (log Jacobians included)."""
        with in_precision(self.dtype):
            return self.terms(z).log_prior()

    def log_likelihood(self, z: Mapping[str, ArrayLike], batch: Batch | None = None) -> Array:
        """Log likelihood; with a mini-batch, an unbiased estimate of it (terms scaled up)."""
        with in_precision(self.dtype):
            return self.terms(z, batch).log_likelihood()

    def log_density(self, z: Mapping[str, ArrayLike], batch: Batch | None = None) -> Array:
        """``log_prior + log_likelihood``."""
        with in_precision(self.dtype):
            return self.terms(z, batch).log_density()

    def flat_log_density(self, vector: ArrayLike, batch: Batch | None = None) -> Array:
        """The log density of one flat vector of length ``target.program.flat.size``."""

        program = self.program

        def fn(vector: Array, rest: tuple) -> Array:
            arrays, batch = rest
            return Target(program, arrays).log_density(program.flat.unravel(vector), batch)

        with in_precision(self.dtype):
            density = one_by_one(fn) if program.in_turn() else fn
            return density(jnp.asarray(vector, self.dtype), (self.arrays, batch))

    def per_example(self, z: Mapping[str, ArrayLike], key: Array | None = None) -> dict[str, Array]:
        """Log likelihood of each observation, by observed site, in its natural shape."""
        key = jax.random.key(0) if key is None else key
        with in_precision(self.dtype):
            point = self._point(z)
            values = self.program.constrain(key, point, self.arrays)
            return self.program.pointwise(point, values, self.arrays)

    def constrain(self, z: Mapping[str, ArrayLike], key: Array | None = None) -> dict[str, Array]:
        """Latent and deterministic sites in the model's own space."""
        key = jax.random.key(0) if key is None else key
        with in_precision(self.dtype):
            return self.program.constrain(key, self._point(z), self.arrays)

    def unconstrain(self, values: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """The unconstrained point of a dictionary of latent values (the inverse of constrain)."""
        missing = [k for k in self.program.shapes if k not in values]
        if missing:
            raise ValueError(
                f"unconstrain: expected a value for every latent site, missing {listing(missing)}."
                f"{nearest(missing[0], values)}"
            )
        with in_precision(self.dtype):
            point = {k: jnp.asarray(v) for k, v in values.items()}
            return self.program.unconstrain(point, self.arrays)

    def predict(self, key: Array, z: Mapping[str, ArrayLike]) -> dict[str, Array]:
        """One draw of every observed site given the latent sites at ``z``."""
        key_latent, key_observed = jax.random.split(key)
        with in_precision(self.dtype):
            values = self.program.constrain(key_latent, self._point(z), self.arrays)
            held = {k: v for k, v in values.items() if self.sites[k].kind in HELD}
            return self.program.simulate(key_observed, held, self.arrays)

    def batched_dim(self, dim: str) -> None:
        """Raise unless mini-batches can be taken along ``dim``."""
        if dim not in self.program.sizes:
            raise ValueError(
                f"batch dim {dim!r}: this model has no such dim.{nearest(dim, self.program.sizes)} "
                f"Its dims are {listing(self.program.sizes)}."
            )

    def check(self, key: Any = 0):
        """The debug report: initial log density by site, non-finite terms, gradients, sizes.

        See `probkit.core.TargetReport`. Costs one compilation and 20 evaluations.
        """
        from probkit.core._target_check import check_target

        with in_precision(self.dtype):
            return check_target(self, key)


HELD = frozenset({"latent", "discrete", "imputed"})


def requires(target: Target, method: str, capabilities: tuple[str, ...]) -> None:
    """Raise a ValueError that names the capability a method needs and the target lacks."""
    known = {
        "latents": (bool(target.program.shapes), "at least one unobserved continuous variable"),
        "likelihood": (
            any(s.kind in ("observed", "imputed") for s in target.sites.values()),
            "an observed variable (a declared name that is found in the data)",
        ),
    }
    for name in capabilities:
        if name in _LATENT:
            _require_latent(target, method, name)
            continue
        holds, words = known[name]
        if not holds:
            raise ValueError(
                f"{method}: this model offers no {name!r}: the method needs {words}. "
                f"The model's sites are {listing(target.sites)}."
            )


#: Capabilities of models with Gaussian processes, in words.
_LATENT = {
    "gaussian_latent": "one latent function with pointwise likelihood terms",
    "gaussian_latents": "latent functions whose likelihood terms depend on one row each",
}


def _require_latent(target: Target, method: str, name: str) -> None:
    several = name == "gaussian_latents"
    ask = target.program.gaussian_latents if several else target.program.gaussian_latent
    try:
        ask(target.arrays)
    except ValueError as error:
        raise ValueError(
            f"{method}: this model offers no {name!r} ({_LATENT[name]}), which the method needs: "
            f"{error}"
        ) from None
