"""Effective draws per second, end to end, against NumPyro, blackjax and nutpie.

The smallest bulk ESS over all reported values (the same values everywhere, ArviZ's estimator) over
the seconds from the data to the draws on the host. Each cell (model, sampler, seed) is a fresh
process that fits twice: the first fit pays for tracing and compiling, the second does not. Imports
are not counted. All libraries run under a limit of one BLAS thread.

Cells are kept in ``benchmarks/results/ess`` and not run again; samplers take turns seed by seed.
nutpie runs on PyMC models through numba, in the environment ``.venv-peers`` if there is one.

``python -m benchmarks.ess_per_second [--seeds 5] [--models schools,affairs] [--quick]``
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _common as c

#: The samplers that make sense for each model. (On gauss100 a diagonal metric gives two effective
#: draws in a hundred: no contest.)
MODELS = {
    "schools": ("probkit", "numpyro", "blackjax", "blackjax low rank", "nutpie"),
    "affairs": (
        "probkit",
        "numpyro",
        "numpyro in turns",
        "numpyro dense",
        "blackjax",
        "blackjax in turns",
        "blackjax low rank",
        "nutpie",
        "nutpie low rank",
    ),
    "gauss100": ("probkit", "numpyro dense", "blackjax low rank", "nutpie low rank"),
    "process": (
        "probkit",
        "numpyro",
        "numpyro in turns",
        "blackjax",
        "blackjax in turns",
        "blackjax low rank",
        "nutpie",
    ),
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "probkit": {},
    "numpyro": {},
    "numpyro in turns": {"turns": True},
    "numpyro dense": {"dense": True},
    "blackjax": {},
    "blackjax in turns": {"turns": True},
    "blackjax low rank": {"low_rank": True},
    "nutpie": {},
    "nutpie low rank": {"low_rank": True},
}
#: Warm-up and draws where they are not 1000 each: an evaluation of the process takes milliseconds.
LENGTHS = {"process": 150}
#: A cell that takes longer (seconds) is ended and counts as failed.
_LIMIT = 1200.0
_PEERS = c.ROOT / ".venv-peers" / "bin" / "python"
_CELLS = c.RESULTS / "ess"


def fit_twice(model: str, sampler: str, seed: int, quick: bool) -> dict[str, Any]:
    """One cell, in this process."""
    import threadpoolctl

    from benchmarks import _samplers

    _samplers.WARMUP = _samplers.DRAWS = 100 if quick else LENGTHS.get(model, 1000)
    kind = sampler.split()[0]
    options = SAMPLERS[sampler]
    if kind == "nutpie":
        fit = _samplers.nutpie(model, **options)
    else:
        import jax

        if model == "process":
            jax.config.update("jax_enable_x64", True)
        from benchmarks._models import CASES

        fit = getattr(_samplers, kind)(CASES[model](), **options)
    out: dict[str, Any] = {}
    for name, offset in (("cold", 0), ("warm", 1000)):
        with threadpoolctl.threadpool_limits(1):
            wall, cpu = time.perf_counter(), time.process_time()
            draws = fit(seed + offset)
            row = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        out[name] = {**row, **judged(draws)}
    out["load"] = os.getloadavg()
    return out


def judged(draws: dict[str, Any]) -> dict[str, Any]:
    """Smallest bulk ESS and largest R-hat over all components, by ArviZ; posterior means."""
    import arviz

    data: Any = arviz.convert_to_dataset(draws)
    ess: Any = arviz.ess(data, method="bulk")
    rhat: Any = arviz.rhat(data)
    return {
        "ess": float(min(ess[k].min() for k in ess)),
        "rhat": float(max(rhat[k].max() for k in rhat)),
        "where": str(min(ess, key=lambda k: float(ess[k].min()))),
        "means": {k: float(v.mean()) for k, v in draws.items()},
    }


def cell(model: str, sampler: str, seed: int, quick: bool) -> dict[str, Any]:
    """One cell from its file, or from a fresh process that writes it."""
    folder = _CELLS.with_name("ess_quick") if quick else _CELLS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}-{sampler.replace(' ', '_')}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    found: dict[str, Any]
    own = _PEERS if sampler.startswith("nutpie") and _PEERS.exists() else Path(sys.executable)
    with tempfile.TemporaryDirectory() as caches:
        env = {
            "PROBKIT_CACHE": "off",
            "JAX_COMPILATION_CACHE_DIR": None,
            "NUMBA_CACHE_DIR": f"{caches}/numba",
            "PYTENSOR_FLAGS": f"base_compiledir={caches}/pytensor",
        }
        _, *flags = c.python("-m", "benchmarks.ess_per_second", "--cell", model, sampler, str(seed))
        try:
            ran = c.process([str(own), *flags, *(["--quick"] if quick else [])], env, _LIMIT)
            found = ran.last_json()
        except RuntimeError as error:
            found = {"failed": str(error)[-800:]}
    path.write_text(json.dumps(found))
    warm: dict[str, Any] = found.get("warm", {})
    told = (
        "failed"
        if "failed" in found
        else (
            f"cold {found['cold']['wall']:.1f} s, warm {warm['wall']:.2f} s "
            f"({warm['cpu']:.2f} CPU), ESS {warm['ess']:.0f}"
        )
    )
    print(f"  {model}, {sampler}, seed {seed}: {told}", flush=True)
    return found


def table(model: str, cells: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over seeds by sampler, and our ratio to the best of the others."""
    rates: dict[str, dict[str, float]] = {}
    for sampler, rows in cells.items():
        rows = [x for x in rows if "failed" not in x]
        if rows:
            rates[sampler] = {
                f"{kind} {clock}": c.median([x[kind]["ess"] / x[kind][clock] for x in rows])
                for kind in ("cold", "warm")
                for clock in ("wall", "cpu")
            }
            rates[sampler]["ess"] = c.median([x["warm"]["ess"] for x in rows])
            rates[sampler]["rhat"] = max(x["warm"]["rhat"] for x in rows)
    print(
        f"{model}: minimum bulk ESS per second, medians over {max(map(len, cells.values()))} seeds"
    )
    for sampler, row in rates.items():
        print(f"  {sampler:<18}" + "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
    ratios = {}
    others = {k: v for k, v in rates.items() if k != "probkit"}
    if "probkit" in rates and others:
        for kind in ("cold wall", "warm wall", "cold cpu", "warm cpu"):
            best = max(others, key=lambda k: others[k][kind])
            ratios[kind] = rates["probkit"][kind] / others[best][kind]
            c.line(f"{kind}: probkit / best ({best})", ratios[kind], 0.9, at_least=True)
    return {"rates": rates, "ratios": ratios, "cells": cells}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--samplers", help="by default those that suit each model")
    parser.add_argument("--quick", action="store_true", help="100 + 100 draws, one seed")
    parser.add_argument("--cell", nargs=3, metavar=("MODEL", "SAMPLER", "SEED"))
    args = parser.parse_args()
    if args.cell:
        model, sampler, seed = args.cell
        print(json.dumps(fit_twice(model, sampler, int(seed), args.quick)))
        return
    figures = {}
    seeds = 1 if args.quick else args.seeds
    for model in args.models.split(","):
        samplers = args.samplers.split(",") if args.samplers else MODELS[model]
        cells: dict[str, list] = {k: [] for k in samplers}
        for seed in range(seeds):
            for name in samplers:
                cells[name].append(cell(model, name, seed, args.quick))
        figures[model] = table(model, cells)
    c.save("ess_quick" if args.quick else "ess_per_second", figures)


if __name__ == "__main__":
    main()
