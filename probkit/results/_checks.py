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
    ess_ratio     > 0.1     effective over actual number of importance draws (with k_hat, the mean
                            and the sd of an approximation: `probkit.core._weights`)
    loo_k           0       observations with k >= min(1 - 1/log10 S, 0.7), ibid.

A component that never varies beyond the rounding of its dtype (the diagonal of a correlation
matrix, say) has no R-hat; it is left out and the advice says so. With one chain, R-hat compares
its halves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from probkit.core import Check as Check
from probkit.core import guarded
from probkit.core import importance_checks as importance_checks

from ._component_table import Table
from ._diagnostics import MIN_DRAWS, ebfmi
from ._judging import Labels as Labels
from ._judging import judge
from ._judging import plain_label as plain_label
from ._psis import Loo


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
        table = Table(draws, labels or plain_label)
    except Exception as error:  # the same rule as `guarded`, for the whole table
        why = f"could not be computed: {type(error).__name__}: {error}"
        return [Check("r_hat", None, float("nan"), 1.01, "", why)]
    stats = {} if stats is None else stats
    least = 100.0 * max(table.chains, 1)
    checks = [
        guarded("r_hat", 1.01, "<", lambda: table.worst("r_hat", 1.01, "<")),
        guarded("ess_bulk", least, ">", lambda: table.worst("ess_bulk", least, ">")),
        guarded("ess_tail", least, ">", lambda: table.worst("ess_tail", least, ">")),
        guarded("mcse", 0.1, "<", lambda: table.worst("mcse", 0.1, "<")),
    ]
    if "diverging" in stats:
        checks.append(guarded("divergences", 0.0, "<", lambda: _divergences(stats["diverging"])))
    if "energy" in stats:
        checks.append(guarded("e_bfmi", 0.3, ">", lambda: _energy(stats["energy"])))
    if "reached_max_treedepth" in stats:
        checks.append(
            guarded("tree_depth", 0.05, "<", lambda: _depth(stats["reached_max_treedepth"]))
        )
    checks.append(guarded("non_finite", 0.0, "<", table.non_finite))
    checks.append(guarded("stuck_chains", 0.0, "<", table.stuck))
    return checks


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
    return [guarded("loo_k", 0.0, "<", lambda: _loo_k(loo, labels))]


def _divergences(diverging: ArrayLike) -> Check:
    found = np.asarray(diverging, dtype=bool)
    by_chain = found.reshape(len(found), -1).sum(axis=1)
    count = int(by_chain.sum())
    where = f"{count} of {found.size} draws, most in chain {by_chain.argmax()}" if count else ""
    return judge("divergences", float(count), 0.0, "<", where)


def _energy(energy: ArrayLike) -> Check:
    found = ebfmi(energy)
    if not np.isfinite(found).any():
        why = f"the energies do not vary or are not finite, or are fewer than {MIN_DRAWS}"
        return Check("e_bfmi", None, float("nan"), 0.3, "", why, ">")
    chain = int(np.nanargmin(found))
    return judge("e_bfmi", found[chain], 0.3, ">", f"chain {chain}")


def _depth(reached: ArrayLike) -> Check:
    found = np.asarray(reached, dtype=bool)
    by_chain = found.reshape(len(found), -1).mean(axis=1)
    share = float(found.mean())
    return judge(
        "tree_depth", share, 0.05, "<", f"most in chain {by_chain.argmax()}" if share else ""
    )


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
    return judge("loo_k", float(bad), 0.0, "<", where, note)
