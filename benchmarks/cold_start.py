"""Cold start and second process: eight schools, 4 chains of 1000 + 1000.

* cold: wall and CPU seconds of the whole process, from ``python`` to the printed verdict, with
  nothing cached; NumPyro and blackjax up to ``az.summary``.
* second process: CPU seconds from the end of the import until the draws are there, with
  serialised executables (probkit's own cache) and with JAX's persistent cache alone.

Fresh processes take turns. ``python -m benchmarks.cold_start [--rounds 5]``
"""

from __future__ import annotations

import argparse
import tempfile

from benchmarks import _common as c

_NOTHING = {"PROBKIT_CACHE": "off", "BENCHMARK_JAX_CACHE": None, "JAX_COMPILATION_CACHE_DIR": None}


def _child(name: str, env: dict) -> c.Ran:
    return c.process(c.python("-m", "benchmarks._children", name), {**_NOTHING, **env})


def cold(rounds: int) -> dict:
    """Whole processes without any cache."""
    names = ("cold_probkit", "table_probkit", "cold_numpyro", "cold_blackjax")
    makers = {k: (lambda k=k: _child(k, {})) for k in names}
    c.take_turns(makers, 1)
    found = c.take_turns(makers, rounds)
    figures = {
        k: {"wall": [x.wall for x in v], "cpu": [x.cpu for x in v]} for k, v in found.items()
    }
    for clock in ("wall", "cpu"):
        ours = figures["cold_probkit"][clock]
        print(
            f"cold start, {clock}: "
            + ", ".join(
                f"{k.split('_')[1] if 'cold' in k else 'probkit with its summary'} "
                f"{c.median(v[clock]):.1f} s"
                for k, v in figures.items()
            )
        )
        c.line("probkit / numpyro", c.ratio(ours, figures["cold_numpyro"][clock]), 0.6)
        c.line("probkit / blackjax", c.ratio(ours, figures["cold_blackjax"][clock]))
        c.line(
            "probkit with its summary / numpyro",
            c.ratio(figures["table_probkit"][clock], figures["cold_numpyro"][clock]),
        )
    return figures


def second(rounds: int) -> dict:
    """Processes that find a warm cache."""
    with tempfile.TemporaryDirectory() as folder:
        envs = {
            "serialised executables": ("warm_probkit", {"PROBKIT_CACHE": f"{folder}/own"}),
            "persistent cache": ("warm_probkit", {"BENCHMARK_JAX_CACHE": f"{folder}/jax"}),
            "numpyro, persistent cache": (
                "warm_numpyro",
                {"BENCHMARK_JAX_CACHE": f"{folder}/numpyro"},
            ),
        }
        makers = {k: (lambda v=v: _child(*v).last_json()) for k, v in envs.items()}
        c.take_turns(makers, 2)
        found = c.take_turns(makers, rounds)
    limits = {"serialised executables": 1.0, "persistent cache": 1.5}
    print("second process, CPU seconds after import")
    for name, rows in found.items():
        c.line(name, c.median([x[1] for x in rows]), limits.get(name))
    theirs = [x[1] for x in found["numpyro, persistent cache"]]
    for name in limits:
        c.line(f"{name} / numpyro", c.ratio([x[1] for x in found[name]], theirs))
    return {k: {"wall": [x[0] for x in v], "cpu": [x[1] for x in v]} for k, v in found.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    c.save("cold_start", {"cold": cold(args.rounds), "second": second(args.rounds)})


if __name__ == "__main__":
    main()
