"""Where a model's priors have its parameters: what searches for them begin around.

A prior may be far from nought in the unconstrained space (a length scale of about a million metres
is at 14), and a search that begins around nought finds nothing there. It may also be wide: a mean
with a scale of 100 is in other units than a logarithm. Only priors with fixed parameters are read,
from their location and scale; nothing is computed or compiled. For others, nought and one stand, as
for the starts of samplers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpyro.distributions as dist

from probkit.models._nodes import RandomVariable
from probkit.models._sites import call

if TYPE_CHECKING:
    from probkit.models._graph_program import GraphProgram

_WRAPPED = (dist.ExpandedDistribution, dist.Independent, dist.MaskedDistribution)
#: Scales of a prior in the unconstrained space that make one unit of a search: it begins within two
#: units, and its wall, 11.5 units out (`inference/gaussian/_problem`), is beyond four scales.
_UNIT = 0.4
_REAL = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.Logistic, dist.Gumbel)


def _scale(d: Any) -> Any:
    """The scale of a prior that may be wide in the unconstrained space."""
    if type(d) is dist.LogUniform:
        return (np.log(d.high) - np.log(d.low)) / 12**0.5
    return d.scale if type(d) in _REAL else 0.0


def _left(d: Any) -> Any:
    return np.log(np.maximum(d.base_dist.loc - d.low, d.base_dist.scale))


def _right(d: Any) -> Any:
    return np.log(np.maximum(d.high - d.base_dist.loc, d.base_dist.scale))


def _between(low: Any, high: Any, at: Any) -> Any:
    share = np.clip((at - low) / (high - low), 1e-9, 1 - 1e-9)
    return np.log(share) - np.log1p(-share)


def _within(d: Any) -> Any:
    # (Where the base is cut off at its centre or beyond, the mass is inside of that end.)
    base = d.base_dist
    aside = np.minimum(base.scale, 0.5 * (d.high - d.low))
    return _between(d.low, d.high, np.clip(base.loc, d.low + aside, d.high - aside))


#: About the median in the unconstrained space: the real line, the logarithm, a bounded range.
_CENTRES: Mapping[Any, Callable[[Any], Any]] = {
    (*_REAL, dist.LogNormal): lambda d: d.loc,
    (dist.HalfNormal, dist.HalfCauchy, dist.Weibull): lambda d: np.log(d.scale),
    (dist.Exponential,): lambda d: -np.log(d.rate),
    (dist.Gamma, dist.Chi2): lambda d: np.log(d.concentration) - np.log(d.rate),
    (dist.InverseGamma,): lambda d: np.log(d.rate) - np.log(d.concentration),
    (dist.LeftTruncatedDistribution,): _left,
    (dist.RightTruncatedDistribution,): _right,
    (dist.TwoSidedTruncatedDistribution,): _within,
    (dist.LogUniform,): lambda d: _between(d.low, d.high, np.sqrt(d.low) * np.sqrt(d.high)),
}
_Pair = tuple[np.ndarray, np.ndarray]
_UNKNOWN: _Pair = (np.zeros(()), np.ones(()))


def whereabouts(
    program: GraphProgram, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """About where the priors have some sites, in the unconstrained space, one after the other.

    Args:
        program: whose sites they are.
        shapes: their names with their unconstrained shapes.

    Returns:
        About the medians, and units that tell how far from there is far, both ``(d,)``.
    """
    found: dict[str, _Pair] = dict.fromkeys(shapes, _UNKNOWN)

    def look() -> int:
        for name in shapes:
            node = program.nodes.get(name)
            # (A whitened site is around nought wherever its prior is.)
            if isinstance(node, RandomVariable) and not node.parents:
                if not program.facts[name].style:
                    found[name] = _read(call(name, node, {}))
        return 0

    jax.eval_shape(look)
    nothing = (np.zeros(0), np.zeros(0))
    pairs = [nothing, *(_flat(*found[name], shape) for name, shape in shapes.items())]
    centre, unit = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return centre, unit


def _flat(centre: np.ndarray, unit: np.ndarray, shape: tuple[int, ...]) -> tuple:
    """Both for every coordinate of a site; what is not finite, or not of its shape, is unknown."""
    try:
        both = [np.broadcast_to(x, shape).ravel() for x in (centre, unit)]
    except ValueError:
        return _flat(*_UNKNOWN, shape)
    return tuple(both) if np.all(np.isfinite(both)) else _flat(*_UNKNOWN, shape)


def _read(d: Any) -> _Pair:
    while isinstance(d, _WRAPPED):
        d = d.base_dist
    for kinds, centre in _CENTRES.items():
        if type(d) in kinds:
            try:
                unit = np.maximum(_UNIT * np.asarray(_scale(d)), 1.0)
                return np.asarray(centre(d), dtype=float), np.asarray(unit)
            except (jax.errors.TracerArrayConversionError, AttributeError, TypeError, ValueError):
                break
    return _UNKNOWN
