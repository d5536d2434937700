"""The variables of a formula's model.

With X the centred design (rows, term), u_j the effects of group dim g and z_j their columns,

    eta = Intercept_centred + X beta + sum_j z_j u_j[g] + offset,   y ~ Family(eta, parameters)

``Intercept = Intercept_centred - mean(X) beta`` is the intercept of the columns as they were given;
sampling sees the centred one, which is nearly independent of the slopes. Thresholds of an ordinal
response are shifted likewise. Where a formula has no intercept, nothing is centred.

Correlated effects u_1 ... u_q of one term are a multivariate normal with Cholesky factor
diag(sigma) L, L ~ LKJ, written as its conditionals

    w_k = (u_k / sigma_k - sum_{j<k} L_kj w_j) / L_kk,
    u_k | u_1 ... u_{k-1} ~ Normal(sigma_k sum_{j<k} L_kj w_j, sigma_k L_kk),

the same joint density, but every site is a univariate normal that can be centred or non-centred by
how informative its own levels are. The cost is O(rows x (terms + effects) + levels x q^2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist

from probkit.core._errors import listing, nearest
from probkit.models._formula_families import (
    Family,
    OrderStatistics,
    Scales,
    parameter_priors,
)
from probkit.models._nodes import deterministic, rv

WEAK = 2.5  # prior sds in units of the response's sd per sd of the predictor


@dataclass(frozen=True)
class Effect:
    """One column that varies by a group: its site, and the sd of the column (1: the constant)."""

    site: str
    group: str
    constant: bool
    sd: float

    @property
    def index(self) -> str:
        """Name of the data array of the group's codes."""
        return f"{self.group}_index"

    @property
    def design(self) -> str:
        """Name of the data array of the column itself."""
        return f"{self.site}_design"

    @property
    def sigma(self) -> str:
        """Name of the sd of the effects."""
        return f"{self.site}_sigma"


@dataclass(frozen=True)
class EffectBlock:
    """Effects of one group term; ``name`` (``1 + x|g``) where they are correlated."""

    effects: tuple[Effect, ...]
    name: str | None


@dataclass(frozen=True, eq=False)
class Structure:
    """Everything that decides which variables there are and how default priors are scaled."""

    response: str
    family: Family
    scales: Scales
    intercept: bool
    columns: tuple[str, ...]
    terms: dict[str, list[int]]
    sds: np.ndarray
    blocks: tuple[EffectBlock, ...]
    has_offset: bool
    levels: int

    @property
    def ordinal(self) -> bool:
        """Whether thresholds take the place of the intercept."""
        return self.family.name == "ordinal"

    @property
    def centred(self) -> bool:
        """Whether there is an intercept (or thresholds) to shift, and columns to centre."""
        return self.intercept and bool(self.columns)


class Priors:
    """Priors by name: the caller's where given, else the default; unknown names are reported."""

    def __init__(self, given: Any) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(
                f"priors: expected a mapping such as {{'sigma': dist.HalfNormal(1)}}, found "
                f"{type(given).__name__}."
            )
        self._given = dict(given) if given is not None else {}
        self._known: list[str] = []
        for name, value in self._given.items():
            if not isinstance(value, dist.Distribution):
                raise TypeError(
                    f"priors[{name!r}]: expected a distribution such as dist.Normal(0, 1), found "
                    f"{value!r}."
                )

    def take(self, name: str, default: Any, *, positive: bool = False) -> Any:
        """The prior of a scalar of that name."""
        self._known.append(name)
        found = self._given.get(name)
        if found is None:
            return default
        if found.batch_shape or found.event_shape:
            raise ValueError(
                f"priors[{name!r}]: expected a distribution of one number, found the shape "
                f"{found.batch_shape + found.event_shape}; use `model.replace` for anything else."
            )
        if positive and bool(np.all(np.asarray(found.support(jnp.asarray(-1.0))))):
            raise ValueError(
                f"priors[{name!r}]: {type(found).__name__} allows negative values, but {name!r} "
                f"is positive; use for example dist.HalfNormal(1)."
            )
        return found

    def take_shaped(self, name: str, default: Any, shape: tuple[int, ...]) -> Any:
        """The prior of a vector or matrix; a scalar distribution is returned as it is."""
        self._known.append(name)
        found = self._given.get(name, default)
        if found.event_shape not in ((), shape) or found.batch_shape:
            raise ValueError(
                f"priors[{name!r}]: expected a distribution of the event shape {shape}, found "
                f"{found.batch_shape + found.event_shape}."
            )
        return found

    def finish(self) -> None:
        """Raise a ValueError for the first name that no variable has."""
        for name in self._given:
            if name not in self._known:
                raise ValueError(
                    f"priors: the formula has no parameter {name!r}.{nearest(name, self._known)} "
                    f"It has {listing(self._known, 40)}."
                )


