"""Import time: ``import probkit`` against ``import numpyro``, and what the import brings along.

Fresh processes take turns. Both packages are byte-compiled first.

``python -m benchmarks.import_time [--rounds 15]``
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
from pathlib import Path

from benchmarks import _common as c

HEAVY = (
    "xarray",
    "pandas",
    "blackjax",
    "arviz",
    "matplotlib",
    "funsor",
    "gpjax",
    "optimistix",
    "lineax",
    "beartype",
)
_CHILD = """
import json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
import {name}
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu,
                  [m for m in {heavy!r} if m in sys.modules]]))
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    for name in ("probkit", "numpyro"):
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        compileall.compile_dir(Path(spec.origin).parent, quiet=1)

    def once(name: str) -> list:
        code = _CHILD.format(name=name, heavy=HEAVY)
        ran = c.process(c.python("-c", code))
        return [*json.loads(ran.out), ran.wall, ran.cpu]

    makers = {k: (lambda k=k: once(k)) for k in ("probkit", "numpyro")}
    c.take_turns(makers, 2)  # byte code of dependencies, files into memory
    found = c.take_turns(makers, args.rounds)
    ours, theirs = found["probkit"], found["numpyro"]
    columns = {"import, wall": 0, "import, CPU": 1, "process, wall": 3, "process, CPU": 4}
    figures = {}
    for what, i in columns.items():
        a, b = [x[i] for x in ours], [x[i] for x in theirs]
        figures[what] = {"probkit": a, "numpyro": b, "ratio": c.ratio(a, b)}
        c.line(f"{what}: probkit / numpyro", c.ratio(a, b), 1.15)
        c.line(f"{what}: paired", c.paired(a, b))
    brought = ours[-1][2]
    print(f"  heavy modules after import probkit: {brought or 'none'}")
    print(
        f"  seconds: probkit {c.median([x[0] for x in ours]):.2f}, "
        f"numpyro {c.median([x[0] for x in theirs]):.2f}"
    )
    c.save("import_time", {**figures, "heavy": brought})


if __name__ == "__main__":
    main()
