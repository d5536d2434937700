"""Exact regression at n = 1000 to the same optimum: CPU seconds beside other libraries'.

A squared-exponential kernel in two columns with noise, three hyperparameters by maximum marginal
likelihood, one thread. All take turns; the clock is a process' CPU time. scikit-learn shares the
process of this package, tinygp and GPyTorch have processes of their own in the environment
``.venv-gp-peers`` (``make .venv-gp-peers/.stamp``; left out where there is none). The others search
from ones, and this package from the best of four random points. Ends are compared: the evidences
must agree. The first fit of each library is that with its compilation; nothing is read from disk.
Libraries are imported before their clocks start.

``python -m benchmarks.gp_speed [--rows 1000] [--rounds 3] [--peers PYTHON]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ["PROBKIT_CACHE"] = "off"
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)

import argparse  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

import probkit as pk  # noqa: E402
from benchmarks import _common as c  # noqa: E402
from probkit.core._trees import in_precision  # noqa: E402
from probkit.inference.gaussian import _gp_exact  # noqa: E402
from probkit.inference.gaussian._problem import Problem  # noqa: E402

LIMITS = {"sklearn": 0.8, "tinygp": 1.0, "gpytorch": 1.0}
_PEERS = c.ROOT / ".venv-gp-peers" / "bin" / "python"


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
    fit = FIT(target, method=METHOD, progress=False)
    assert fit.approximation is not None
    return {
        "cpu": time.process_time() - clock,
        "evidence": float(fit.approximation.log_evidence or np.nan),
        "evaluations": float(fit.approximation.stats["steps"]),
    }


def sklearn(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
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


class Elsewhere:
    """A library in a process of its own, that fits data set ``i`` when it is asked to."""

    def __init__(self, python: str, library: str, path: Path):
        script = str(c.HERE / "_gp_peers.py")
        self.process = subprocess.Popen(
            [python, "-W", "ignore", script, library, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        found = self.process.stdout.readline()
        if not found:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return found

    def fit(self, i: int) -> dict[str, float]:
        """CPU seconds and evidence."""
        assert self.process.stdin is not None
        print(i, file=self.process.stdin, flush=True)
        return json.loads(self._read())


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
    parser.add_argument("--peers", default=str(_PEERS))
    args = parser.parse_args()
    sets = [data(args.rows, i) for i in range(args.rounds + 1)]
    makers: dict[str, Callable[[int], dict[str, float]]] = {
        "ours": lambda i: ours(*sets[i]),
        "sklearn": lambda i: sklearn(*sets[i]),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        arrays: dict[str, Any] = {
            f"{k}{i}": v for i, pair in enumerate(sets) for k, v in zip("xy", pair, strict=True)
        }
        np.savez(path, **arrays)
        if Path(args.peers).exists():
            for name in ("tinygp", "gpytorch"):
                makers[name] = Elsewhere(args.peers, name, path).fit
        else:
            print(f"  no {args.peers}: tinygp and GPyTorch are left out")
        took: dict[str, list[dict[str, float]]] = {name: [] for name in makers}
        for i in range(args.rounds + 1):
            for name in list(makers)[:: 1 if i % 2 == 0 else -1]:
                took[name].append(makers[name](i))
    report(took)
    each = gradients(*sets[1])
    for name, seconds in each.items():
        c.line(f"CPU s of a value with gradient, {name}", seconds)
    c.save("gp_speed", {"took": took, "gradients": each})


def report(took: dict[str, list[dict[str, float]]]) -> None:
    """Seconds, ratios, and how far apart the ends are."""
    evidence = {k: [r["evidence"] for r in v] for k, v in took.items()}
    for name in took:
        first, rest = took[name][0]["cpu"], [r["cpu"] for r in took[name][1:]]
        c.line(f"CPU s, {name}: first fit", first)
        c.line(f"CPU s, {name}: later fits", c.median(rest))
        if name == "ours":
            continue
        gaps = [a - b for a, b in zip(evidence[name], evidence["ours"], strict=True)]
        c.line(f"evidence of {name} above ours, at the most, nats", max(gaps), 1e-2)
        c.line(f"evidence of {name} below ours, at the most, nats", -min(gaps))
        later = [r["cpu"] for r in took["ours"][1:]]
        c.line(f"ratio to {name}, later fits", c.ratio(later, rest), LIMITS[name])
        c.line(f"ratio to {name}, first fits", took["ours"][0]["cpu"] / first, LIMITS[name])


MODEL, METHOD, FIT = model(), pk.GPExact(objective="ml2", starts=1, draws=1), pk.fit

if __name__ == "__main__":
    main()
