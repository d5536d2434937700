"""What every benchmark shares: fresh processes, clocks, ratios and a place for the figures.

Only the standard library is imported here, so that a process that measures its own start can use
it. Every comparison is made in one run, the contestants taking turns, and is told as a ratio: the
seconds of one machine mean little on another.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
_PACKAGES = ("jax", "jaxlib", "numpyro", "blackjax", "arviz", "nutpie", "pymc", "numba", "numpy")


@dataclass(frozen=True)
class Ran:
    """One finished process: its clocks (seconds) and what it printed."""

    wall: float
    cpu: float
    out: str

    def last_json(self) -> Any:
        """The last line it printed, as JSON."""
        return json.loads(self.out.strip().splitlines()[-1])


def process(
    command: Sequence[str],
    env: Mapping[str, str | None] | None = None,
    limit: float | None = None,
) -> Ran:
    """Run a fresh process to its end; ``None`` in ``env`` removes a variable.

    Raises:
        RuntimeError: it failed (with the end of what it wrote to stderr), or took longer than
            ``limit`` seconds.
    """
    full = dict(os.environ)
    full.pop("PYTHONDONTWRITEBYTECODE", None)
    full["PYTHONPATH"] = str(ROOT)
    for name, value in (env or {}).items():
        if value is None:
            full.pop(name, None)
        else:
            full[name] = value
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    called = " ".join(command)
    try:
        done = subprocess.run(
            list(command), env=full, capture_output=True, text=True, cwd=ROOT, timeout=limit
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{called} was ended after {limit:g} s") from None
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{called} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ran(wall, cpu, done.stdout)


def python(*args: str) -> list[str]:
    """A command line for this interpreter, warnings off."""
    return [sys.executable, "-W", "ignore", *args]


def take_turns(makers: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Call each of ``makers`` once a round, in an order that reverses from round to round."""
    out: dict[str, list[Any]] = {name: [] for name in makers}
    for i in range(rounds):
        for name in list(makers)[:: 1 if i % 2 == 0 else -1]:
            out[name].append(makers[name]())
    return out


def median(values: Sequence[float]) -> float:
    """The median, as a float."""
    return float(statistics.median(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of ours over median of theirs."""
    return median(ours) / median(theirs)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the ratios within a round: what load does to a whole round cancels."""
    return median([a / b for a, b in zip(ours, theirs, strict=True)])


def machine() -> dict[str, Any]:
    """The machine, its load now, and the versions that were measured."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load": [round(x, 1) for x in os.getloadavg()],
        "versions": versions,
    }


def save(name: str, figures: Mapping[str, Any]) -> Path:
    """Write figures with the machine's description to ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")
    print(f"written: {path.relative_to(ROOT)}   load {machine()['load']}", flush=True)
    return path


class TimeIsUp(SystemExit):
    """The seconds given to one call are over; what is done is kept."""


@dataclass(frozen=True)
class Pieces:
    """A long measurement in pieces: the same command, given again, goes on where it ended.

    Attributes:
        folder: where the pieces are kept, or "" to keep none.
        seconds: wall-clock seconds after which no further piece is begun.
    """

    folder: str
    seconds: float
    begin: float

    @staticmethod
    def options(parser: Any) -> None:
        """Add ``--pieces`` and ``--seconds`` to a parser."""
        parser.add_argument("--pieces", default="", help="folder that finished pieces are kept in")
        parser.add_argument("--seconds", type=float, default=float("inf"))

    @classmethod
    def of(cls, args: Any) -> Pieces:
        """From the options parsed."""
        return cls(args.pieces, args.seconds, time.perf_counter())

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The piece of this name (JSON), made now unless it is there.

        Raises:
            TimeIsUp: it is not there, and the time is over.
        """
        path = Path(self.folder) / f"{name}.json"
        if self.folder and path.exists():
            return json.loads(path.read_text())
        if time.perf_counter() - self.begin > self.seconds:
            raise TimeIsUp(f"time is up before {name}: give the command again")
        made = make()
        if self.folder:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made))
        return made


def line(what: str, found: float, limit: float | None = None, at_least: bool = False) -> None:
    """Print a figure and, where it has a limit, whether it is met."""
    text = f"  {what:<58} {found:8.3f}"
    if limit is not None:
        met = found >= limit if at_least else found <= limit
        sign = ">=" if at_least else "<="
        text += f"   {sign} {limit:g}: {'met' if met else 'NOT met'}"
    print(text, flush=True)
