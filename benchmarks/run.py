"""All benchmarks one after another: ``python -m benchmarks.run [--quick]``.

``--quick`` walks through all of them in minutes; its figures are of no use.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks import _common as c

_ALL: dict[str, tuple[str, ...]] = {
    "compile_once": (),
    "overhead": ("--timings", "3", "--compiles", "1", "--cases", "schools"),
    "import_time": ("--rounds", "3"),
    "cold_start": ("--rounds", "1"),
    "evidence": ("--seeds", "1"),
    "checkpoint": ("--cases", "schools", "--seconds", "3", "--rounds", "1"),
    "ess_per_second": ("--quick",),
}


def main() -> int:
    """Run them; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    failed = 0
    for name, options in _ALL.items():
        print(f"\n== {name}", flush=True)
        command = c.python("-m", f"benchmarks.{name}", *(options if quick else ()))
        failed += subprocess.run(command, cwd=c.ROOT).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
