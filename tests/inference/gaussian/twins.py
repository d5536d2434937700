"""The engines again, slowly: dense inverses, fine grids, no closed form of any term.

``f ~ N(m, K)`` with terms ``logs(f)``, ``(points, n) -> (points, n)``, from another library.
Site precisions that terms without log-concavity make negative are zero, as the engines say of
themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats
from scipy.special import logsumexp

#: Log terms of points ``(points, n)``; the i-th column is a function of ``f_i`` alone.
Terms = Callable[[np.ndarray], np.ndarray]
_Z = np.linspace(-12.0, 12.0, 6001)[:, None]
_LOG_WEIGHT = -0.5 * _Z**2 - 0.5 * np.log(2.0 * np.pi) + np.log(_Z[1] - _Z[0])


class Twin(NamedTuple):
    """What an engine finds: log evidence, and the moments of ``f``."""

    log_evidence: float
    mean: np.ndarray
    cov: np.ndarray


def tilted(logs: Terms, m: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
    """Log normaliser, mean and variance of each term times its ``N(m_i, v_i)``."""
    f = m + np.sqrt(v) * _Z
    weight = _LOG_WEIGHT + logs(f)
    log_z = logsumexp(weight, axis=0)
    share = np.exp(weight - log_z)
    mean = np.sum(share * f, axis=0)
    return log_z, mean, np.sum(share * (f - mean) ** 2, axis=0)


def ahead(K: np.ndarray, cross: np.ndarray, whole: np.ndarray, m: float, fit: Twin) -> tuple:
    """Mean and variance of the function at new points with covariances ``cross (n, n*)``."""
    solved = np.linalg.solve(K, cross)
    mean = m + solved.T @ (fit.mean - m)
    return mean, whole - np.sum(cross * solved, 0) + np.sum(solved * (fit.cov @ solved), 0)


def _conditioned(
    K: np.ndarray, m: np.ndarray, l1: np.ndarray, l2: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Mean, covariance and log normaliser of ``N(m, K) exp(l1'f - f'l2 f / 2)``."""
    inverse = np.linalg.inv(K)
    cov = np.linalg.inv(inverse + np.diag(l2))
    shift = l1 + inverse @ m
    mean = cov @ shift
    log_det = np.linalg.slogdet(cov)[1] - np.linalg.slogdet(K)[1]
    return mean, cov, 0.5 * (shift @ mean - m @ inverse @ m + log_det)


def ep(K: np.ndarray, m: np.ndarray, logs: Terms) -> Twin:
    """Expectation propagation, all sites half a step at a time."""
    l1, l2 = np.zeros((2, len(m)))
    for _ in range(400):
        mean, cov, log_g = _conditioned(K, m, l1, l2)
        v = np.diag(cov)
        t, n = 1.0 / v - l2, mean / v - l1
        log_z, new_mean, new_v = tilted(logs, n / t, 1.0 / t)
        new_l2 = np.maximum(1.0 / new_v - t, 0.0)
        # Without a precision, the mean alone: v times the shift is where it goes.
        new_l1 = np.where(new_l2 > 0.0, new_mean / new_v - n, (new_mean - n / t) * t)
        gap = np.array([new_l1 - l1, new_l2 - l2])
        l1, l2 = l1 + 0.5 * gap[0], l2 + 0.5 * gap[1]
        if np.max(np.abs(gap)) < 1e-10:
            break
    phi = 0.5 * (n**2 / t - mean**2 / v - np.log(t * v))
    return Twin(float(log_g + np.sum(log_z + phi)), mean, cov)


