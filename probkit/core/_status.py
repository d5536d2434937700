"""Coded results: how a run ended, with advice in plain words. Nothing ends as a bare NaN."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """How a run ended. ``Status.OK`` is 0; every other code has a ``message`` with advice.

    Codes are plain integers, so that a traced ``terminate`` can return them.

    Example:
        >>> Status.OK.ok, Status.TIME_LIMIT.ok
        (True, False)
        >>> "time limit" in Status.TIME_LIMIT.message
        True
    """

    OK = 0
    MAX_STEPS = 1
    NONFINITE = 2
    INTERRUPTED = 3
    TIME_LIMIT = 4
    NOT_POSITIVE_DEFINITE = 5
    NOT_QUADRATIC = 6
    STOPPED = 7

    @property
    def ok(self) -> bool:
        """Whether the run did what it was asked to do."""
        return self is Status.OK

    @property
    def message(self) -> str:
        """What happened, and what to do about it."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.OK: "the run did all of its steps",
    Status.MAX_STEPS: (
        "the step budget ran out before the method's own stopping rule was met; "
        "the result is the best so far: allow more steps, or start from a better point"
    ),
    Status.NONFINITE: (
        "the log density or its gradient stopped being finite; the last finite state was kept: "
        "take smaller steps if the method has a step_size, and see posterior.target.check() for "
        "the site that is to blame"
    ),
    Status.INTERRUPTED: (
        "the run was interrupted; everything computed until then was kept: "
        "pass the checkpoint (or posterior.state) as resume= to go on"
    ),
    Status.TIME_LIMIT: (
        "the time limit was reached; everything computed until then was kept: "
        "pass the checkpoint (or posterior.state) as resume= to go on"
    ),
    Status.NOT_POSITIVE_DEFINITE: (
        "the curvature at the mode is not positive definite (a flat or unbounded direction): "
        "give the flat site a proper prior, or use a method that draws, such as pk.NUTS()"
    ),
    Status.NOT_QUADRATIC: (
        "the log density is not quadratic, so one linear solve is not its posterior: "
        "use pk.Laplace() for an approximation or pk.NUTS() for draws"
    ),
    Status.STOPPED: "a callback asked the run to stop; everything computed until then was kept",
}
