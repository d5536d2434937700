"""``family="auto"``: the simplest family whose fit passes its checks, or word that none does.

Mean-field, low rank, full rank and flow are fitted in turn, each by a run of its own, until k-hat,
the effective sample size and the moments of 20,000 weighted draws find nothing wrong. Where none
passes, the fit with the highest ELBO is kept, and its failing checks say so.

A time limit holds for all of them together. After a fit that was ended from outside (a time limit,
an interruption) no other is tried, and the status says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from probkit.core import Approximation, Check, Status, Target, run, weigh

if TYPE_CHECKING:
    from probkit.inference.vi._vi import VI

LADDER = ("meanfield", "lowrank", "fullrank", "flow")
_FULL_RANK_LARGEST = 500


def escalated(method: VI, key: np.ndarray, target: Target, first: Approximation) -> Approximation:
    """The first fit of the ladder that passes, ``first`` being that of its lowest rung."""
    cut = Status.TIME_LIMIT if _cut_short(method, first) else Status.OK
    fits: list[Approximation] = []
    tried: list[dict[str, Any]] = []
    for number, family in enumerate(_rungs(target)):
        made = first
        if number:
            made, cut = _fitted(method, family, key, target, number)
        if made is None:
            break
        weights = weigh(target, made, _key(key, 100 + number))
        fits.append(replace(made, weights=weights))
        figures = {"elbo": weights.elbo.value, "k_hat": weights.khat, "ess": weights.ess_ratio}
        tried.append({"family": family, "ok": weights.ok and made.status.ok, **figures})
        if tried[-1]["ok"] or not cut.ok:
            break
    best = len(fits) - 1 if tried[-1]["ok"] else int(np.nanargmax([t["elbo"] for t in tried]))
    stats = {**fits[best].stats, "family": tried[best]["family"], "tried": tried}
    checks = (*fits[best].checks, _verdict(tried, best, not cut.ok))
    # The status of a first fit that was cut short is the driver's to tell.
    status = cut if len(tried) > 1 and not cut.ok else fits[best].status
    return replace(fits[best], stats=stats, checks=checks, status=status)


def _cut_short(method: VI, first: Approximation) -> bool:
    """Whether the first fit ended neither by its stop nor by its number of steps."""
    stopped = first.status.ok or float(first.stats["nonfinite_steps"]) > 0
    return not stopped and int(first.stats["steps"]) < int(method.max_steps)


def _rungs(target: Target) -> tuple[str, ...]:
    size = target.program.flat.size
    if size == 1:
        return ("meanfield", "flow")
    if size > _FULL_RANK_LARGEST:
        return tuple(f for f in LADDER if f != "fullrank")
    return LADDER if size > 4 else tuple(f for f in LADDER if f != "lowrank")


def _fitted(
    method: VI, family: str, key: np.ndarray, target: Target, number: int
) -> tuple[Approximation | None, Status]:
    """Another family's fit, and what ended it from outside; none where that came before a step."""
    from probkit.inference.vi._vi import with_family

    try:
        made = run(target, with_family(method, family), _key(key, number))
    except KeyboardInterrupt:
        return None, Status.INTERRUPTED
    outside = made.status in (Status.TIME_LIMIT, Status.INTERRUPTED)
    output: Any = made.output
    return replace(output, status=made.status), made.status if outside else Status.OK


def _key(key: np.ndarray, number: int) -> np.ndarray:
    """Raw key data for one more use."""
    mixed = np.random.SeedSequence([*map(int, key.ravel()), number])
    return mixed.generate_state(key.size).astype(np.uint32).reshape(key.shape)


def _verdict(tried: list[dict[str, Any]], best: int, cut: bool) -> Check:
    failed = sum(not t["ok"] for t in tried)
    good = bool(tried[best]["ok"])
    words = ", ".join(f"{t['family']} {'passed' if t['ok'] else 'failed'}" for t in tried)
    if cut:
        words += "; ended from outside before others were tried"
    advice = (
        "no family passed its checks; the one with the highest ELBO was kept: reparametrise, add "
        "layers to the flow, allow more steps, or use NUTS"
    )
    return Check("families", good, float(failed), float(len(tried)), words, "" if good else advice)