def several_ep(
    K: np.ndarray,
    m: np.ndarray,
    logs: Callable[[np.ndarray, int], np.ndarray],
    count: int,
    nodes: int,
) -> tuple[Twin, np.ndarray, np.ndarray]:
    """EP with sites of whole rows; vectors have ``C n`` entries, process after process.

    ``logs(f, i)`` are the i-th row's log terms at ``f`` ``(points, C)``. Moments are those of a
    plain grid. Also returned are the sites' shifts ``(n, C)`` and precisions ``(n, C, C)``.
    """
    n = len(m) // count
    rows = [np.arange(count) * n + i for i in range(n)]
    line = np.linspace(-9.0, 9.0, nodes)
    grid = np.stack([g.ravel() for g in np.meshgrid(*[line] * count, indexing="ij")], -1)
    weight = -0.5 * np.sum(grid**2, axis=1) - 0.5 * count * np.log(2 * np.pi)
    weight += count * np.log(line[1] - line[0])
    l1, l2 = np.zeros((n, count)), np.zeros((n, count, count))
    inverse = np.linalg.inv(K)
    phi = lambda shift, cov: 0.5 * (shift @ cov @ shift + np.linalg.slogdet(cov)[1])  # noqa: E731
    for _ in range(300):
        precision, shift = inverse.copy(), inverse @ m
        for i, at in enumerate(rows):
            precision[np.ix_(at, at)] += l2[i]
            shift[at] += l1[i]
        cov = np.linalg.inv(precision)
        mean = cov @ shift
        total = phi(shift, cov) - phi(inverse @ m, K)
        gap = 0.0
        new1, new2 = l1.copy(), l2.copy()
        for i, at in enumerate(rows):
            own = np.linalg.inv(cov[np.ix_(at, at)])
            out = np.linalg.inv(own - l2[i])
            away = own @ mean[at] - l1[i]
            f = out @ away + grid @ np.linalg.cholesky(out).T
            log = weight + logs(f, i)
            log_z = logsumexp(log)
            share = np.exp(log - log_z)
            first = share @ f
            tilted_cov = (f * share[:, None]).T @ f - np.outer(first, first)
            total += log_z + phi(away, out) - phi(own @ mean[at], cov[np.ix_(at, at)])
            back = np.linalg.inv(tilted_cov)
            new2[i] = back - np.linalg.inv(out)
            new1[i] = back @ first - away
            gap = max(gap, np.abs(new1[i] - l1[i]).max(), np.abs(new2[i] - l2[i]).max())
        l1, l2 = l1 + 0.7 * (new1 - l1), l2 + 0.7 * (new2 - l2)
        if gap < 1e-9:
            break
    return Twin(float(total), mean, cov), l1, l2


def variational(K: np.ndarray, m: np.ndarray, logs: Terms) -> Twin:
    """The best Gaussian: derivatives of expectations by those of the normal density."""
    l1, l2 = np.zeros((2, len(m)))
    weight = np.exp(_LOG_WEIGHT)
    for _ in range(2000):
        mean, cov, _ = _conditioned(K, m, l1, l2)
        v = np.diag(cov)
        values = logs(mean + np.sqrt(v) * _Z)
        slope = np.sum(weight * values * _Z, axis=0) / np.sqrt(v)
        bend = np.sum(weight * values * (_Z**2 - 1.0), axis=0) / v
        new_l2 = np.maximum(-bend, 0.0)
        gap = np.array([slope + new_l2 * mean - l1, new_l2 - l2])
        l1, l2 = l1 + 0.3 * gap[0], l2 + 0.3 * gap[1]
        if np.max(np.abs(gap)) < 1e-9:
            break
    inverse = np.linalg.inv(K)
    log_det = np.linalg.slogdet(K)[1] - np.linalg.slogdet(cov)[1]
    away = mean - m
    divergence = 0.5 * (np.trace(inverse @ cov) + away @ inverse @ away - len(m) + log_det)
    return Twin(float(np.sum(weight * values) - divergence), mean, cov)


def laplace(K: np.ndarray, m: np.ndarray, logs: Terms) -> Twin:
    """The mode by a general optimiser, curvatures by differences."""
    inverse, tril = np.linalg.inv(K), np.linalg.cholesky(K)

    def loss(z: np.ndarray) -> float:
        return 0.5 * float(z @ z) - float(np.sum(logs((m + tril @ z)[None])))

    z = optimize.minimize(loss, np.zeros(len(m)), method="BFGS", options={"gtol": 1e-7}).x
    f, h = m + tril @ z, 1e-4
    near = logs(f + h * np.array([[-1.0], [0.0], [1.0]]))
    curvature = np.maximum(-(near[0] - 2.0 * near[1] + near[2]) / h**2, 0.0)
    cov = np.linalg.inv(inverse + np.diag(curvature))
    log_det = np.linalg.slogdet(cov)[1] - np.linalg.slogdet(K)[1]
    return Twin(-loss(z) + 0.5 * log_det, f, cov)


def sampled(
    K: np.ndarray, m: np.ndarray, logs: Terms, near: Twin, draws: int = 40_000
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The truth by importance sampling from a Student-t about ``near``.

    Returns:
        Log evidence with its standard error, means and sds of ``f``.
    """
    rng, n, dof = np.random.default_rng(5), len(m), 10.0
    tril = np.linalg.cholesky(1.1 * near.cov)
    proposal = stats.multivariate_t(near.mean, 1.1 * near.cov, dof)
    noise = rng.normal(size=(draws, n)) / np.sqrt(rng.chisquare(dof, size=(draws, 1)) / dof)
    f = near.mean + noise @ tril.T
    prior = stats.multivariate_normal(m, K)
    weight = np.sum(logs(f), axis=1) + prior.logpdf(f) - proposal.logpdf(f)
    log_z = float(logsumexp(weight) - np.log(draws))
    share = np.exp(weight - logsumexp(weight))
    mean = share @ f
    error = float(np.sqrt(np.sum(share**2) - 1.0 / draws))
    return log_z, error, mean, np.sqrt(share @ (f - mean) ** 2)
