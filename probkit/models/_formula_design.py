"""Design matrices of a formula, with everything remembered that new rows need.

formulaic turns expressions into columns; what it learnt from the training frame (means and sds of
``scale``, knots of splines, bases of polynomials, levels and contrasts) is kept in its model specs
and applied to new rows unchanged. Levels are matched by label, and a level that the training rows
do not have is an error. Only levels that occur in the training rows count, as in R.

All columns are read by `read_data`, so that pandas, polars, pyarrow, xarray and mappings give the
same design. Everything is computed on the host in float64, at O(rows x columns).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probkit.core._errors import listing, nearest
from probkit.models._data import Data, read_data
from probkit.models._formula_text import FormulaText, GroupTerm, bare, is_column, mentioned
from probkit.models._labels import encode


@dataclass(frozen=True)
class Columns:
    """Named columns of a design, shape ``(rows, names)``; ``terms`` are their places by term."""

    names: tuple[str, ...]
    values: np.ndarray
    terms: dict[str, list[int]]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one frame: its columns as formulaic takes them, and their labels."""

    data: Data
    frame: Any
    labels: np.ndarray

    @property
    def size(self) -> int:
        """How many rows."""
        return len(self.labels)


@dataclass(eq=False)
class Memory:
    """What is kept of the training rows; filled while they are read, used for new rows.

    ``levels``: labels by categorical column. ``specs``: formulaic's model specs by expression.
    ``groups``: labels by grouping dim. ``scores``: distinct values of a numeric ordinal response.
    """

    text: FormulaText
    levels: dict[str, np.ndarray] = field(default_factory=dict)
    specs: dict[str, Any] = field(default_factory=dict)
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    scores: np.ndarray | None = None


def import_formulaic() -> Any:
    """formulaic, or an ImportError that names the extra."""
    try:
        import formulaic
    except ImportError as error:
        raise ImportError(
            "pk.formula needs formulaic, which the extra `formula` installs: "
            "pip install 'probkit[formula]'"
        ) from error
    return formulaic


def used_columns(text: FormulaText, trials: str | None) -> tuple[set[str], set[str]]:
    """Names of the predictors' columns and of the response's, as far as the text tells."""
    predictors: set[str] = set(trials and [trials] or [])
    for part in (text.common, *text.offsets, *(term.effects for term in text.groups)):
        predictors |= mentioned(part)[0]
    predictors.update(name for term in text.groups for name in term.factors)
    return predictors, mentioned(text.response)[0]


def read_rows(memory: Memory, data: Any, trials: str | None, *, training: bool) -> Rows:
    """Read the columns that the formula uses, and refuse missing entries of predictors."""
    predictors, response = used_columns(memory.text, trials)
    parsed = read_data(data, names=predictors | response, categories=memory.levels)
    if not parsed.arrays and not parsed.labels:
        parsed = _count_rows(data, parsed)
    _check_present(memory.text, parsed, predictors, response if training else set())
    if training:
        parsed = _drop_unused_levels(memory, parsed, keep=response)
    for name in sorted(predictors & set(parsed.missing)):
        holes = parsed.missing[name]
        raise ValueError(
            f"column {name!r}: {int(holes.sum())} of {holes.size} entries are missing (the first "
            f"in row {int(np.argmax(holes))}), and a formula's predictors cannot be imputed: drop "
            f"those rows, fill them in, or write a pk.Model in which {name!r} is a variable."
        )
    used = [name for name in (*predictors, *response) if name in parsed]
    size = _num_rows(parsed, used)
    labels = parsed.row_labels if parsed.row_labels is not None else np.arange(size)
    return Rows(parsed, _pandas_frame(parsed, used, size), labels)


