"""The text of a model formula taken apart: response, trials, common part, group terms, offsets.

Only what formulaic does not know is parsed here, by splitting at operators that stand outside of
brackets and quotes:

- ``y ~ ...``; ``y | trials(n) ~ ...`` and ``p(y, n) ~ ...`` for counts of successes among ``n``;
  ``y['level'] ~ ...`` for the chance of one level of a column of labels;
- ``(effects | g)``: effects that vary by the levels of ``g`` and are correlated with each other;
  ``(effects || g)``: the same, independent. ``g/h`` stands for ``g`` and ``g:h``, ``g:h`` for the
  combinations of levels, ``g + h`` for one term each;
- ``offset(expression)``: added to the linear predictor with coefficient 1.

The rest of the right-hand side (interactions, transforms, contrasts, ``0 +``) is left as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "'\"`"


@dataclass(frozen=True)
class GroupTerm:
    """Effects (a formula's right-hand side) that vary by the combinations of some columns."""

    effects: str
    factors: tuple[str, ...]
    correlated: bool

    @property
    def group(self) -> str:
        """The name of the dim: ``g`` or ``g:h``."""
        return ":".join(self.factors)


@dataclass(frozen=True)
class FormulaText:
    """The parts of a formula; ``level`` is that of ``y['level']``, ``trials`` a column's name."""

    text: str
    response: str
    level: str | None
    trials: str | None
    common: str
    groups: tuple[GroupTerm, ...]
    offsets: tuple[str, ...]


def parse(text: Any) -> FormulaText:
    """Take a formula apart; a ValueError quotes the part that cannot be read."""
    if not isinstance(text, str):
        raise TypeError(
            f"formula: expected a text such as 'y ~ x + (1 | g)', found {type(text).__name__}."
        )
    sides = [part.strip() for part in _split(text, text, "~")]
    if len(sides) != 2 or not all(sides):
        raise ValueError(
            f"formula {text!r}: expected one '~' with a response before it and terms after it, "
            f"such as 'y ~ x + (1 | g)'."
        )
    response, level, trials = _response(text, sides[0])
    common, groups, offsets = [], [], []
    for sign, piece in _signed_pieces(text, sides[1]):
        inner = piece[1:-1] if piece[0] == "(" and _closes(piece) == len(piece) - 1 else None
        bars = _split(text, inner, "|") if inner is not None else []
        if len(bars) > 1:
            _refuse_minus(text, sign, piece)
            groups += _group_terms(text, piece, bars)
        elif re.match(r"offset\s*\(", piece) and _closes(piece) == len(piece) - 1:
            _refuse_minus(text, sign, piece)
            offsets.append(piece[piece.index("(") + 1 : -1].strip())
        elif "|" in re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "", piece):
            raise ValueError(
                f"formula {text!r}: the group term in {piece!r} must stand on its own in brackets "
                f"and be added: 'y ~ x + (1 | g)'."
            )
        else:
            common.append(f"{sign} {piece}")
    joined = " ".join(common).removeprefix("+ ") or "1"
    joined = "1 " + joined if joined.startswith("-") else joined
    return FormulaText(text, response, level, trials, joined, tuple(groups), tuple(offsets))


def bare(name: str) -> str:
    """A column's name without the backticks that may surround it in a formula."""
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] == "`" else name


def is_column(text: str) -> bool:
    """Whether the text is one column's name: a plain name, or anything in backticks."""
    return text.isidentifier() or bool(re.fullmatch(r"`[^`]+`", text))


def mentioned(expression: str) -> tuple[set[str], set[str]]:
    """Names in an expression that may be columns: those that stand alone, and those it calls.

    Attributes (``np.log``), keywords of a call (``df=4``) and quoted strings are no columns;
    what ``Q('a b')`` quotes is.
    """
    quoted = set(re.findall(r"`([^`]+)`", expression))
    quoted |= {name for _, name in re.findall(r"\bQ\(\s*(['\"])(.+?)\1\s*\)", expression)}
    plain = re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"", " ", expression)
    tokens = list(re.finditer(r"(?<![\w.])[^\W\d]\w*", plain))
    alone, called = set(quoted), set()
    for token in tokens:
        after = plain[token.end() :].lstrip()
        if after.startswith(("(", ".")):
            called.add(token.group())
        elif not (after.startswith("=") and not after.startswith("==")):
            alone.add(token.group())
    return alone - {"True", "False", "None"}, called


