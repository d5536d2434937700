"""A Model from a formula: ``pk.formula("y ~ x + (1 | g)", frame)``.

The road: `_formula_text` takes the text apart, `_formula_design` turns columns into design
matrices and remembers what new rows need, `_formula_families` holds the response distributions and
default priors, `_formula_nodes` declares the variables. The model's data are the frame: at every
bind, for training and for prediction alike, the design is computed from the frame's columns with
the remembered state. Names follow Bambi's: ``Intercept``, ``1|g``, ``x|g``, ``1|g_sigma``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from probkit.models._formula_design import (
    Columns,
    Memory,
    Rows,
    design,
    group_codes,
    import_formulaic,
    read_rows,
    response_values,
)
from probkit.models._formula_families import (
    Family,
    check_response,
    find_family,
    response_scales,
)
from probkit.models._formula_nodes import (
    Effect,
    EffectBlock,
    Priors,
    Structure,
    declare,
    site_name,
)
from probkit.models._formula_text import FormulaText, GroupTerm, bare, mentioned, parse
from probkit.models._labels import label_array
from probkit.models._model import Model

_OWN_DIMS = ("row", "term", "normal_term", "cut")
Prepared = tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]], dict[str, np.ndarray]]


def formula(
    text: str,
    frame: Any,
    *,
    family: str = "gaussian",
    priors: Mapping[str, Any] | None = None,
    trials: str | int | None = None,
) -> Model:
    """A declarative model from a formula and the frame that holds its columns.

    Args:
        text: ``"y ~ x*z + C(f, contr.sum) + bs(t, df=4) + (1 + x | g) + offset(log(exposure))"``.
            Everything that formulaic reads is allowed; group terms ``(effects | g)`` have
            correlated effects, ``(effects || g)`` independent ones; ``g`` is a column, ``g:h``,
            ``g/h`` or ``g + h``. ``y | trials(n)`` and ``p(y, n)`` are counts among n. The text is
            evaluated as code: take none from strangers.
        frame: a data frame (pandas, polars, pyarrow, ...), a mapping of columns, or a Dataset. It
            fixes levels, transforms (``scale``, splines ...) and the default priors' scales.
        family: gaussian, student_t, bernoulli, binomial, poisson, negative_binomial, gamma, beta,
            or ordinal; the links are identity, identity, logit, logit, log, log, log, logit and
            cumulative logit.
        priors: distributions of one number by name: ``Intercept`` (of the centred design: at the
            predictors' means), a term or a column of the design (``x``, ``f[T.b]``), ``beta`` (all
            of them), ``1|g_sigma``, ``threshold``, or a parameter of the family (``sigma``, ``nu``,
            ``alpha``, ``kappa``). Defaults are weakly informative, scaled from the frame.
        trials: for the binomial, a column or one whole number.

    Returns:
        A `Model` whose data are frames with the same columns (None: this frame). Variables:
        ``beta`` (term), ``Intercept`` or ``threshold`` for the columns as given (sampled at the
        columns' means as ``Intercept_centred``, ``threshold_centred``), ``1|g`` and ``x|g`` (by
        level of g) with ``1|g_sigma`` and ``x|g_sigma``, ``1 + x|g_corr``, the family's
        parameters, and the response along ``row``. Missing responses are imputed or masked.

    Raises:
        ValueError: the text cannot be read; a column is absent, constant, or has missing entries;
            a response lies outside the family; an unseen level; an unknown family or prior.
        TypeError: a prior is no distribution, or an argument is of the wrong kind.
        ImportError: formulaic (the extra ``formula``) is not installed.

    Example:
        >>> import probkit as pk
        >>> frame = {"y": [1.0, 2.1, 2.9, 4.2], "x": [0, 1, 2, 3], "g": ["a", "b", "a", "b"]}
        >>> model = pk.formula("y ~ x + (1 | g)", frame)
        >>> list(model.nodes)[-1]
        'y'
    """
    import_formulaic()
    parts, kind = parse(text), find_family(family)
    trials = _trials(parts, kind, trials)
    plan, training = _train(Memory(parts), frame, kind, trials)
    nodes = declare(plan.structure, Priors(priors))
    clash = (set(nodes) & set(training[0])) - {plan.structure.response}
    if clash:
        raise ValueError(
            f"formula {text!r}: {sorted(clash)[0]!r} names both a variable of the model and a part "
            f"of its design; rename that column of the frame."
        )
    _add_coords(plan, nodes, training)
    return Model(**nodes)._with_prepare(partial(_prepare, plan, training))


@dataclass(frozen=True, eq=False)
class Plan:
    """What turns a frame into the arrays of the model: state of the design, and its structure."""

    memory: Memory
    structure: Structure
    trials: str | int | None
    means: np.ndarray
    labels: list | None


def _prepare(
    plan: Plan, training: Prepared, data: Any, coords: Mapping[str, Any] | None = None
) -> Prepared:
    """The arrays, dims and coords of a frame's rows; None stands for the training frame.

    Groups that ``coords`` name may be new ones: their effects are drawn from the population.
    """
    if data is None:
        return training
    memory = plan.memory
    named = {k: label_array(v) for k, v in (coords or {}).items() if k in memory.groups}
    levels = {k: v for k, v in named.items() if k in memory.levels}
    memory = replace(memory, groups={**memory.groups, **named}, levels={**memory.levels, **levels})
    plan = replace(plan, memory=memory)
    column = plan.trials if isinstance(plan.trials, str) else None
    rows = read_rows(plan.memory, data, column, training=False)
    arrays, dims, coords = _predictors(plan, rows)
    needed = mentioned(plan.memory.text.response)[0]
    if needed <= set(rows.data.arrays):
        _add_response(plan, rows, arrays, dims)
    own = ("row", *named)
    coords.update({dim: labels for dim, labels in training[2].items() if dim not in own})
    return arrays, dims, coords


def _train(
    memory: Memory, frame: Any, family: Family, trials: str | int | None
) -> tuple[Plan, Prepared]:
    """Read the training frame: its design, levels and scales."""
    text = memory.text
    column = trials if isinstance(trials, str) else None
    rows = read_rows(memory, frame, column, training=True)
    y, labels = _response_kind(memory, rows, family)
    if np.isnan(y).all():
        raise ValueError(f"response {text.response!r}: every entry is missing.")
    common = design(memory, rows, text.common)
    intercept = "Intercept" in common.names
    _check_common(text, family, common)
    kept = [i for i, name in enumerate(common.names) if name != "Intercept"]
    values = common.values[:, kept]
    terms = {
        term: [kept.index(i) for i in places]
        for term, places in common.terms.items()
        if term != "1"
    }
    offset = _offset(memory, rows)
    structure = Structure(
        response=site_name(bare(text.response)),
        family=family,
        scales=response_scales(family, text.response, y, 0.0 if offset is None else offset),
        intercept=intercept,
        columns=tuple(common.names[i] for i in kept),
        terms=terms,
        sds=_sds(values),
        blocks=tuple(_block(memory, rows, term) for term in text.groups),
        has_offset=offset is not None,
        levels=len(labels) if labels is not None else 0,
    )
    means = values.mean(0) if intercept else np.zeros(len(kept))
    plan = Plan(memory, structure, trials, means, labels)
    arrays, dims, coords = _predictors(plan, rows)
    _add_response(plan, rows, arrays, dims)
    return plan, (arrays, dims, coords)


def _check_common(text: FormulaText, family: Family, common: Columns) -> None:
    """Refuse columns that carry nothing beside the intercept, and an ordinal without thresholds."""
    if "Intercept" not in common.names:
        if family.name == "ordinal":
            raise ValueError(
                f"formula {text.text!r}: the thresholds of an ordinal response are its intercepts; "
                f"leave '0 +' or '- 1' out."
            )
        return
    for name, column in zip(common.names, common.values.T, strict=True):
        if name != "Intercept" and np.ptp(column) <= 1e-12 * np.abs(column).max():
            raise ValueError(
                f"formula {text.text!r}: {name!r} is {column[0]:g} in every row, which the "
                f"intercept says already; leave the term out."
            )


def _sds(values: np.ndarray) -> np.ndarray:
    """Standard deviations of columns; 1 for a constant one (possible without an intercept)."""
    sds = values.std(0)
    return np.where(sds > 0, sds, 1.0)


def _block(memory: Memory, rows: Rows, term: GroupTerm) -> EffectBlock:
    if term.group in _OWN_DIMS:
        raise ValueError(
            f"formula {memory.text.text!r}: the model has a dim {term.group!r} of its own; rename "
            f"that column."
        )
    columns = design(memory, rows, term.effects)
    if not columns.names:
        raise ValueError(f"formula {memory.text.text!r}: ({term.effects} | ...) has no effects.")
    sds = _sds(columns.values)
    labels = ["1" if name == "Intercept" else name for name in columns.names]
    effects = tuple(
        Effect(site_name(f"{label}|{term.group}"), term.group, label == "1", float(sd))
        for label, sd in zip(labels, sds, strict=True)
    )
    together = term.correlated and len(effects) > 1
    name = site_name(f"{' + '.join(labels)}|{term.group}") if together else None
    return EffectBlock(effects, name)


def _offset(memory: Memory, rows: Rows) -> np.ndarray | None:
    if not memory.text.offsets:
        return None
    parts = [design(memory, rows, f"0 + {expression}") for expression in memory.text.offsets]
    for expression, columns in zip(memory.text.offsets, parts, strict=True):
        if columns.values.shape[1] != 1:
            raise ValueError(
                f"formula {memory.text.text!r}: offset({expression}) gives "
                f"{columns.values.shape[1]} columns where one is expected."
            )
    return np.sum([columns.values[:, 0] for columns in parts], axis=0)


def _predictors(plan: Plan, rows: Rows) -> Prepared:
    """Everything but the response."""
    memory, structure = plan.memory, plan.structure
    arrays: dict[str, np.ndarray] = {}
    dims: dict[str, tuple[str, ...]] = {}
    coords: dict[str, np.ndarray] = {"row": rows.labels}

    def put(name: str, array: np.ndarray, *axes: str) -> None:
        arrays[name], dims[name] = array, axes

    if structure.columns:
        common = design(memory, rows, memory.text.common)
        kept = [i for i, name in enumerate(common.names) if name != "Intercept"]
        put("common", common.values[:, kept] - plan.means, "row", "term")
        if structure.centred:
            put("common_mean", plan.means, "term")
        coords["term"] = np.asarray(structure.columns)
    for term, block in zip(memory.text.groups, structure.blocks, strict=True):
        put(block.effects[0].index, group_codes(memory, rows, term), "row")
        coords[term.group] = memory.groups[term.group]
        columns = design(memory, rows, term.effects)
        for effect, column in zip(block.effects, columns.values.T, strict=True):
            if not effect.constant:
                put(effect.design, column, "row")
    offset = _offset(memory, rows)
    if offset is not None:
        put("offset", offset, "row")
    if plan.trials is not None:
        put("trials", _trial_counts(plan, rows), "row")
    return arrays, dims, coords


def _trial_counts(plan: Plan, rows: Rows) -> np.ndarray:
    if not isinstance(plan.trials, str):
        return np.full(rows.size, plan.trials)
    counts = rows.data.array(plan.trials)
    wrong = (counts < 0) | (counts != np.round(counts))
    if plan.trials in rows.data.categorical or wrong.any():
        where = "" if not wrong.any() else f", found {counts[np.argmax(wrong)]:g}"
        raise ValueError(f"trials {plan.trials!r}: expected whole numbers from 0 on{where}.")
    return counts.astype(np.int64)


def _add_response(
    plan: Plan, rows: Rows, arrays: dict[str, np.ndarray], dims: dict[str, tuple[str, ...]]
) -> None:
    """The response as the family takes it: whole numbers where it is discrete and complete."""
    family, name = plan.structure.family, plan.structure.response
    y, _ = _response_kind(plan.memory, rows, family)
    if np.isnan(y).all():  # rows to predict
        return
    check_response(name, family, y, arrays.get("trials"))
    whole = family.discrete and not np.isnan(y).any()
    arrays[name], dims[name] = (y.astype(np.int64) if whole else y), ("row",)


def _response_kind(
    memory: Memory, rows: Rows, family: Family
) -> tuple[np.ndarray, list[str] | None]:
    """Values and labels of the response; a ValueError where the family takes no such kind."""
    y, labels = response_values(memory, rows, family.name == "ordinal")
    name = bare(memory.text.response)
    source = rows.data.arrays.get(name)
    flags = source is not None and source.dtype == bool and memory.text.level is None
    named = labels is not None and family.name not in ("bernoulli", "ordinal")
    if named or (flags and family.name != "bernoulli"):
        raise ValueError(
            f"response {name!r}: holds {'True and False' if flags else 'labels'}, but family "
            f"{family.name!r} expects {family.expected}; use family='bernoulli' for two outcomes, "
            f"'ordinal' for ordered ones."
        )
    if family.name == "bernoulli" and labels is not None and len(labels) != 2:
        raise ValueError(
            f"response {name!r}: has {len(labels)} levels, a Bernoulli response two; write "
            f"\"{name}['{labels[0]}'] ~ ...\" for one level against the others."
        )
    if family.name == "ordinal" and (labels is None or len(labels) < 2):
        raise ValueError(
            f"response {name!r}: an ordinal response is {family.expected}, with two levels or more."
        )
    return y, labels


def _add_coords(plan: Plan, nodes: dict[str, Any], training: Prepared) -> None:
    """Labels of the dims that only variables have: thresholds, correlations, own coefficients."""
    coords, structure = training[2], plan.structure
    if structure.ordinal:
        names = [str(v) for v in plan.labels or []]
        coords["cut"] = np.asarray([f"{a}|{b}" for a, b in zip(names, names[1:], strict=False)])
    if "beta_normal" in nodes:
        rest = [c for c in structure.columns if site_name(c) not in nodes]
        coords["normal_term"] = np.asarray(rest)
    for block in structure.blocks:
        if block.name is not None:
            labels = np.asarray([e.site.rpartition("|")[0] for e in block.effects])
            coords[f"{block.name}_effect"] = coords[f"{block.name}_effect2"] = labels


def _trials(parts: FormulaText, family: Family, trials: Any) -> str | int | None:
    """The one statement of the trials: in the text or as the argument; only for the binomial."""
    if isinstance(trials, bool) or not (
        trials is None or isinstance(trials, str | int | np.integer)
    ):
        raise TypeError(
            f"trials: expected the name of a column or one whole number, found "
            f"{type(trials).__name__}; put the numbers into a column, so that new rows have it too."
        )
    if trials is not None and parts.trials is not None:
        raise ValueError(f"trials: given both in the formula {parts.text!r} and as an argument.")
    found = parts.trials if trials is None else trials
    if family.name == "binomial" and found is None:
        raise ValueError(
            "family 'binomial': say how many trials there were: 'y | trials(n) ~ ...', "
            "trials='n' or trials=10. For outcomes 0 and 1 use family='bernoulli'."
        )
    if family.name != "binomial" and found is not None:
        raise ValueError(f"trials: only family='binomial' has any, not {family.name!r}.")
    if isinstance(found, int | np.integer) and found < 1:
        raise ValueError(f"trials: expected at least 1, found {found}.")
    return found if found is None or isinstance(found, str) else int(found)
