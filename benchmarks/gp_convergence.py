"""EP's convergence on random classification problems, and fits in float32 without a NaN.

Problems: rows, inputs, labels (from smooth functions to pure noise, balanced to nearly constant,
duplicate rows among them), log sd in [-4, 6] and log length scale in [-5, 5], the corners included.
The fits in single precision are whole ones (``pk.fit``, hyperparameters searched for, n = 20), on
the same kinds of problems; a fit counts as one with a NaN if any number of its result, of the
function's moments or of the leave-one-out densities is not finite.

``python -m benchmarks.gp_convergence [--problems 200] [--single 1000]``
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import probkit as pk
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


def classifier() -> pk.Model:
    """A classifier in single precision."""
    return pk.Model(
        log_sd=pk.dist.Normal(0.0, 2.0),
        log_length=pk.dist.Normal(0.0, 2.0),
        f=pk.gp(
            lambda log_sd, log_length: jnp.exp(2.0 * log_sd) * pk.kernels.RBF(jnp.exp(log_length)),
            at="x",
            precision="single",
        ),
        y=pk.rv(lambda f: pk.BernoulliProbit(f), dims="row"),
    )


def single(count: int, rng: np.random.Generator) -> dict[str, int]:
    """How many fits of so many have a number that is not finite, and how many converged."""
    model, method = classifier(), pk.EP(starts=1, draws=1, max_steps=40, tolerance=1e-3)
    bad = converged = 0
    for i in range(count):
        x, y, _ = draw(rng, 20, i)
        data = {"x": x.astype(np.float32), "y": y.astype(np.int32)}
        target = model.bind(data, dims={"x": ("row", "column"), "y": ("row",)})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pk.fit(target, method=method, seed=i, progress=False)
        assert target.dtype == np.float32 and found.approximation is not None
        stats = found.approximation.stats
        numbers = [np.ravel(v) for v in stats.values() if isinstance(v, np.ndarray)]
        numbers.append(np.array([stats["log_evidence"], stats["elpd_loo"]]))
        bad += not np.all(np.isfinite(np.concatenate(numbers)))
        converged += found.status.ok
    return {"nan": bad, "converged": converged}


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
    fits = single(args.single, rng)
    c.line(f"float32: fits with a NaN among {args.single}", float(fits["nan"]), 0.0)
    c.line("  fits that converged", float(fits["converged"]))
    figures = {"converged": converged, "not_finite": unsaid, "steps": steps, "float32": fits}
    c.save("gp_convergence", figures)


if __name__ == "__main__":
    main()
