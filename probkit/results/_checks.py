"""Checks of draws, importance weights and leave-one-out: one figure against one threshold.

Functions here take plain arrays (draws of shape (chain, draw, *shape) by site; statistics of
shape (chain, draw) by name) and never raise: a check that cannot be computed has ``ok`` None and
says why. Cost: that of the diagnostics, some 3 ms a component of 4 x 1000 draws.

Thresholds, and where they come from:

    r_hat         < 1.01    Vehtari et al. (2021), section 4
    ess_bulk/tail > 100 a chain (400 for four), ibid.: fewer, and R-hat and ESS are unreliable
    mcse          < 0.1     Monte Carlo error of the mean over the posterior sd
    divergences     0       Betancourt (2017), arXiv:1701.02434
    e_bfmi        > 0.3     Betancourt (2016), arXiv:1604.00695, lowest chain
    tree_depth    < 0.05    share of trajectories cut short: dear, not wrong
    non_finite      0       draws that are NaN or infinite
    stuck_chains    0       chains in which nothing that varies elsewhere has moved
    k_hat         < 0.7     Vehtari et al. (2024), JMLR 25
    ess_ratio     > 0.1     effective over actual number of importance draws
    loo_k           0       observations with k >= min(1 - 1/log10 S, 0.7), ibid.

A component that never varies beyond the rounding of its dtype (the diagonal of a correlation
matrix, say) has no R-hat; it is left out and the advice says so. With one chain, R-hat compares
its halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._diagnostics import MIN_DRAWS, diagnose, ebfmi
from ._psis import Loo, importance_ess, psis

Labels = Callable[[str, tuple[int, ...]], str]
"""Name of one component of a site from the site's name and the component's index."""

_ADVICE = {
    "r_hat": (
        "the chains disagree: more warm-up and draws; if it stays, look for several modes or for "
        "parameters that the data cannot tell apart, and reparametrise"
    ),
    "ess_bulk": (
        "the draws are too dependent for means and medians: more draws, a low-rank mass matrix "
        "for correlated parameters, or another parametrisation"
    ),
    "ess_tail": (
        "the draws are too dependent for 5 % and 95 % quantiles: more draws, or lighter-tailed "
        "priors on the scales"
    ),
    "mcse": (
        "the Monte Carlo error of the mean is more than a tenth of the posterior sd: more draws"
    ),
    "divergences": (
        "the sampler left its path, so a region of the posterior is missing: non-centred "
        "parametrisation, a higher target_accept (0.95, 0.99), or a tighter prior on scales"
    ),
    "e_bfmi": (
        "the energy mixes slowly, as with heavy tails or a funnel: reparametrise, or put "
        "lighter-tailed priors on the scales"
    ),
    "tree_depth": (
        "trajectories are cut short, which is slow and not wrong: bring parameters to a common "
        "scale, adapt a low-rank mass matrix, or allow a greater tree depth"
    ),
    "non_finite": (
        "a draw that is not a number has no summary: look for overflow (exp, powers) or division "
        "by zero in the site named, or run in float64"
    ),
    "stuck_chains": (
        "a chain has not moved, so its draws carry one value: other initial points, a smaller "
        "initial step size, or longer warm-up"
    ),
    "k_hat": (
        "the approximation misses part of the posterior, and reweighting cannot mend that: a "
        "richer approximation, or NUTS"
    ),
    "ess_ratio": "few draws carry nearly all of the weight: a richer approximation, or more draws",
    "loo_k": (
        "leave-one-out is unreliable for these observations, which the model finds surprising: "
        "look at them, use a likelihood with heavier tails, or refit without them"
    ),
}


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


def mcmc_checks(
    draws: Mapping[str, Any],
    stats: Mapping[str, Any] | None = None,
    *,
    labels: Labels | None = None,
) -> list[Check]:
    """Checks of Markov chains.

    Args:
        draws: by site, shape (chain, draw, *shape), in constrained space.
        stats: by name, shape (chain, draw): ``diverging``, ``energy``, ``reached_max_treedepth``
            are judged where they are there; a sampler without them has no such checks.
        labels: name of a component from its site and index; by default ``theta[3]``.

    Returns:
        ``r_hat``, ``ess_bulk``, ``ess_tail``, ``mcse``, ``non_finite``, ``stuck_chains``, and
        ``divergences``, ``e_bfmi``, ``tree_depth`` where there are statistics for them. Never
        raises.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> [check.ok for check in mcmc_checks({"mu": x})][:2]
        [True, True]
    """
    try:
        table = _Table(draws, labels or plain_label)
    except Exception as error:  # the same rule as `_guarded`, for the whole table
        why = f"could not be computed: {type(error).__name__}: {error}"
        return [Check("r_hat", None, float("nan"), 1.01, "", why)]
    stats = {} if stats is None else stats
    least = 100.0 * max(table.chains, 1)
    checks = [
        _guarded("r_hat", 1.01, "<", lambda: table.worst("r_hat", 1.01, "<")),
        _guarded("ess_bulk", least, ">", lambda: table.worst("ess_bulk", least, ">")),
        _guarded("ess_tail", least, ">", lambda: table.worst("ess_tail", least, ">")),
        _guarded("mcse", 0.1, "<", lambda: table.worst("mcse", 0.1, "<")),
    ]
    if "diverging" in stats:
        checks.append(_guarded("divergences", 0.0, "<", lambda: _divergences(stats["diverging"])))
    if "energy" in stats:
        checks.append(_guarded("e_bfmi", 0.3, ">", lambda: _energy(stats["energy"])))
    if "reached_max_treedepth" in stats:
        checks.append(
            _guarded("tree_depth", 0.05, "<", lambda: _depth(stats["reached_max_treedepth"]))
        )
    checks.append(_guarded("non_finite", 0.0, "<", table.non_finite))
    checks.append(_guarded("stuck_chains", 0.0, "<", table.stuck))
    return checks


def importance_checks(log_weights: ArrayLike) -> list[Check]:
    """Checks of importance weights, for an approximation judged against its target.

    Args:
        log_weights: log target minus log approximation at draws of the latter, shape (draw,).

    Returns:
        ``k_hat`` and ``ess_ratio``. Never raises.

    Example:
        >>> import numpy as np
        >>> importance_checks(np.zeros(1000))[0].value
        0.0
    """
    return [
        _guarded("k_hat", 0.7, "<", lambda: _k_hat(log_weights)),
        _guarded("ess_ratio", 0.1, ">", lambda: _ess_ratio(log_weights)),
    ]


def loo_checks(loo: Loo, *, labels: Callable[[tuple[int, ...]], str] | None = None) -> list[Check]:
    """The check of leave-one-out: how many observations have a Pareto k too high.

    Args:
        loo: the result of `probkit.results._psis.loo`.
        labels: name of an observation from its index; by default ``observation 3``.

    Returns:
        ``loo_k``, naming the worst observation. Never raises.

    Example:
        >>> from probkit.results._psis import loo
        >>> import numpy as np
        >>> z = 0.1 * np.random.default_rng(0).normal(size=(4, 250, 1))
        >>> loo_checks(loo(-0.5 * z**2 * np.ones(5)))[0].ok
        True
    """
    return [_guarded("loo_k", 0.0, "<", lambda: _loo_k(loo, labels))]


def plain_label(site: str, index: tuple[int, ...]) -> str:
    """``theta[3]``, ``corr[0, 1]``, or the bare name of a scalar."""
    return f"{site}[{', '.join(map(str, index))}]" if index else site


def _guarded(name: str, threshold: float, direction: str, make: Callable[[], Check]) -> Check:
    """Run one check; whatever goes wrong becomes an entry that says what."""
    try:
        return make()
    except Exception as error:  # the verdict must come out, whatever the arrays hold
        why = f"could not be computed: {type(error).__name__}: {error}"
        return Check(name, None, float("nan"), threshold, "", why, direction)


def _judge(
    name: str, value: float, threshold: float, direction: str, where: str = "", note: str = ""
) -> Check:
    value = float(value)
    if direction == ">":
        good = value > threshold
    else:
        good = value < threshold or value == threshold == 0.0
    advice = _ADVICE[name] if not good else ""
    advice = "; ".join(filter(None, (advice, note)))
    return Check(name, good, value, threshold, where, advice, direction)


@dataclass(frozen=True)
class _Part:
    """One site: its name, where its components start in the table, and its shape."""

    name: str
    start: int
    shape: tuple[int, ...]


class _Table:
    """Diagnostics of every component of every site, flattened into one row of figures each."""

    def __init__(self, draws: Mapping[str, Any], labels: Labels) -> None:
        self.labels = labels
        self.parts: list[_Part] = []
        self.unread: list[str] = []
        self.chains = self.length = 0
        columns: dict[str, list[NDArray]] = {name: [] for name in _COLUMNS}
        still: list[NDArray] = []
        start = 0
        for name, values in draws.items():
            try:
                found, moved = _figures(values)
                if self.parts and np.shape(values)[:2] != (self.chains, self.length):
                    raise ValueError(
                        f"has {np.shape(values)[:2]} chains and draws, the sites before it "
                        f"{(self.chains, self.length)}"
                    )
            except Exception as error:  # one odd site must not hide the others
                self.unread.append(f"{name} ({type(error).__name__}: {error})")
                continue
            self.chains, self.length = np.shape(values)[:2]
            self.parts.append(_Part(name, start, np.shape(values)[2:]))
            start += found["r_hat"].size
            for key, figures in found.items():
                columns[key].append(figures)
            still.append(moved)
        self.columns = {
            key: np.concatenate(parts) if parts else np.zeros(0) for key, parts in columns.items()
        }
        self.still = np.concatenate(still) if still else np.zeros((0, 0), dtype=bool)

    def label(self, row: int) -> str:
        part = [p for p in self.parts if p.start <= row and np.prod(p.shape, dtype=int)][-1]
        index = np.unravel_index(row - part.start, part.shape) if part.shape else ()
        index = tuple(int(i) for i in index)
        try:
            return self.labels(part.name, index)
        except Exception:  # a name that fails must not cost the figure
            return plain_label(part.name, index)

    def worst(self, name: str, threshold: float, direction: str) -> Check:
        """The worst component, and a note on those that cannot be judged."""
        figures = self.columns[name]
        constant = self.columns["constant"].astype(bool)
        usable = ~constant & ~np.isnan(figures)
        note = self._note(constant, np.isnan(figures) & ~constant)
        if not usable.any():
            # Too few draws is a finding, and a bad one; nothing but constants is none at all.
            few = 0 < self.length < MIN_DRAWS
            why = note or "there is nothing to judge"
            if few:
                why = f"needs at least {MIN_DRAWS} draws a chain, found {self.length}: draw more"
            return Check(name, False if few else None, np.nan, threshold, "", why, direction)
        kept = np.where(usable, figures, -np.inf if direction == "<" else np.inf)
        row = int(kept.argmax() if direction == "<" else kept.argmin())
        # Said once, with the first check; the others leave out the same components.
        note = note if name == "r_hat" else ""
        return _judge(name, figures[row], threshold, direction, self.label(row), note)

    def _note(self, constant: NDArray, missing: NDArray) -> str:
        notes = [
            f"{why}, not judged: {self._some(mask)}"
            for why, mask in (("never varies", constant), ("not finite", missing))
            if mask.any()
        ]
        notes += [f"not read: {name}" for name in self.unread]
        return "; ".join(notes)

    def _some(self, mask: NDArray) -> str:
        rows = np.flatnonzero(mask)
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        return ", ".join(self.label(int(row)) for row in rows[:3]) + more

    def non_finite(self) -> Check:
        counts = self.columns["non_finite"]
        if not counts.size:
            return Check("non_finite", None, float("nan"), 0.0, "", "there is nothing to judge")
        row = int(counts.argmax())
        where = self.label(row) if counts[row] else ""
        return _judge("non_finite", counts.sum(), 0.0, "<", where)

    def stuck(self) -> Check:
        """Chains in which no component moves, of those that could have moved."""
        if self.length < MIN_DRAWS or not len(self.still):
            why = f"needs at least {MIN_DRAWS} draws a chain and a real-valued site"
            return Check("stuck_chains", None, float("nan"), 0.0, "", why)
        varies = ~self.columns["constant"].astype(bool)[self.columns["real"].astype(bool)]
        # Where some components vary, only those bear witness: a constant never moves. Where none
        # varies at all, every chain sits where it began.
        witness = self.still[varies] if varies.any() else self.still
        chains = np.flatnonzero(witness.all(axis=0))
        named = ", ".join(str(int(c)) for c in chains[:8])
        return _judge(
            "stuck_chains", float(len(chains)), 0.0, "<", f"chain {named}" if named else ""
        )


_COLUMNS = ("r_hat", "ess_bulk", "ess_tail", "mcse", "constant", "non_finite", "real")


def _figures(values: ArrayLike) -> tuple[dict[str, NDArray], NDArray]:
    """Figures of one site's components, and which chains stand still (real-valued sites only)."""
    array = np.asarray(values)
    found = diagnose(array)
    count = found["r_hat"].size
    flat = array.reshape(*array.shape[:2], count)
    real = array.dtype.kind == "f"
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = flat.min(axis=1), flat.max(axis=1)
        size = np.maximum(np.abs(low).max(axis=0), np.abs(high).max(axis=0))
        rounding = 8 * np.finfo(array.dtype).eps * size if real else 0.0
        constant = high.max(axis=0) - low.min(axis=0) <= rounding
        mcse = found["mcse_mean"].reshape(count) / found["sd"].reshape(count)
    figures = {key: found[key].reshape(count) for key in ("r_hat", "ess_bulk", "ess_tail")}
    figures |= {
        "mcse": mcse,
        "constant": constant,
        "non_finite": np.sum(~np.isfinite(flat), axis=(0, 1)).astype(float),
        "real": np.full(count, real),
    }
    # A discrete site may rest on one value for a whole chain and be right.
    return figures, (low == high).T if real else np.zeros((0, array.shape[0]), dtype=bool)