def declare(structure: Structure, priors: Priors) -> dict[str, Any]:
    """All nodes of the model by name."""
    nodes: dict[str, Any] = {}
    parts = [_location(structure, priors), _coefficients(structure, priors)]
    parts += [_block(block, structure, priors) for block in structure.blocks]
    parameters = {
        name: rv(priors.take(name, default, positive=True))
        for name, default in parameter_priors(structure.family, structure.scales).items()
    }
    parts += [parameters, {structure.response: _response(structure, tuple(parameters))}]
    for part in parts:
        for name, node in part.items():
            if name in nodes:
                raise ValueError(
                    f"formula: two variables are called {name!r}; rename the column of that name, "
                    f"or leave the repeated term out."
                )
            nodes[name] = node
    priors.finish()
    return nodes


def _location(structure: Structure, priors: Priors) -> dict[str, Any]:
    """The intercept or the thresholds, as sampled and as reported."""
    scales = structure.scales
    if structure.ordinal:
        count = structure.levels - 1
        base = dist.StudentT(3.0, 0.0, WEAK)
        prior = priors.take_shaped("threshold", base, (count,))
        if not prior.event_shape:
            prior = OrderStatistics(prior, count)
        if not structure.centred:
            return {"threshold": rv(prior, event_dims="cut")}
        sampled = {"threshold_centred": rv(prior, event_dims="cut")}
        parents = ("threshold_centred", "common_mean", "beta")
        shifted = deterministic(_plus_mean, dims="cut", parents=parents)
        return {**sampled, "threshold": shifted}
    if not structure.intercept:
        return {}
    prior = priors.take("Intercept", dist.Normal(scales.location, WEAK * scales.spread))
    if not structure.centred:
        return {"Intercept": rv(prior)}
    parents = ("Intercept_centred", "common_mean", "beta")
    return {
        "Intercept_centred": rv(prior),
        "Intercept": deterministic(_minus_mean, parents=parents),
    }


def _minus_mean(centred: Any, mean: Any, beta: Any) -> Any:
    return centred - mean @ beta


def _plus_mean(centred: Any, mean: Any, beta: Any) -> Any:
    return centred + mean @ beta


def _coefficients(structure: Structure, priors: Priors) -> dict[str, Any]:
    """One vector ``beta``; columns whose prior is not normal are variables of their own."""
    count = len(structure.columns)
    if not count:
        return {}
    whole = priors.take("beta", None)
    loc = np.zeros(count)
    scale = WEAK * structure.scales.spread / structure.sds
    own: dict[int, Any] = {}
    for term, places in structure.terms.items():
        for place in places:
            for key in dict.fromkeys((term, structure.columns[place])):
                prior = priors.take(key, None)
                if prior is not None and whole is not None:
                    raise ValueError(f"priors: give either 'beta' (all terms) or {key!r}.")
                if type(prior) is dist.Normal:
                    loc[place], scale[place] = np.asarray(prior.loc), np.asarray(prior.scale)
                elif prior is not None:
                    own[place] = prior
    if whole is not None:
        return {"beta": rv(whole, dims="term")}
    if not own:
        return {"beta": rv(dist.Normal(loc, scale), dims="term")}
    return _mixed_coefficients(structure, own, loc, scale)


def _mixed_coefficients(
    structure: Structure, own: dict[int, Any], loc: np.ndarray, scale: np.ndarray
) -> dict[str, Any]:
    nodes = {site_name(structure.columns[i]): rv(prior) for i, prior in own.items()}
    rest = [i for i in range(len(loc)) if i not in own]
    parents = tuple(nodes)
    if rest:
        nodes["beta_normal"] = rv(dist.Normal(loc[rest], scale[rest]), dims="normal_term")
        parents += ("beta_normal",)
    order = np.argsort([*own, *rest])

    def assemble(*values: Any) -> Any:
        return jnp.concatenate([jnp.atleast_1d(v) for v in values])[order]

    return {**nodes, "beta": deterministic(assemble, dims="term", parents=parents)}


