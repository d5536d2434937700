"""The default of `pk.VI`: eight schools as written centred, in fresh processes, compiling included.

Truth is quadrature's log evidence. Wall and processor seconds are of ``pk.fit`` alone, with the
caches on disk switched off; a second table leaves the reparametrisation out.

``python -m benchmarks.vi_default [--seeds 5]``
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

from benchmarks import _common as c
from benchmarks.vi_speed import FRESH


def child(seed: int, reparam: str) -> None:
    """One process: fit once, print figures as JSON."""
    import probkit as pk
    from benchmarks._models import CASES

    case = CASES["schools"]()
    wall, cpu = time.perf_counter(), time.process_time()
    posterior = pk.fit(
        case.model, case.data, method=pk.VI(), seed=seed, reparam=reparam, progress=False
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    weights = posterior.weights
    assert weights is not None
    figures = {
        "wall": wall,
        "cpu": cpu,
        "compile": posterior.seconds["compile"],
        "elbo": weights.elbo.value,
        "log_evidence": weights.log_evidence.value,
        "k_hat": weights.khat,
        "ess": weights.ess_ratio,
        "steps": posterior.approximation.stats["steps"],  # type: ignore[union-attr]
        "ok": posterior.check().ok,
    }
    print(json.dumps(figures))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--child", nargs=2)
    args = parser.parse_args()
    if args.child:
        child(int(args.child[0]), args.child[1])
        return
    from benchmarks._models import CASES
    from benchmarks.evidence import quadrature

    data = CASES["schools"]().data
    exact = quadrature(data["y"].astype(float), data["sigma"].astype(float))
    out: dict[str, Any] = {"quadrature": exact}
    for reparam, limit in (("auto", -31.36), ("off", -31.45)):
        rows = []
        for seed in range(args.seeds):
            command = c.python("-m", "benchmarks.vi_default", "--child", str(seed), reparam)
            rows.append(c.process(command, FRESH).last_json())
            print(f"  reparam={reparam} seed {seed}: {rows[-1]}", flush=True)
        out[reparam] = rows
        c.line(f"{reparam}: lowest ELBO", min(r["elbo"] for r in rows), limit, at_least=True)
        gap = max(abs(r["log_evidence"] - exact) for r in rows)
        c.line(f"{reparam}: log evidence, largest error", gap, 0.02 if reparam == "auto" else None)
        limit = 8.0 if reparam == "auto" else None
        c.line(f"{reparam}: wall seconds, median", c.median([r["wall"] for r in rows]), limit)
        c.line(f"{reparam}: processor seconds, median", c.median([r["cpu"] for r in rows]))
        c.line(f"{reparam}: steps, median", float(np.median([r["steps"] for r in rows])))
    c.save("vi_default", out)


if __name__ == "__main__":
    sys.exit(main())
