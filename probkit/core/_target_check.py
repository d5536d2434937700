"""The debug report of a Target: what is finite where, term by term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from probkit.core._keys import key_data, wrap_key
from probkit.core._target import Target

_POINTS = 20


@dataclass(frozen=True)
class TargetReport:
    """What `Target.check` found at 20 points drawn around the origin of the unconstrained space.

    Attributes:
        ok: whether some point has a finite log density and gradient.
        finite: number of points with a finite log density.
        points: number of points tried.
        terms: by site, the median log density over the points (NaN if never finite).
        nonfinite: by site, at how many points its term is not finite.
        gradient: largest finite gradient entry, by latent site (median over points).
        dtype: floating dtype. dimension: length of the unconstrained vector.
    """

    ok: bool
    finite: int
    points: int
    terms: dict[str, float]
    nonfinite: dict[str, int]
    gradient: dict[str, float]
    dtype: str
    dimension: int
    observed: int

    def __str__(self) -> str:
        head = (
            f"Target: {self.dimension} unconstrained dimensions, {self.observed} observed values, "
            f"{self.dtype}; log density finite at {self.finite} of {self.points} points"
        )
        lines = [head]
        for name, value in self.terms.items():
            bad = self.nonfinite[name]
            note = f"   NOT FINITE at {bad} of {self.points} points" if bad else ""
            lines.append(f"  {name:<16} log density {value:>12.4g}{note}")
        for name, value in self.gradient.items():
            if not np.isfinite(value):
                lines.append(f"  {name:<16} gradient not finite")
        blamed = [k for k, n in self.nonfinite.items() if n == self.points]
        if blamed:
            lines.append(
                f"  site {blamed[0]!r} is never finite: check that its observed values lie in its "
                "support, that its scale parameters are positive (a kernel or a covariance matrix: "
                "positive definite), and its parents' priors"
            )
        return "\n".join(lines)


def check_target(target: Target, key: Any = 0) -> TargetReport:
    """See `Target.check`."""
    program = target.program

    def evaluate(data, arrays):
        one = Target(program, arrays)

        def at(k):
            z = program.prior_point(k, arrays)
            terms = program.evaluate(z, arrays)
            value, slope = jax.value_and_grad(one.log_density)(z)
            sums = {k: v.sum() for k, v in {**terms.prior, **terms.likelihood}.items()}
            return sums, value, {k: abs(g).max(initial=0.0) for k, g in slope.items()}

        return jax.vmap(at)(jax.random.split(wrap_key(data), _POINTS))

    data = key if isinstance(key, np.ndarray) else key_data(key)
    terms, values, slopes = jax.jit(evaluate)(data, target.arrays)
    finite = np.isfinite(np.asarray(values))
    good_slopes = np.all([np.isfinite(np.asarray(v)) for v in slopes.values()], axis=0)
    return TargetReport(
        ok=bool(np.any(finite & good_slopes)),
        finite=int(finite.sum()),
        points=_POINTS,
        terms={k: _median(v) for k, v in terms.items()},
        nonfinite={k: int((~np.isfinite(np.asarray(v))).sum()) for k, v in terms.items()},
        gradient={k: _median(v) for k, v in slopes.items()},
        dtype=str(target.dtype),
        dimension=program.flat.size,
        observed=target.num_data,
    )


def _median(values: Any) -> float:
    array = np.asarray(values, float)
    good = array[np.isfinite(array)]
    return float(np.median(good)) if good.size else float("nan")
