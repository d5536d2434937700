"""Exact regression at n = 1000 to the same optimum: CPU seconds beside scikit-learn's.

A squared-exponential kernel in two columns with noise, three hyperparameters by maximum marginal
likelihood, one thread. Both fit in one process, taking turns; the clock is the process' CPU time.
scikit-learn searches from its own start (all ones), and this package from the best of four random
points. Ends are compared: the two evidences must agree.

``python -m benchmarks.gp_speed [--rows 1000] [--rounds 3]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

import probkit as pk  # noqa: E402
from benchmarks import _common as c  # noqa: E402
from probkit.core._trees import in_precision  # noqa: E402
from probkit.inference.gaussian import _gp_exact  # noqa: E402
from probkit.inference.gaussian._problem import Problem  # noqa: E402

LIMIT = 0.8


def model() -> pk.Model:
    """The regression; priors give starting points only (ML-II)."""
    return pk.Model(
        sd=pk.dist.LogNormal(0.0, 1.0),
        length=pk.dist.LogNormal(0.0, 1.0),
        noise=pk.dist.LogNormal(0.0, 1.0),
        f=pk.gp(lambda sd, length: sd**2 * pk.kernels.RBF(length), at="x"),
        y=pk.rv(lambda f, noise: pk.dist.Normal(f, noise), dims="row"),
    )


def data(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs ``(rows, 2)`` and noisy values of a smooth function."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-2, 2, size=(rows, 2))
    return x, np.sin(2 * x[:, 0]) * x[:, 1] + 0.2 * rng.normal(size=rows)


def ours(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """One fit of this package: CPU seconds with and without compilation, evidence."""
    clock = time.process_time()
    target = MODEL.bind({"x": x, "y": y}, dims={"x": ("row", "column"), "y": ("row",)})
    method = pk.GPExact(objective="ml2", starts=1, draws=1)
    fit = pk.fit(target, method=method, progress=False)
    assert fit.approximation is not None
    return {
        "cpu": time.process_time() - clock,
        "evidence": float(fit.approximation.log_evidence or np.nan),
        "evaluations": float(fit.approximation.stats["steps"]),
    }


def peer(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """One fit of scikit-learn."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    kernel = ConstantKernel(1.0) * RBF(1.0) + WhiteKernel(1.0)
    clock = time.process_time()
    options: Any = {"alpha": 0.0}
    fit: Any = GaussianProcessRegressor(kernel, **options).fit(x, y)
    return {
        "cpu": time.process_time() - clock,
        "evidence": float(fit.log_marginal_likelihood_value_),
    }


def gradients(x: np.ndarray, y: np.ndarray, count: int = 5) -> dict[str, float]:
    """CPU seconds of one value with gradient, compiled, of either."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    target = MODEL.bind({"x": x, "y": y}, dims={"x": ("row", "column"), "y": ("row",)})
    out, theta = {}, np.array([0.1, 0.0, -1.0])
    with in_precision(np.float64):
        problem = Problem.of(target)
        look = jax.jit(jax.value_and_grad(lambda t: _gp_exact.value(problem, t)))
        jax.block_until_ready(look(theta))
        clock = time.process_time()
        for i in range(count):
            jax.block_until_ready(look(theta + 0.01 * i))
        out["ours"] = (time.process_time() - clock) / count
    kernel = ConstantKernel(1.0) * RBF(1.0) + WhiteKernel(1.0)
    options: Any = {"alpha": 0.0, "optimizer": None}
    fit: Any = GaussianProcessRegressor(kernel, **options).fit(x, y)
    clock = time.process_time()
    for i in range(count):
        fit.log_marginal_likelihood(theta + 0.01 * i, eval_gradient=True)
    out["sklearn"] = (time.process_time() - clock) / count
    return out


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    x, y = data(args.rows, 0)
    first = ours(x, y)
    rounds = [data(args.rows, 1 + i) for i in range(args.rounds)]
    took: dict[str, list[dict[str, float]]] = {"ours": [], "sklearn": []}
    for i, (x, y) in enumerate(rounds):
        makers = [("ours", ours), ("sklearn", peer)]
        for name, make in makers[:: 1 if i % 2 == 0 else -1]:
            took[name].append(make(x, y))
    cpu = {k: [r["cpu"] for r in v] for k, v in took.items()}
    each = gradients(*rounds[0])
    gaps = [
        abs(a["evidence"] - b["evidence"])
        for a, b in zip(took["ours"], took["sklearn"], strict=True)
    ]
    c.line("largest difference of the evidences found, nats", max(gaps), 1e-2)
    c.line("CPU s of a fit, ours", c.median(cpu["ours"]))
    c.line("CPU s of a fit, scikit-learn", c.median(cpu["sklearn"]))
    c.line("ratio, compiled", c.ratio(cpu["ours"], cpu["sklearn"]), LIMIT)
    c.line("ratio, the first fit with its compilation", first["cpu"] / c.median(cpu["sklearn"]))
    c.line("CPU s of a value with gradient, ours", each["ours"])
    c.line("CPU s of a value with gradient, scikit-learn", each["sklearn"])
    c.save("gp_speed", {"first": first, "took": took, "gradients": each})


MODEL = model()

if __name__ == "__main__":
    main()
