"""Targets with known answers that the tests of the methods share, and how draws are scored."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import probkit as pk
from probkit.core import Target
from probkit.results._diagnostics import mcse_mean, mcse_sd

#: Bound of z-scores. With exact standard errors one score exceeds it with probability 6e-7; with
#: errors estimated from a thousand effective draws it is below 1e-5.
BOUND = 5.0

SCALES = np.array([0.1, 1.0, 3.0, 10.0])
CENTRE = np.array([1.0, -2.0, 0.0, 5.0])
_MIX = np.eye(4) + 0.6 * np.diag(np.ones(3), -1)
COVARIANCE = np.diag(SCALES) @ _MIX @ _MIX.T @ np.diag(SCALES)


def correlated() -> Target:
    """A correlated Gaussian of four dimensions, sds of 0.1 to 12; its log normaliser is known."""
    precision = jnp.asarray(np.linalg.inv(COVARIANCE), jnp.float32)
    centre = jnp.asarray(CENTRE, jnp.float32)

    def log_density(z):
        gap = z["x"] - centre
        return -0.5 * gap @ precision @ gap

    return Target.from_log_density(log_density, {"x": np.zeros(4)})


LOG_NORMALISER = 0.5 * (4 * np.log(2 * np.pi) + np.linalg.slogdet(COVARIANCE)[1])

SCHOOLS = {
    "y": np.array([28.0, 8, -3, 7, -1, 1, 18, 12]),
    "sigma": np.array([15.0, 10, 16, 11, 9, 11, 10, 18]),
}
#: Log evidence of eight schools with tau ~ HalfCauchy(5), mu ~ N(0, 5), by quadrature.
SCHOOLS_EVIDENCE = -31.3113

schools = pk.Model(
    mu=pk.dist.Normal(0, 5),
    tau=pk.dist.HalfCauchy(5),
    theta=pk.rv(lambda mu, tau: pk.dist.Normal(mu, tau), dims="school"),
    y=pk.rv(lambda theta, sigma: pk.dist.Normal(theta, sigma), dims="school"),
)


def scores(values: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """Absolute z-scores of the means and the sds of draws ``(chain, draw, d)``."""
    values = np.asarray(values, np.float64)
    far = (values.mean(axis=(0, 1)) - mean) / mcse_mean(values)
    wide = (values.std(axis=(0, 1)) - np.sqrt(np.diag(cov))) / mcse_sd(values)
    return np.abs(np.concatenate([far, wide]))