def _response(text: str, side: str) -> tuple[str, str | None, str | None]:
    bars = [part.strip() for part in _split(text, side, "|")]
    if len(bars) == 2:
        found = re.fullmatch(r"trials\s*\((.+)\)", bars[1])
        if found is None or not is_column(found.group(1).strip()):
            raise ValueError(
                f"formula {text!r}: after '|' in the response expected trials(column), found "
                f"{bars[1]!r}."
            )
        return bars[0], None, bare(found.group(1).strip())
    if len(bars) > 2:
        raise ValueError(f"formula {text!r}: more than one '|' in the response {side!r}.")
    ratio = re.fullmatch(r"(?:p|prop|proportion)\s*\((.+)\)", side)
    if ratio:
        parts = [part.strip() for part in _split(text, ratio.group(1), ",")]
        if len(parts) != 2 or not all(is_column(part) for part in parts):
            raise ValueError(
                f"formula {text!r}: expected p(successes, trials) with two columns, found {side!r}."
            )
        return parts[0], None, bare(parts[1])
    level = re.fullmatch(r"(\w+|`[^`]+`)\s*\[\s*(['\"]?)(.+?)\2\s*\]", side)
    if level:
        return level.group(1), level.group(3), None
    return side, None, None


def _group_terms(text: str, piece: str, bars: list[str]) -> list[GroupTerm]:
    """The terms of one ``(effects | factors)``; ``||`` shows as an empty part between two bars."""
    independent = len(bars) == 3 and not bars[1].strip()
    if len(bars) != 2 and not independent or not bars[0].strip() or not bars[-1].strip():
        raise ValueError(
            f"formula {text!r}: expected '(effects | group)' or '(effects || group)', such as "
            f"'(1 + x | g)', found {piece!r}."
        )
    out = []
    for part in _split(text, bars[-1], "+"):
        nested = [_factors(text, piece, level) for level in _split(text, part, "/")]
        for depth in range(len(nested)):
            factors = tuple(f for level in nested[: depth + 1] for f in level)
            out.append(GroupTerm(bars[0].strip(), factors, not independent))
    return out


def _factors(text: str, piece: str, part: str) -> tuple[str, ...]:
    names = [name.strip() for name in _split(text, part, ":")]
    for name in names:
        if not is_column(name):
            raise ValueError(
                f"formula {text!r}: the group in {piece!r} is made of columns joined by ':', '/' "
                f"or '+'; found {name!r}. Put any computed group into a column of its own first."
            )
    return tuple(bare(name) for name in names)


def _refuse_minus(text: str, sign: str, piece: str) -> None:
    if sign == "-":
        raise ValueError(f"formula {text!r}: {piece!r} cannot be subtracted; leave it out instead.")


def _signed_pieces(text: str, side: str) -> list[tuple[str, str]]:
    """The terms of a right-hand side that are joined by + and -, with their signs."""
    pieces = [("+", 0)]
    spans = []
    for index, char in _outside(text, side):
        if char in "+-":
            before = side[pieces[-1][1] : index].strip()
            if before:
                spans.append((pieces[-1][0], before))
            elif index and len(pieces) > 1:
                raise ValueError(f"formula {text!r}: nothing stands between two signs.")
            pieces.append((char, index + 1))
    last = side[pieces[-1][1] :].strip()
    if not last:
        raise ValueError(f"formula {text!r}: nothing follows the last {pieces[-1][0]!r}.")
    return [*spans, (pieces[-1][0], last)]


def _split(text: str, part: str, separator: str) -> list[str]:
    """Cut ``part`` at every separator outside of brackets and quotes."""
    cuts = [index for index, char in _outside(text, part) if char == separator]
    starts = [0, *(cut + 1 for cut in cuts)]
    return [part[a:b] for a, b in zip(starts, [*cuts, len(part)], strict=True)]


def _outside(text: str, part: str) -> list[tuple[int, str]]:
    """Characters of ``part`` that stand outside of brackets and quotes, with their positions."""
    found, stack, quote = [], [], ""
    for index, char in enumerate(part):
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        elif char in _OPEN:
            stack.append(char)
        elif char in _CLOSE:
            if not stack or _OPEN.index(stack.pop()) != _CLOSE.index(char):
                raise ValueError(f"formula {text!r}: the bracket {char!r} closes nothing.")
        elif not stack:
            found.append((index, char))
    if stack or quote:
        raise ValueError(f"formula {text!r}: {(stack or [quote])[-1]!r} is never closed.")
    return found


def _closes(piece: str) -> int:
    """Where the first bracket of ``piece`` is closed (-1: it has none)."""
    depth = 0
    for index, char in enumerate(piece):
        depth += (char in _OPEN) - (char in _CLOSE)
        if char in _CLOSE and depth == 0:
            return index
    return -1
