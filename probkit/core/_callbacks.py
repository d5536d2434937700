"""Callbacks of the driver: progress, time limits and checkpoints, for every method at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probkit.core._checkpoint import CheckpointFile
from probkit.core._status import Status


@dataclass
class Progressed:
    """What a callback is told after each chunk.

    Attributes:
        t: steps done. total: steps at the most. warmup: leading steps that are adaptation.
        seconds: since the start of this call of `run`.
        infos: the chunk's infos, shape ``(chain, step, ...)``, by name.
        snapshot: makes the run's whole state (host arrays), for checkpoints.
    """

    t: int
    total: int
    warmup: int
    seconds: float
    infos: dict[str, np.ndarray]
    snapshot: Callable[[], Any]
    done: bool = False


class Callback:
    """Base of callbacks: called after each chunk; returns None to go on, or a `Status` to stop."""

    def start(self, total: int, warmup: int, t: int) -> None:
        """Called once before the first chunk."""

    def __call__(self, progressed: Progressed) -> Status | None:
        """Called after each chunk."""
        return None

    def stop(self) -> None:
        """Called once at the end, also after an error."""

    def within(self, seconds: float) -> Callback | None:
        """What judges the runs that a method starts as it finishes, so long after the start."""
        return None


class Progress(Callback):
    """A tqdm bar with the phase, divergences and step size.

    Example:
        >>> bar = Progress(disable=True)
    """

    def __init__(self, *, disable: bool | None = None, describe: str = ""):
        self._disable = disable
        self._describe = describe
        self._bar: Any = None
        self._divergences = 0

    def start(self, total: int, warmup: int, t: int) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=total, initial=t, disable=self._disable, desc=self._describe, leave=True
        )

    def __call__(self, progressed: Progressed) -> Status | None:
        bar = self._bar
        phase = "warm-up" if progressed.t <= progressed.warmup else "draws"
        notes = {}
        if "diverging" in progressed.infos and progressed.t > progressed.warmup:
            steps = progressed.infos["diverging"].shape[1]
            kept = min(steps, progressed.t - progressed.warmup)
            self._divergences += int(progressed.infos["diverging"][:, steps - kept :].sum())
            notes["divergences"] = self._divergences
        if "step_size" in progressed.infos:
            notes["step"] = f"{float(np.mean(progressed.infos['step_size'][:, -1])):.3g}"
        bar.set_description(f"{self._describe} {phase}".strip(), refresh=False)
        bar.set_postfix(notes, refresh=False)
        bar.update(progressed.t - bar.n)
        return None

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.close()


class TimeLimit(Callback):
    """Stop after a number of seconds (wall clock, checked after each chunk of about a second).

    Runs that a method starts as it finishes this one (``pk.VI(family="auto")``) end at the same
    time, their compilation counted.

    Example:
        >>> limit = TimeLimit(60.0)
    """

    def __init__(self, seconds: float):
        if not seconds > 0:
            raise ValueError(f"TimeLimit: expected a positive number of seconds, found {seconds}.")
        self._seconds = seconds
        self._end = float("inf")

    def __call__(self, progressed: Progressed) -> Status | None:
        over = progressed.seconds >= self._seconds or time.perf_counter() >= self._end
        return Status.TIME_LIMIT if over else None

    def within(self, seconds: float) -> Callback | None:
        inner = TimeLimit(self._seconds)
        inner._end = min(self._end, time.perf_counter() + self._seconds - seconds)
        return inner


class Checkpoint(Callback):
    """Write the run's state to a file every ``every`` seconds and at the end, atomically.

    The last write is made however the run ends: done, out of time, interrupted, or by an error.
    Resume with ``pk.fit(..., resume=path)``: the draws equal those of an unbroken run bit for bit.

    Args:
        path: a folder; created if need be. It holds the state and the history in pieces, so that
            the cost of a checkpoint does not grow with the length of the run.
        every: seconds between writes.

    Example:
        >>> import tempfile
        >>> checkpoint = Checkpoint(tempfile.mkdtemp(), every=10.0)
    """

    def __init__(self, path: str | Path, every: float = 30.0):
        if not every >= 0:
            raise ValueError(f"Checkpoint(every): expected seconds, at least 0, found {every}.")
        self.file = CheckpointFile(Path(path))
        self._every = every
        self._last = time.monotonic()
        self._unwritten: Callable[[], Any] | None = None

    def start(self, total: int, warmup: int, t: int) -> None:
        self._last = time.monotonic()

    def __call__(self, progressed: Progressed) -> Status | None:
        self._unwritten = progressed.snapshot
        if progressed.done or time.monotonic() - self._last >= self._every:
            self._write()
        return None

    def stop(self) -> None:
        if self._unwritten is not None:
            self._write()

    def _write(self) -> None:
        if self._unwritten is not None:
            self.file.write(self._unwritten())
            self._unwritten = None
            self._last = time.monotonic()
