"""Log evidence against closed forms and quadrature, and whether its standard error is honest."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import gammaincinv, gammaln, ndtr
from scipy.stats import chi2

from probkit.results._evidence import bridge_evidence, log_evidence, t_evidence


def _ar(rng, shape, rho):
    """Stationary autoregression along axis 1 with standard normal marginals."""
    noise = rng.normal(size=shape)
    out = noise.copy()
    for t in range(1, shape[1]):
        out[:, t] = rho * out[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return out


def _gaussian(dim, seed=0):
    """A correlated Gaussian with its normaliser: covariance A A' + I/2."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(dim, dim)) / np.sqrt(dim)
    covariance = a @ a.T + 0.5 * np.eye(dim)
    factor = np.linalg.cholesky(covariance)
    mean = rng.normal(size=dim)

    def log_density(x):
        return 3.0 - 0.5 * np.square(np.linalg.solve(factor, (x - mean).T)).sum(axis=0)

    log_z = 3.0 + 0.5 * dim * np.log(2 * np.pi) + np.log(np.diag(factor)).sum()
    return lambda e: mean + e @ factor.T, log_density, log_z


@pytest.mark.parametrize("dim", [1, 5, 20])
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_gaussian(dim, rho):
    place, log_density, log_z = _gaussian(dim)
    draws = place(_ar(np.random.default_rng(1), (4, 1000, dim), rho))
    value, se = bridge_evidence(draws, log_density, 0)
    assert abs(value - log_z) < min(0.02, 4 * se + 1e-9)
    t_value, t_se, khat = t_evidence(draws, log_density, 0)
    assert khat < 0.7 and abs(t_value - log_z) < 4 * t_se < 0.2
    both = log_evidence(draws, log_density, 0)
    assert both.method == "bridge" and both.value == value and "bridge" in str(both)


def test_linear_regression():
    """Normal-inverse-gamma prior: the evidence is a Student t in closed form, and the posterior
    of (log sigma^2, beta) is sampled exactly. The density includes the log Jacobian."""
    rng = np.random.default_rng(2)
    n, d, a, b = 40, 3, 2.0, 1.5
    x = rng.normal(size=(n, d))
    y = x @ np.array([1.0, -0.5, 0.0]) + 0.7 * rng.normal(size=n)
    precision = np.eye(d) + x.T @ x
    centre = np.linalg.solve(precision, x.T @ y)
    a_n = a + n / 2
    b_n = b + 0.5 * (y @ y - centre @ precision @ centre)
    log_z = (
        -0.5 * n * np.log(2 * np.pi)
        - 0.5 * np.linalg.slogdet(precision)[1]
        + a * np.log(b)
        - a_n * np.log(b_n)
        + gammaln(a_n)
        - gammaln(a)
    )
    variance = b_n / rng.gamma(a_n, size=(4, 1000))
    root = np.linalg.cholesky(np.linalg.inv(precision))
    beta = centre + np.sqrt(variance)[..., None] * (rng.normal(size=(4, 1000, d)) @ root.T)
    draws = np.concatenate([np.log(variance)[..., None], beta], axis=-1)

    def log_density(z):
        s, coefficients = z[:, 0], z[:, 1:]
        residual = np.square(y - coefficients @ x.T).sum(axis=1)
        quadratic = residual + np.square(coefficients).sum(axis=1)
        normal = -0.5 * ((n + d) * (np.log(2 * np.pi) + s) + quadratic * np.exp(-s))
        # Inverse gamma in sigma^2, times the Jacobian sigma^2 of s = log sigma^2.
        return normal + a * np.log(b) - gammaln(a) - (a + 1) * s - b * np.exp(-s) + s

    found = log_evidence(draws, log_density, 3)
    assert abs(found.value - log_z) < min(4 * found.se, 0.05)


Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def _normal(x, sd=1.0):
    return -0.5 * np.square(x / sd) - np.log(sd) - 0.5 * np.log(2 * np.pi)


def _schools_density(z):
    """mu ~ N(0, 5), tau ~ HalfCauchy(5), theta = mu + tau e: over (mu, log tau, e)."""
    mu, tau, e = z[:, :1], np.exp(z[:, 1:2]), z[:, 2:]
    prior = np.log(2 / (5 * np.pi)) - np.log1p((tau / 5) ** 2) + np.log(tau)
    terms = _normal(mu, 5.0) + prior
    return (terms + (_normal(e) + _normal(Y - mu - tau * e, SIGMA)).sum(1, keepdims=True))[:, 0]


def _schools_exact(rng, shape):
    """Independent draws: log tau on a fine grid of its marginal, mu and e given it by Bayes."""
    grid = np.linspace(-12.0, 9.0, 50_001)
    tau = np.exp(grid)
    variance = SIGMA[:, None] ** 2 + tau**2
    precision = 1 / 25 + (1 / variance).sum(0)
    centre = (Y[:, None] / variance).sum(0) / precision
    log_p = (
        np.log(2 / (5 * np.pi))
        - np.log1p((tau / 5) ** 2)
        + grid
        + _normal(Y[:, None], np.sqrt(variance)).sum(0)
        + 0.5 * precision * centre**2
        - 0.5 * np.log(25 * precision)
    )
    p = np.exp(log_p - log_p.max())
    log_z = np.log(p.sum() * (grid[1] - grid[0])) + log_p.max()
    cdf = np.cumsum(p) / p.sum()
    place = np.searchsorted(cdf, rng.random(shape))
    mu = centre[place] + rng.normal(size=shape) / np.sqrt(precision[place])
    t = tau[place][..., None]
    given = 1 + (t / SIGMA) ** 2
    e = (Y - mu[..., None]) * t / SIGMA**2 / given + rng.normal(size=(*shape, 8)) / np.sqrt(given)
    return np.concatenate([mu[..., None], grid[place][..., None], e], axis=-1), log_z


