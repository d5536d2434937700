"""Helpers for messages that say what was expected, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, options: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the option closest to ``name``, or the empty string."""
    known = [str(o) for o in options]
    # Names that differ in case alone are the nearest there are.
    same = [o for o in known if o.casefold() == str(name).casefold()]
    close = same or difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Names quoted and joined for a message, cut at ``limit``; ``"none"`` if there are none."""
    found = [repr(n) for n in names]
    if not found:
        return "none"
    more = f", ... ({len(found) - limit} more)" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more


def check_options(where: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise a TypeError that names the first unknown option and the nearest known one."""
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            raise TypeError(
                f"{where}: unknown option {name!r}.{nearest(name, allowed)} "
                f"Known options: {listing(allowed, 40)}."
            )


def check_choice(where: str, value: object, allowed: Iterable[str]) -> None:
    """Raise a ValueError unless ``value`` is one of ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(
            f"{where}: expected one of {listing(allowed)}, found {value!r}."
            f"{nearest(str(value), allowed)}"
        )


def check_count(where: str, value: object, *, least: int = 1) -> int:
    """The value as an int, or a TypeError/ValueError that says which count was wrong."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{where}: expected a whole number, found {value!r}.")
    count = int(value)  # type: ignore[call-overload]
    if count < least:
        raise ValueError(f"{where}: expected at least {least}, found {count}.")
    return count


def check_between(where: str, value: object, low: float, high: float) -> float:
    """The value as a float strictly between ``low`` and ``high``, or an error that names it."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{where}: expected a number, found {value!r}.") from None
    if not low < number < high:
        raise ValueError(f"{where}: expected a number between {low} and {high}, found {number}.")
    return number