def design(memory: Memory, rows: Rows, expression: str, *, finite: bool = True) -> Columns:
    """The columns of a right-hand side; remembered state is used where there is any."""
    formulaic = import_formulaic()
    spec = memory.specs.get(expression)
    try:
        with np.errstate(all="ignore"):
            if spec is None:
                source = formulaic.Formula(expression)
                options = {"na_action": "ignore", "context": {}}
                matrix = source.get_model_matrix(rows.frame, **options)
            else:
                matrix = spec.get_model_matrix(rows.frame, context={})
    except Exception as error:  # formulaic raises whatever the evaluated expression raises
        raise ValueError(
            f"formula {memory.text.text!r}: cannot compute {expression!r}: {_clean(error)}"
        ) from error
    spec = memory.specs.setdefault(expression, matrix.model_spec)
    values = np.asarray(matrix, np.float64).reshape(rows.size, -1)
    names = tuple(spec.column_names)
    if finite and not np.isfinite(values).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(
            f"formula {memory.text.text!r}: {names[column]!r} is {values[row, column]} in row "
            f"{row}; a transform such as log needs values inside its domain."
        )
    terms = {str(term): list(places) for term, places in spec.term_indices.items()}
    return Columns(names, values, terms)


def group_codes(memory: Memory, rows: Rows, term: GroupTerm) -> np.ndarray:
    """Codes (rows,) of a grouping dim's levels; the labels are remembered in ``memory.groups``."""
    found = [_values_as_labels(rows.data, name) for name in term.factors]
    if len(found) == 1:
        values = found[0]
    else:
        values = np.asarray([":".join(map(str, row)) for row in zip(*found, strict=True)], object)
    if term.group not in memory.groups:
        memory.groups[term.group] = _levels(rows.data, term, found)
    where = f"group {term.group!r}"
    return encode(where, values, np.zeros(values.shape, bool), memory.groups[term.group])


def response_values(memory: Memory, rows: Rows, ordinal: bool) -> tuple[np.ndarray, list | None]:
    """The response (rows,) as float64 with NaN in the holes, and the labels it codes, if any."""
    text = memory.text
    if not is_column(text.response):
        if text.level is not None:
            raise ValueError(f"formula {text.text!r}: a level is that of a plain column.")
        columns = design(memory, rows, f"0 + {text.response}", finite=False)
        if columns.values.shape[1] != 1:
            raise ValueError(
                f"formula {text.text!r}: the response {text.response!r} gives "
                f"{columns.values.shape[1]} columns where one is expected; compute it in the frame."
            )
        return columns.values[:, 0], None
    name = bare(text.response)
    data = rows.data
    values = np.where(data.missing.get(name, False), np.nan, data.array(name).astype(float))
    labels = data.coords[name].tolist() if name in data.categorical else None
    if text.level is not None:
        return _is_level(text, name, values, labels), None
    if ordinal and labels is None:
        return _score_codes(memory, name, values)
    return values, labels


def _is_level(text: FormulaText, name: str, values: np.ndarray, labels: list | None) -> np.ndarray:
    known = [str(v) for v in (labels or [])]
    if text.level not in known:
        raise ValueError(
            f"formula {text.text!r}: column {name!r} has no level {text.level!r}."
            f"{nearest(str(text.level), known)} Its levels: {listing(known)}."
        )
    return np.where(np.isnan(values), np.nan, values == known.index(text.level))


def _score_codes(memory: Memory, name: str, values: np.ndarray) -> tuple[np.ndarray, list]:
    """Codes of a numeric ordinal response among its distinct values at training."""
    if memory.scores is None:
        memory.scores = np.unique(values[~np.isnan(values)])
    scores = memory.scores.tolist()
    codes = {score: code for code, score in enumerate(scores)}
    unseen = [v for v in values[~np.isnan(values)].tolist() if v not in codes]
    if unseen:
        raise ValueError(
            f"response {name!r}: the level {unseen[0]:g} is not among those of the training rows: "
            f"{listing(f'{v:g}' for v in scores)}."
        )
    return np.asarray([codes.get(v, np.nan) for v in values.tolist()]), [f"{v:g}" for v in scores]


def _count_rows(data: Any, parsed: Data) -> Data:
    """For a formula without columns: all columns, which then only tell the number of rows."""
    return parsed if parsed.num_rows is not None else read_data(data)