def _block(block: EffectBlock, structure: Structure, priors: Priors) -> dict[str, Any]:
    """The effects of one group term with their sds, and their correlations if they have any."""
    nodes: dict[str, Any] = {}
    for effect in block.effects:
        default = dist.HalfNormal(WEAK * structure.scales.spread / effect.sd)
        nodes[effect.sigma] = rv(priors.take(effect.sigma, default, positive=True))
    if block.name is None:
        for effect in block.effects:
            nodes[effect.site] = rv(_zero_mean, dims=effect.group, parents=(effect.sigma,))
        return nodes
    size = len(block.effects)
    cholesky, dims = f"{block.name}_cholesky", (f"{block.name}_effect", f"{block.name}_effect2")
    prior = priors.take_shaped(cholesky, dist.LKJCholesky(size, 2.0), (size, size))
    nodes[cholesky] = rv(prior, event_dims=dims)
    corr = deterministic(_square, dims=dims, parents=(cholesky,))
    nodes[f"{block.name}_corr"] = corr
    sites = tuple(effect.site for effect in block.effects)
    sigmas = tuple(effect.sigma for effect in block.effects)
    for k, effect in enumerate(block.effects):
        parents = (cholesky, *sigmas[: k + 1], *sites[:k])
        nodes[effect.site] = rv(_conditional(k), dims=effect.group, parents=parents)
    return nodes


def _zero_mean(sigma: Any) -> dist.Distribution:
    return dist.Normal(0.0, sigma)


def _square(factor: Any) -> Any:
    return factor @ factor.T


def _conditional(k: int) -> Callable[..., dist.Distribution]:
    """The k-th effect given the ones before it; see the module's docstring."""

    def conditional(factor: Any, *values: Any) -> dist.Distribution:
        sigma, effects = values[: k + 1], values[k + 1 :]
        white: list[Any] = []
        for j in range(k):
            explained = sum(factor[j, i] * white[i] for i in range(j))
            white.append((effects[j] / sigma[j] - explained) / factor[j, j])
        mean = sum(factor[k, j] * white[j] for j in range(k))
        return dist.Normal(sigma[k] * mean, sigma[k] * factor[k, k])

    return conditional


def _response(structure: Structure, parameters: tuple[str, ...]) -> Any:
    """The response given the linear predictor, which is computed inside and not recorded."""
    parents, predictor = _predictor(structure)
    extra = parameters
    if structure.family.name == "binomial":
        extra = ("trials",)
    elif structure.ordinal:
        extra = ("threshold_centred" if structure.centred else "threshold",)
    build, count = structure.family.build, len(parents)

    def response(*values: Any) -> dist.Distribution:
        return build(predictor(values[:count]), *values[count:])

    return rv(response, dims="row", parents=(*parents, *extra))


def _predictor(structure: Structure) -> tuple[tuple[str, ...], Callable[[Any], Any]]:
    """Parents of the linear predictor, and the function that adds its parts up."""
    parents: list[str] = []
    if structure.intercept and not structure.ordinal:
        parents.append("Intercept_centred" if structure.centred else "Intercept")
    if structure.columns:
        parents += ["common", "beta"]
    effects = [effect for block in structure.blocks for effect in block.effects]
    for effect in effects:
        parents += [effect.site, effect.index]
        if not effect.constant:
            parents.append(effect.design)
    if structure.has_offset:
        parents.append("offset")
    names = tuple(dict.fromkeys(parents))

    def predictor(values: Any) -> Any:
        of = dict(zip(names, values, strict=True))
        eta: Any = of.get("Intercept_centred", of.get("Intercept", 0.0))
        if structure.columns:
            eta = eta + of["common"] @ of["beta"]
        for effect in effects:
            varying = of[effect.site][of[effect.index]]
            eta = eta + (varying if effect.constant else varying * of[effect.design])
        return eta + of["offset"] if structure.has_offset else eta

    return names, predictor


def site_name(text: str) -> str:
    """A column's name as the name of a variable, which holds no commas."""
    return text.replace(", ", ";").replace(",", ";")
