"""Stan's schedule of warm-up windows, as a handful of traced numbers."""

from __future__ import annotations

import equinox as eqx
import numpy as np

_FIRST, _LAST, _WINDOW, _MOST = 75, 50, 25, 24


class Schedule(eqx.Module):
    """The windows of a warm-up of a given length; all leaves, all traced.

    A fast interval of 75 steps, slow windows of 25, 50, 100, ... steps (the last one takes what is
    left), and a last fast interval of 50. A warm-up shorter than 150 steps is divided 15 : 75 : 10;
    one shorter than 20 tunes the step size alone (Stan reference manual, section on HMC
    adaptation).

    Attributes:
        warmup: number of warm-up steps.
        begin, end: first slow step, and the step after the last one.
        ends: the last step of each slow window, padded with -1.
    """

    warmup: int
    begin: int
    end: int
    ends: np.ndarray

    def __init__(self, warmup: int, metric: str = "auto"):
        self.warmup = warmup
        # With a metric that is given, all steps tune the step size.
        self.begin, self.end, window = (0, 0, 0) if metric == "identity" else _intervals(warmup)
        ends = []
        start = self.begin
        while start < self.end:
            # A window after which the next, twice as long, would not fit takes all that is left.
            stop = start + window if start + 3 * window <= self.end else self.end
            ends.append(stop - 1)
            start, window = stop, 2 * window
        self.ends = np.full(_MOST, -1, np.int32)
        self.ends[: len(ends)] = ends


def _intervals(warmup: int) -> tuple[int, int, int]:
    if warmup < 20:
        return 0, 0, _WINDOW
    if warmup < _FIRST + _WINDOW + _LAST:
        first, last = int(0.15 * warmup), int(0.1 * warmup)
        return first, warmup - last, warmup - first - last
    return _FIRST, warmup - _LAST, _WINDOW