def _num_rows(parsed: Data, used: Sequence[str]) -> int:
    found: dict[int, str] = {}
    for name in used:
        array = parsed.array(name)
        if array.ndim != 1:
            raise ValueError(
                f"column {name!r}: expected one value per row, found an array of shape "
                f"{array.shape}; a formula's data are columns of equal length."
            )
        found.setdefault(array.size, name)
    if len(found) > 1:
        (first, a), (second, b) = list(found.items())[:2]
        raise ValueError(
            f"column {b!r}: has {second} rows, but {a!r} has {first}; a formula's data are columns "
            f"of equal length."
        )
    lengths = [*found] or [a.size for a in parsed.arrays.values() if a.ndim == 1]
    if parsed.num_rows is None and not lengths:
        raise ValueError(
            "formula: the data have no columns, so that the number of rows is unknown."
        )
    return parsed.num_rows if parsed.num_rows is not None else lengths[0]


def _check_present(
    text: FormulaText, parsed: Data, predictors: set[str], response: set[str]
) -> None:
    known = {"np", "contr", *_transforms()}
    for name in sorted(predictors | response):
        if name not in parsed and name not in known:
            raise ValueError(
                f"formula {text.text!r}: the frame has no column {name!r}.{parsed.advice(name)}"
            )
    parts = (text.common, text.response, *text.offsets, *(t.effects for t in text.groups))
    for name in sorted(set().union(*(mentioned(part)[1] for part in parts))):
        if name not in known and name not in parsed:
            raise ValueError(
                f"formula {text.text!r}: there is no function {name!r}.{nearest(name, known)} "
                f"There are {listing(sorted(known), 40)}; or compute the column in the frame."
            )


def _transforms() -> set[str]:
    import_formulaic()
    from formulaic.transforms import TRANSFORMS

    return set(TRANSFORMS)


def _drop_unused_levels(memory: Memory, parsed: Data, keep: set[str]) -> Data:
    """Remember the levels of each categorical column; predictors keep those that occur."""
    for name in parsed.categorical:
        labels, codes = parsed.coords[name], parsed.arrays[name]
        if name not in keep:
            present = np.unique(codes[codes >= 0])
            place = np.full(len(labels) + 1, -1, np.int32)
            place[present] = np.arange(len(present), dtype=np.int32)
            parsed.arrays[name], parsed.coords[name] = place[codes], labels[present]
        memory.levels[name] = parsed.coords[name]
    return parsed


def _pandas_frame(parsed: Data, used: Sequence[str], size: int) -> Any:
    import pandas

    columns: dict[str, Any] = {}
    for name in used:
        array = parsed.array(name)
        if name in parsed.categorical:
            dtype = pandas.CategoricalDtype(parsed.coords[name].tolist())
            columns[name] = pandas.Categorical.from_codes(array, dtype=dtype)
        else:
            columns[name] = array
    return pandas.DataFrame(columns, index=range(size))


def _values_as_labels(data: Data, name: str) -> np.ndarray:
    array = data.array(name)
    values = data.coords[name][array] if name in data.categorical else array
    return values.astype(object)


def _levels(data: Data, term: GroupTerm, found: list[np.ndarray]) -> np.ndarray:
    """Labels of a grouping dim: levels in the columns' own orders, combinations that occur."""
    keys = [data.array(name) for name in term.factors]
    _, first = np.unique(np.stack([np.asarray(k, float) for k in keys]), axis=1, return_index=True)
    if len(first) < 2:
        raise ValueError(
            f"group {term.group!r}: has one level only, so that nothing varies by it; leave the "
            f"term out."
        )
    if len(found) == 1:
        return np.asarray([found[0][i] for i in first])
    return np.asarray([":".join(str(values[i]) for values in found) for i in first])


def _clean(error: Exception) -> str:
    """The message without the terminal colours that formulaic puts into it, on one line."""
    text = re.sub(r"\x1b\[[0-9;]*m|[\u29da\u29db]", "", str(error))
    return " ".join(text.split())
