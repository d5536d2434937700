"""Where a model's priors have its parameters: what searches for them begin around.

A prior may be far from nought in the unconstrained space (a length scale of about a million metres
is at 14), and a search that begins around nought finds nothing there. Only priors with fixed
parameters are read, from their location or scale; nothing is computed or compiled. For others,
nought stands, as for the starts of samplers.
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
    (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.Logistic, dist.Gumbel): (
        lambda d: d.loc
    ),
    (dist.LogNormal,): lambda d: d.loc,
    (dist.HalfNormal, dist.HalfCauchy, dist.Weibull): lambda d: np.log(d.scale),
    (dist.Exponential,): lambda d: -np.log(d.rate),
    (dist.Gamma, dist.Chi2): lambda d: np.log(d.concentration) - np.log(d.rate),
    (dist.InverseGamma,): lambda d: np.log(d.rate) - np.log(d.concentration),
    (dist.LeftTruncatedDistribution,): _left,
    (dist.RightTruncatedDistribution,): _right,
    (dist.TwoSidedTruncatedDistribution,): _within,
    (dist.LogUniform,): lambda d: _between(d.low, d.high, np.sqrt(d.low) * np.sqrt(d.high)),
}


def centres(program: GraphProgram, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """About where the priors have some sites, in the unconstrained space, one after the other.

    Args:
        program: whose sites they are.
        shapes: their names with their unconstrained shapes.
    """
    found = dict.fromkeys(shapes, np.zeros(()))

    def look() -> int:
        for name in shapes:
            node = program.nodes.get(name)
            # (A whitened site is around nought wherever its prior is.)
            if isinstance(node, RandomVariable) and not node.parents:
                if not program.facts[name].style:
                    found[name] = _centre(call(name, node, {}))
        return 0

    jax.eval_shape(look)
    out = [np.zeros(0)]
    for name, shape in shapes.items():
        here = found[name] if np.all(np.isfinite(found[name])) else np.zeros(())
        try:
            out.append(np.broadcast_to(here, shape).ravel())
        except ValueError:
            out.append(np.zeros(int(np.prod(shape))))
    return np.concatenate(out)


def _centre(d: Any) -> np.ndarray:
    while isinstance(d, _WRAPPED):
        d = d.base_dist
    for kinds, centre in _CENTRES.items():
        if type(d) in kinds:
            try:
                return np.asarray(centre(d), dtype=float)
            except (jax.errors.TracerArrayConversionError, AttributeError, TypeError, ValueError):
                break
    return np.zeros(())
