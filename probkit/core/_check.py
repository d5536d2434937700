"""Check: one figure against its threshold, the entry of which every verdict is made.

It stands on the lowest floor because methods judge themselves (their own stopping rule, the
agreement of their starts) and results judge draws and weights, and both end in one list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One figure against its threshold.

    Attributes:
        name: what was checked, for instance ``"r_hat"``.
        ok: whether the figure is on the good side; None if it could not be judged.
        value: the figure; NaN if there is none.
        threshold: what the figure was compared with; a threshold of 0 asks for exactly 0.
        where: the worst place: a site with its coordinates, a chain, an observation.
        advice: what to do if it failed, or why it was not judged.
        direction: ``"<"`` if the figure must be below the threshold, ``">"`` if above.

    Example:
        >>> from probkit.core import Check
        >>> Check("r_hat", True, 1.002, 1.01, "mu").ok
        True
    """

    name: str
    ok: bool | None
    value: float
    threshold: float
    where: str = ""
    advice: str = ""
    direction: str = "<"


def judged(
    name: str,
    value: float,
    threshold: float,
    direction: str = "<",
    where: str = "",
    advice: str = "",
    note: str = "",
) -> Check:
    """The entry for one figure: the advice is kept if it failed, the note always.

    A threshold of 0 asks for exactly 0; a figure that is NaN fails.

    Example:
        >>> judged("k_hat", 0.9, 0.7, advice="a richer family").advice
        'a richer family'
    """
    value = float(value)
    if direction == ">":
        good = value > threshold
    else:
        good = value < threshold or value == threshold == 0.0
    words = "; ".join(filter(None, ("" if good else advice, note)))
    return Check(name, good, value, threshold, where, words, direction)


def guarded(name: str, threshold: float, direction: str, make: Callable[[], Check]) -> Check:
    """Run one check; whatever goes wrong becomes an entry that says what."""
    try:
        return make()
    except Exception as error:  # the verdict must come out, whatever the arrays hold
        why = f"could not be computed: {type(error).__name__}: {error}"
        return Check(name, None, float("nan"), threshold, "", why, direction)
