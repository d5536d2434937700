"""How a row of the corpus is written: who makes which mistake, and what the message must hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        name: what the user did.
        make: does it; must raise a ValueError or a TypeError.
        where: regex for the site, column or option that is at fault.
        what: regex for what was expected or found.
        remedy: regex for what to do about it.
    """

    name: str
    make: Callable[[], Any]
    where: str
    what: str
    remedy: str


class Corpus(list[Mistake]):
    """Rows, added by decorating the function that makes the mistake; its docstring is its name."""

    def row(self, where: str, what: str, remedy: str) -> Callable[[Callable], Callable]:
        def add(make: Callable) -> Callable:
            self.append(Mistake(make.__name__, make, where, what, remedy))
            return make

        return add
