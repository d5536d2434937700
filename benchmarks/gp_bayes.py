"""Fully Bayesian regression on concrete strength: draws of the hyperparameters against an optimum.

ARD squared-exponential kernel, splits of 80 and 20 %, inputs and outcomes standardised by the
training rows (figures are in the outcomes' own units). Priors: length scales Gamma(2, 1), sd of
the function and of the noise HalfCauchy(1). The function is integrated out exactly; the predictive
density is the mixture over draws.

``--data`` is a folder with uci_concrete.npz (arrays X, y). ``--pieces FOLDER`` ends a run of draws
after ``--seconds`` and goes on from there when the same command is given again; the seconds of all
pieces are added up. Chains are divided between two devices of the host, one for each of two cores
(``XLA_FLAGS`` in the environment is taken instead where it is set). The seconds are those of the
whole fit: compilation, the search for the top, warm-up, draws, and the function given each draw.

``python -m benchmarks.gp_bayes --data FOLDER [--splits 1] [--draws 1000] [--small 10]``
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import probkit as pk
from benchmarks import _common as c
from probkit.inference.gaussian import _marginal
from probkit.inference.gaussian._posterior import log_predictive

LIMIT, MINUTES, MIXED, _MANY = 2.96, 5.0, 200, 400


def model() -> pk.Model:
    """The regression; one length scale a column."""
    return pk.Model(
        length=pk.rv(pk.dist.Gamma(2.0, 1.0), dims="column"),
        sd=pk.dist.HalfCauchy(1.0),
        noise=pk.dist.HalfCauchy(1.0),
        f=pk.gp(lambda sd, length: pk.kernels.RBF(length, sd**2), at="x"),
        y=pk.rv(lambda f, noise: pk.dist.Normal(f, noise), dims="row"),
    )


def split(folder: str, seed: int, rows: int | None) -> tuple[dict, dict, float]:
    """Training and test data in standard units, and the outcomes' unit."""
    with np.load(Path(folder) / "uci_concrete.npz") as arrays:
        x, y = arrays["X"], arrays["y"]
    order = np.random.default_rng(seed).permutation(len(y))
    cut = int(0.8 * len(y))
    train, test = order[: rows or cut], order[cut:]
    mean, unit = x[train].mean(0), x[train].std(0)
    level, spread = float(y[train].mean()), float(y[train].std())
    parts = [{"x": (x[r] - mean) / unit, "y": (y[r] - level) / spread} for r in (train, test)]
    return parts[0], parts[1], spread


def bound(data: dict) -> pk.Target:
    """A Target of one part."""
    return MODEL.bind(data, dims={"x": ("row", "column"), "y": ("row",)})


def drawn_in_pieces(args: Any, target: pk.Target, seed: int) -> tuple[pk.Posterior, float, float]:
    """The draws, and their CPU and wall-clock seconds over all pieces."""
    # pk.Marginal()'s own; with many rows the posterior is nearly normal, and half of it is enough.
    options: dict[str, Any] = {"metric": "low_rank", "target_accept": 0.65}
    if len(target.labels.observed["y"]) > _MANY:
        options = {"metric": "identity", "target_accept": 0.55}
    warmup = args.warmup or (150 if options["metric"] == "identity" else 250)
    nuts = pk.NUTS(draws=args.draws, warmup=warmup, chains=args.chains, **options)
    folder = Path(args.pieces) / f"{len(target.labels.observed['y'])}-{seed}"
    clocks = folder / "clocks.json"
    before = json.loads(clocks.read_text()) if clocks.exists() else [0.0, 0.0]
    cpu, wall = time.process_time(), time.perf_counter()
    whole: Any = {}
    if args.pieces:
        whole = {"checkpoint": folder}
        whole["time_limit"] = args.seconds if np.isfinite(args.seconds) else None
        whole["resume"] = folder if (folder / "state.npz").exists() else None
    fit = pk.fit(target, method=pk.Marginal(nuts), seed=seed, progress=False, **whole)
    clock = before[0] + time.process_time() - cpu, before[1] + time.perf_counter() - wall
    if args.pieces:
        clocks.write_text(json.dumps(clock))
    if not fit.status.ok:
        told = f"split {seed}: {fit.status.name} after {clock[0]:.0f} CPU s"
        raise c.TimeIsUp(f"{told}: give the command again")
    return fit, *clock


def one(args: Any, seed: int, rows: int | None) -> dict[str, float]:
    """One split: both fits and their scores."""
    train, test, spread = split(args.data, seed, rows)
    target, new = bound(train), bound(test)
    clock = time.process_time()
    optimum = pk.fit(target, method=pk.GPExact(objective="ml2"), seed=seed, progress=False)
    assert optimum.approximation is not None
    plain = -float(np.mean(log_predictive(target, optimum.approximation, new))) + np.log(spread)
    first, clock = time.process_time() - clock, time.process_time()
    drawn, second, wall = drawn_in_pieces(args, target, seed)
    clock = time.process_time()
    draws = drawn._drawn.unconstrained
    theta = _marginal.hyperparameters(target, draws.reshape(-1, draws.shape[-1]))
    some = theta[np.linspace(0, len(theta) - 1, min(MIXED, len(theta))).astype(int)]
    mixed = _marginal.mixture(target, new, some)
    table: Any = drawn.summary(var_names=["length", "sd", "noise"])
    steps = float(np.mean(drawn.stats["n_steps"]))
    return {
        "rows": len(train["y"]),
        "ml2": plain,
        "nuts": -float(np.mean(mixed["log_density"])) + np.log(spread),
        "cpu_ml2": first,
        "cpu_nuts": second,
        "wall_nuts": wall,
        "cpu_mixture": time.process_time() - clock,
        "gradients_per_draw": steps,
        "cpu_per_draw": second / (args.chains * args.draws),
        "ess": float(np.min(np.asarray(table["ess_bulk"]))),
        "r_hat": float(np.max(np.asarray(table["r_hat"]))),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=0, help="by default 150 or 250")
    c.Pieces.options(parser)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--small", type=int, default=0, help="splits with 40 training rows")
    args = parser.parse_args()
    figures: dict[str, Any] = {"jax": jax.__version__}
    for name, count, rows in (("whole", args.splits, args.rows), ("small", args.small, 40)):
        found = []
        for seed in range(count):
            found.append(one(args, seed, rows))
            print(name, {k: round(v, 4) for k, v in found[-1].items()}, flush=True)
        if not found:
            continue
        figures[name] = found
        nuts = float(np.mean([r["nuts"] for r in found]))
        # (The optimum of a split can interpolate, with a score that says nothing in a mean.)
        gain = float(np.median([r["ml2"] - r["nuts"] for r in found]))
        c.line(f"{name}: NLPD of {args.chains} x {args.draws} draws", nuts)
        if name == "whole" and rows is None:
            c.line("whole: against the published one", nuts, LIMIT)
            slowest = max(r["wall_nuts"] for r in found) / 60.0
            c.line("whole: minutes of the longest fit", slowest, MINUTES)
        c.line(
            f"{name}: gain over the optimum, nats a row, median of splits",
            gain,
            0.05 if name == "small" else None,
            at_least=True,
        )
    c.save("gp_bayes", figures)


MODEL = model()

if __name__ == "__main__":
    main()
