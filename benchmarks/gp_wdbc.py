"""Breast cancer (WDBC): five-fold NLPD of the engines, and their CPU seconds.

A probit classifier with an isotropic Matern-5/2 kernel, hyperparameters by ML-II; inputs are
standardised on all rows (as in the paper whose figures are the reference). Folds are those of
scikit-learn's KFold, shuffled with seeds 1 to 9 and 42. The class is whether the tumour is benign.

The yardstick for the seconds is LAPACK's Cholesky factor of a matrix of a fold's size.

The same comparison on another set, the paper's other sets among them: ``--set NAME --data FOLDER``,
for a file NAME.npz of arrays train_X, train_Y, test_X, test_Y (which are put together again).

``python -m benchmarks.gp_wdbc [--seeds 10] [--engines ep cvi hybrid laplace] [--pieces FOLDER
--seconds 300]``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import probkit as pk
from benchmarks import _common as c
from probkit.inference.gaussian._posterior import log_predictive

SEEDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 42)
#: NLPD at the most (published figure plus its slack), and CPU-seconds for 50 folds on two cores.
LIMITS = {"ep": (0.0795, 120.0), "cvi": (0.0773 + 0.007, 180.0), "hybrid": (0.0823, 180.0)}
METHODS: dict[str, Any] = {
    "ep": pk.EP,
    "cvi": pk.CVI,
    "hybrid": pk.HybridEP,
    "laplace": pk.GPLaplace,
}


def model(columns: int) -> pk.Model:
    """The classifier: two hyperparameters, whose priors give starting points only (ML-II)."""
    return pk.Model(
        sd=pk.dist.LogNormal(0.0, 1.0),
        length=pk.dist.LogNormal(1.0, 1.0),
        f=pk.gp(
            lambda sd, length: sd**2 * pk.kernels.Matern52(length),
            at=[f"x{i}" for i in range(columns)],
        ),
        y=pk.rv(lambda f: pk.BernoulliProbit(f), dims="row"),
    )


def load(name: str, folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, standardised on all rows, and labels of zero and one."""
    if name == "wdbc":
        from sklearn.datasets import load_breast_cancer

        loaded: Any = load_breast_cancer()
        x, y = loaded.data, loaded.target
    else:
        with np.load(Path(folder) / f"{name}.npz") as arrays:
            x, y = (np.concatenate([arrays[f"{p}_{k}"] for p in ("train", "test")]) for k in "XY")
        y = np.ravel(y) > 0
    spread = x.std(0)
    x = (x - x.mean(0))[:, spread > 0] / spread[spread > 0]
    return x, y.astype(np.int32)


def folds(x: np.ndarray, y: np.ndarray, seed: int) -> list[list[dict[str, np.ndarray]]]:
    """Training and test columns of five folds."""
    from sklearn.model_selection import KFold

    out = []
    for rows in KFold(5, shuffle=True, random_state=seed).split(x):
        named = [{f"x{i}": x[r, i] for i in range(x.shape[1])} | {"y": y[r]} for r in rows]
        out.append(named)
    return out


def one(bound: pk.Model, method: Any, train: dict, test: dict) -> dict[str, Any]:
    """Fit one fold and score the rows left out."""
    begin = time.process_time()
    target = bound.bind(train)
    posterior = pk.fit(target, method=method, seed=0, progress=False)
    fit = time.process_time() - begin
    found = posterior.approximation
    assert found is not None
    logs = log_predictive(target, found, bound.bind(test))
    return {
        "nlpd": -float(np.mean(logs)),
        "accuracy": float(np.mean(logs > np.log(0.5))),
        "cpu": time.process_time() - begin,
        "fit": fit,
        "compile": posterior.seconds["compile"],
        "log_evidence": found.stats["log_evidence"],
        "theta": found.stats["theta"].tolist(),
        "elpd_loo": found.stats["elpd_loo"],
        "steps": found.stats["steps"],
        "site_steps": found.stats["site_steps"],
        "status": posterior.status.name,
    }


def yardstick(n: int = 455, count: int = 40) -> float:
    """CPU seconds of one Cholesky factor by LAPACK."""
    from scipy.linalg import lapack as scipy_lapack

    lapack: Any = scipy_lapack

    noise = np.random.default_rng(0).normal(size=(n, n))
    matrix = np.asfortranarray(noise @ noise.T + n * np.eye(n))
    clock = time.process_time()
    for _ in range(count):
        lapack.dpotrf(matrix)
    return (time.process_time() - clock) / count


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--engines", nargs="*", default=list(METHODS))
    parser.add_argument("--set", default="wdbc")
    parser.add_argument("--data", default=".")
    c.Pieces.options(parser)
    args = parser.parse_args()
    pieces, factor = c.Pieces.of(args), yardstick()
    x, y = load(args.set, args.data)
    bound, figures = model(x.shape[1]), {}
    prefix = "" if args.set == "wdbc" else f"{args.set}-"
    for name in args.engines:
        method = METHODS[name](objective="ml2", starts=1, screen=4)
        rows = []
        for seed in SEEDS[: args.seeds]:
            rows += pieces.get(
                f"{prefix}{name}-{seed}",
                lambda method=method, seed=seed: [
                    one(bound, method, *f) for f in folds(x, y, seed)
                ],
            )
            mean = float(np.mean([r["nlpd"] for r in rows]))
            print(f"  {name}: NLPD {mean:.4f} over {len(rows)} folds", flush=True)
        count = len(rows)
        nlpd = float(np.mean([r["nlpd"] for r in rows]))
        cpu = float(np.sum([r["cpu"] for r in rows]))
        # Folds have 455 or 456 rows: two programs, compiled once each, and read from disk later.
        ready = [r["cpu"] for r in rows if r["compile"] < 1.0]
        warm = float(np.mean(ready)) if ready else cpu / count
        limit = LIMITS.get(name, (None, None)) if args.set == "wdbc" else (None, None)
        c.line(f"{name}: NLPD over {count} folds", nlpd, limit[0])
        right = [r["accuracy"] for r in rows if "accuracy" in r]
        c.line(f"{name}: share of labels right", float(np.mean(right)) if right else np.nan)
        c.line(f"{name}: CPU s for {count} folds, compilation included", cpu)
        c.line(f"{name}: CPU s for 50 folds at the rate of warm folds", 50 * warm, limit[1])
        c.line(f"{name}: a warm fold in Cholesky factors", warm / factor)
        c.line(f"{name}: folds that did not converge", sum(r["status"] != "OK" for r in rows))
        figures[name] = {"nlpd": nlpd, "cpu": cpu, "folds": count, "rows": rows}
    c.save(f"gp_{args.set}", {"jax": jax.__version__, "engines": figures})


if __name__ == "__main__":
    main()
