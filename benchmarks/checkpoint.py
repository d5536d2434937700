"""Checkpoints: what writing them costs a run of a minute or more, the same seed with and without.

The runs of a model take turns in one process, after one short run that compiles. ``schools`` is
the hard case: its steps are so short that a minute's history is large.

``python -m benchmarks.checkpoint [--cases affairs,schools] [--seconds 70] [--rounds 3]``
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import probkit as pk
from benchmarks import _common as c
from benchmarks._models import CASES, Case

_EVERY = {"off": None, "30 s": 30.0, "5 s": 5.0}


def _fit(case: Case, draws: int, every: float | None, model: Any) -> dict:
    """One run; its clocks and the bytes that it left."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {}
        if every is not None:
            options = {"checkpoint": folder, "checkpoint_every": every}
        target = model.bind(case.data, **case.bind)
        wall, cpu = time.perf_counter(), time.process_time()
        posterior = pk.fit(
            target, method=pk.NUTS(draws=draws, warmup=500), seed=0, progress=False, **options
        )
        clocks = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        size = sum(x.stat().st_size for x in Path(folder).iterdir())
    last = posterior.stats["lp"][:, -1]
    return {**clocks, "bytes": size, "last": np.asarray(last).tolist()}


def judge(name: str, seconds: float, rounds: int) -> dict:
    """Ratios with and without checkpoints for one model."""
    case = CASES[name]()
    _fit(case, 1, None, case.model)
    first, more = (_fit(case, n, None, case.model)["wall"] for n in (200, 1200))
    draws = int(max(1000, 1000 * (seconds - first) / (more - first)))
    makers = {k: (lambda v=v: _fit(case, draws, v, case.model)) for k, v in _EVERY.items()}
    found = c.take_turns(makers, rounds)
    off = found["off"]
    size = max(x["bytes"] for x in found["5 s"]) / 2**20
    print(
        f"{name}: {draws} draws a chain, {c.median([x['wall'] for x in off]):.0f} s without "
        f"checkpoints, {size:.1f} MiB of them"
    )
    if any(x["last"] != off[0]["last"] for rows in found.values() for x in rows):
        raise AssertionError("checkpoints changed the draws")
    for every in ("30 s", "5 s"):
        for clock in ("wall", "cpu"):
            ratio = c.ratio([x[clock] for x in found[every]], [x[clock] for x in off])
            limit = 1.03 if every == "30 s" else None
            c.line(f"every {every}: {clock}, with / without", ratio, limit)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="affairs,schools")
    parser.add_argument("--seconds", type=float, default=70.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found = {k: judge(k, args.seconds, args.rounds) for k in args.cases.split(",")}
    c.save("checkpoint", found)


if __name__ == "__main__":
    main()