def _divergences(diverging: ArrayLike) -> Check:
    found = np.asarray(diverging, dtype=bool)
    by_chain = found.reshape(len(found), -1).sum(axis=1)
    count = int(by_chain.sum())
    where = f"{count} of {found.size} draws, most in chain {by_chain.argmax()}" if count else ""
    return _judge("divergences", float(count), 0.0, "<", where)


def _energy(energy: ArrayLike) -> Check:
    found = ebfmi(energy)
    if not np.isfinite(found).any():
        why = f"the energies do not vary or are not finite, or are fewer than {MIN_DRAWS}"
        return Check("e_bfmi", None, float("nan"), 0.3, "", why, ">")
    chain = int(np.nanargmin(found))
    return _judge("e_bfmi", found[chain], 0.3, ">", f"chain {chain}")


def _depth(reached: ArrayLike) -> Check:
    found = np.asarray(reached, dtype=bool)
    by_chain = found.reshape(len(found), -1).mean(axis=1)
    share = float(found.mean())
    return _judge(
        "tree_depth", share, 0.05, "<", f"most in chain {by_chain.argmax()}" if share else ""
    )


def _k_hat(log_weights: ArrayLike) -> Check:
    weights, bad = _weights(log_weights)
    if bad or not np.isfinite(weights).any():
        note = f"{bad or weights.size} of {weights.size} log weights are not finite"
        return _judge("k_hat", np.inf, 0.7, "<", "", note)
    k = float(psis(weights)[1])
    few = len(weights) < 25
    note = f"only {len(weights)} draws, too few to see a tail" if few and not k < 0.7 else ""
    return _judge("k_hat", k, 0.7, "<", "", note)


