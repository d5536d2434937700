"""EP's convergence on random classification problems, and float32 fits without a NaN.

Problems: rows, inputs, labels (from smooth functions to pure noise, balanced to nearly constant,
duplicate rows among them), log sd in [-4, 6] and log length scale in [-5, 5], the corners included.

``python -m benchmarks.gp_convergence [--problems 200] [--single 1000]``
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _common as c
from probkit.inference.gaussian import _ep
from probkit.inference.gaussian._problem import Problem
from tests.inference.gaussian.toy import Toy

CORNERS = [(-4.0, -5.0), (-4.0, 5.0), (6.0, -5.0), (6.0, 5.0), (6.0, 0.0)]


def draw(rng: np.random.Generator, n: int, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, labels and hyperparameters of one problem."""
    x = rng.normal(size=(n, 2))
    if i % 5 == 0:
        x[n // 2 :] = x[: n - n // 2]
    f = rng.choice([0.0, 1.0, 20.0]) * np.sin(x[:, 0] * rng.uniform(0.5, 4.0)) + rng.normal()
    y = (f + rng.normal(size=n) > rng.choice([0.0, 2.0])).astype(float)
    corner = CORNERS[i % len(CORNERS)]
    pair = corner if i % 4 == 0 else (rng.uniform(-4, 6), rng.uniform(-5, 5))
    return x, y, np.array([*pair, 0.0])


def program(n: int, dtype: Any, tolerance: float) -> Any:
    """EP at given data and hyperparameters, compiled."""

    def fn(x: jax.Array, y: jax.Array, theta: jax.Array) -> tuple:
        problem = Problem(Toy(n, "probit", "probit"), {"x": x, "y": y}, "probit")
        prior = problem.prior(theta)
        start = problem.start(theta, prior)
        found = _ep.solve(problem, theta, prior, start, damping=0.8, tolerance=tolerance)
        value, slope = jax.value_and_grad(lambda t: _ep.value(problem, t, found.sites))(theta)
        return found.reason, found.steps, found.residual, value, slope

    return jax.jit(fn)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--single", type=int, default=1000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    sizes = [20] * 8 + [100] * 8 + [500] * 4
    ends, steps, unsaid = [], [], 0
    with jax.enable_x64(True):
        made = {n: program(n, np.float64, 1e-7) for n in set(sizes)}
        for i in range(args.problems):
            n = sizes[i % len(sizes)]
            out = jax.tree.map(np.asarray, made[n](*map(jnp.asarray, draw(rng, n, i))))
            ends.append(int(out[0]))
            steps.append(int(out[1]))
            unsaid += not (np.isfinite(out[3]) and np.all(np.isfinite(out[4])))
            if ends[-1]:
                print("  not converged:", n, i, out, flush=True)
    converged = float(np.mean(np.array(ends) == 0))
    c.line(f"EP, {args.problems} problems: share that converged", converged, 1.0, at_least=True)
    c.line("  values or gradients that are not finite", float(unsaid), 0.0)
    c.line("  steps, median", float(np.median(steps)))
    c.line("  steps, most", float(np.max(steps)))
    fn, bad = program(50, np.float32, 1e-4), 0
    for i in range(args.single):
        x, y, theta = (np.asarray(v, np.float32) for v in draw(rng, 50, i))
        _, _, _, value, slope = fn(x, y, theta)
        bad += not (np.isfinite(value) and np.all(np.isfinite(slope)))
    c.line(f"float32: NaN among {args.single} evidences and gradients", float(bad), 0.0)
    figures = {"converged": converged, "not_finite": unsaid, "steps": steps, "float32_nan": bad}
    c.save("gp_convergence", figures)


if __name__ == "__main__":
    main()