def test_eight_schools():
    draws, log_z = _schools_exact(np.random.default_rng(4), (4, 1000))
    assert log_z == pytest.approx(-31.3113, abs=1e-3)
    found = log_evidence(draws, _schools_density, 5)
    assert abs(found.value - log_z) < min(0.10, 3 * found.se)
    assert found.se < 0.03


def _skewed(rng, shape, rho):
    """Three log-gamma variables with shapes 1/2, 1, 3, sheared: skewed and correlated. The first
    has an exponential left tail of rate 1/2. Chains move as an autoregression under the hood."""
    shapes = np.array([0.5, 1.0, 3.0])
    u = ndtr(_ar(rng, (*shape, 3), rho))
    z = np.log(gammaincinv(shapes, u))
    z[..., 2] += 0.5 * z[..., 0]

    def log_density(x):
        y = x.copy()
        y[:, 2] -= 0.5 * y[:, 0]
        return (shapes * y - np.exp(y)).sum(axis=1)

    return z, log_density, gammaln(shapes).sum()


@pytest.mark.parametrize("method", ["bridge", "best"])
@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_standard_errors_are_honest(method, rho):
    """40 seeds. If errors are normal with the reported size, the sum of squares of error/se is
    chi-squared with 40 degrees of freedom; the upper bound is its 1 - 1e-4 quantile, so the
    false-alarm rate is 1e-4 a case, and errors reported too small by a factor of 1.8 are found
    with probability 0.97. The lower bound finds errors reported much too large: 10 stands for
    errors of half the reported size."""
    scores = []
    for seed in range(40):
        rng = np.random.default_rng([seed, int(10 * rho)])
        draws, log_density, log_z = _skewed(rng, (4, 250), rho)
        if method == "bridge":
            value, se = bridge_evidence(draws, log_density, rng)
        else:
            found = log_evidence(draws, log_density, rng)
            value, se = found.value, found.se
        scores.append((value - log_z) / se)
    total = float(np.sum(np.square(scores)))
    assert 10.0 < total < chi2.ppf(1 - 1e-4, 40)


def test_importance_sampling_wins_where_chains_are_slow():
    """A t target with 5 degrees of freedom and chains worth few draws: the t needs none of them
    beyond a fit, the bridge needs them all."""
    rng = np.random.default_rng(6)
    normal = _ar(rng, (4, 500, 2), 0.95)
    radius = np.square(_ar(rng, (4, 500, 5), 0.95)).sum(-1, keepdims=True)
    draws = normal * np.sqrt(5 / radius)
    found = log_evidence(draws, lambda x: -3.5 * np.log1p(np.square(x).sum(1) / 5), 7)
    log_z = -(gammaln(3.5) - gammaln(2.5) - np.log(5 * np.pi))
    assert found.method == "t" and found.khat < 0.5
    assert abs(found.value - log_z) < 4 * found.se


def test_the_density_is_called_with_one_shape():
    shapes = set()
    place, log_density, _ = _gaussian(2)

    def counted(x):
        shapes.add(x.shape)
        return log_density(x)

    log_evidence(place(np.random.default_rng(0).normal(size=(4, 700, 2))), counted, 0)
    assert shapes == {(1024, 2)}


def test_seeds():
    place, log_density, _ = _gaussian(2)
    draws = place(np.random.default_rng(0).normal(size=(2, 300, 2)))
    assert log_evidence(draws, log_density, 1) == log_evidence(draws, log_density, 1)
    assert log_evidence(draws, log_density, 1) != log_evidence(draws, log_density, 2)


def test_mistakes():
    place, log_density, _ = _gaussian(2)
    draws = place(np.random.default_rng(0).normal(size=(2, 300, 2)))
    with pytest.raises(ValueError, match=r"\(chain, draw, d\)"):
        log_evidence(draws[0], log_density, 0)
    with pytest.raises(ValueError, match="too few"):
        log_evidence(draws[:, :5], log_density, 0)
    with pytest.raises(ValueError, match="expected log_density to return shape"):
        log_evidence(draws, lambda x: 0.0, 0)
    with pytest.raises(ValueError, match="not finite at 300 of 300"):
        log_evidence(draws, lambda x: np.full(len(x), np.nan), 0)
    with pytest.raises(ValueError, match="improper"):
        log_evidence(draws, lambda x: np.full(len(x), np.inf), 0)
    still = draws.copy()
    still[..., 1] = 2.0
    with pytest.raises(ValueError, match="dimension 1 of 2"):
        log_evidence(still, log_density, 0)
    still[:, 200:, 1] += draws[:, 200:, 0]
    with pytest.raises(ValueError, match="dimension 1 of 2"):
        log_evidence(still[:, 20:], log_density, 0)
    still[0, 3, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 600 draws are not finite"):
        log_evidence(still, log_density, 0)
