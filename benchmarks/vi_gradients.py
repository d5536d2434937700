r"""Variance of gradient estimators for a gamma approximation of a Poisson rate.

The objective is ``E[5 log z - 2 z]`` with z ~ Gamma(a, 1), whose gradient is ``5 trigamma(a) - 2``;
the figures are the variance of one draw's gradient, against reference figures within 15 %, and the
distance of the mean from the exact gradient in standard errors. In double precision.

Rejection without augmentation (B = 0) at a = 1 has no fourth moment, so that a variance by draws
does not settle, and a reference figure by draws is no reference. With v = 1 + e / sqrt(9 a - 3) a
draw is ``z = (a - 1/3) v^3``, and as v goes to 0

    dz/da = v^3 + (3/2) v^2 (1 - v),    d/da log(q/r) ~ ((a - 1) 3/2 + 1) (1 - v) / ((a - 1/3) v),

so that both terms of the gradient are (constant + log v)/v up to constants. Gamma(a) has
``P(v < t) ~ t^{3a}``: the k-th moment is finite for k < 3 a alone, at a = 1 the second but neither
the third nor the fourth. As the gradient is a function of v alone its variance is an integral over
one dimension, and `exact_variance` does it: 640.5 at a = 1.

``python -m benchmarks.vi_gradients [--draws 200000]``
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _common as c
from probkit import dist
from probkit.inference.vi._gradients import expectation

SHAPES = (1.0, 2.0, 5.0)
#: Measured once with another implementation of the same objective.
REFERENCE = {
    "score": (391.0, 26.8, 5.05),
    "implicit": (32.2, 3.91, 0.507),
    "rejection B=0": (1270.0, 4.18, 0.511),
    "rejection B=4": (35.5, 4.08, 0.527),
}


def gradients(name: str, shape: float, draws: int) -> np.ndarray:
    """Independent gradients by one estimator, shape ``(draws,)``."""
    estimator, boost = (name.split()[0], 4 if name.endswith("4") else 0)

    def program(site: Any, a: Any) -> Any:
        y = site("z", dist.Gamma(a, 1.0), estimator, log=True, boost=boost)
        return 5.0 * y - 2.0 * jnp.exp(y)

    def one(key: Any) -> Any:
        return jax.grad(lambda a: expectation(key, program, a))(jnp.asarray(shape))

    keys = jax.random.split(jax.random.key(11), draws)
    return np.asarray(jax.jit(jax.vmap(one))(keys))


def exact_variance(a: float) -> tuple[float, float]:
    """Mean and variance of the gradient by rejection with B = 0, by quadrature over log v."""
    from scipy.integrate import quad
    from scipy.special import digamma, gammaln

    b = a - 1.0 / 3.0

    def at(v: float) -> tuple[float, float]:
        z, dv = b * v**3, (1.0 - v) / (2.0 * b)
        dz = v**3 + 3.0 * b * v**2 * dv
        # d/da of log q(z(v); a) + log |dz/de|
        ratio = np.log(z) + (a - 1.0) * dz / z - dz - digamma(a) + 0.5 / b + 2.0 * dv / v
        density = np.exp((a - 1.0) * np.log(z) - z - gammaln(a)) * 3.0 * b * v**2
        return (5.0 / z - 2.0) * dz + (5.0 * np.log(z) - 2.0 * z) * ratio, density

    def moment(k: int) -> float:
        def term(t: float) -> float:
            gradient, density = at(np.exp(t))
            return gradient**k * density * np.exp(t)

        return sum(quad(term, *ends, limit=2000)[0] for ends in ((-60.0, 0.0), (0.0, 3.0)))

    return moment(1), moment(2) - moment(1) ** 2


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200_000)
    args = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    with jax.enable_x64(True):
        for name, known in REFERENCE.items():
            for shape, reference in zip(SHAPES, known, strict=True):
                g = gradients(name, shape, args.draws)
                exact = 5.0 * float(jax.scipy.special.polygamma(1, shape)) - 2.0
                score = abs(g.mean() - exact) / (g.std(ddof=1) / np.sqrt(g.size))
                variance = float(g.var(ddof=1))
                found.setdefault(name, []).append([shape, variance, reference, float(score)])
                gap = abs(variance / reference - 1.0)
                c.line(f"{name}, a = {shape:g}: variance {variance:.4g}, off by", gap, 0.15)
                c.line(f"{name}, a = {shape:g}: mean off, in standard errors", float(score), 4.0)
                if name == "rejection B=0":
                    mean, true = exact_variance(shape)
                    c.line("  mean by quadrature, off by", abs(mean - exact), 1e-6)
                    c.line(
                        f"  variance by quadrature {true:.4g}; by draws, over it", variance / true
                    )
                    c.line("  the reference figure over it", reference / true)
    c.save("vi_gradients", {"draws": args.draws, "found": found})


if __name__ == "__main__":
    main()