def _ess_ratio(log_weights: ArrayLike) -> Check:
    weights, bad = _weights(log_weights)
    usable = not bad and np.isfinite(weights).any()
    ratio = float(importance_ess(weights)) / weights.size if usable else 0.0
    return _judge("ess_ratio", ratio, 0.1, ">")


def _weights(log_weights: ArrayLike) -> tuple[NDArray, int]:
    """Log weights as a vector, and how many of them no weight can be (NaN, +inf)."""
    weights = np.asarray(log_weights, dtype=np.float64).reshape(-1)
    if not weights.size:
        raise ValueError("there are no log weights")
    return weights, int(np.sum(np.isnan(weights) | (weights == np.inf)))


def _loo_k(loo: Loo, labels: Callable[[tuple[int, ...]], str] | None) -> Check:
    khat = np.asarray(loo.khat)
    known = ~np.isnan(khat)
    note = f"not finite, not judged: {int(np.sum(~known))} observations" if not known.all() else ""
    if not known.any():
        return Check("loo_k", None, float("nan"), 0.0, "", note or "there are no observations")
    bad = int(np.sum(khat[known] >= loo.good_k))
    index = tuple(int(i) for i in np.unravel_index(np.nanargmax(khat), khat.shape))
    name = labels(index) if labels else f"observation {', '.join(map(str, index))}"
    where = f"{bad} of {khat.size} observations, worst {name}, k = {khat[index]:.2f}" if bad else ""
    return _judge("loo_k", float(bad), 0.0, "<", where, note)
