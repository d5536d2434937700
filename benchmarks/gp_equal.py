"""Gaussian terms: every engine's log evidence against the exact one, predictions against peers.

The exact value is scikit-learn's, with the same total diagonal; predictions are compared with its
and with GPJax's (its own kernel and conditioning, no jitter).

``python -m benchmarks.gp_equal [--rows 200]``
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import probkit as pk
from benchmarks import _common as c
from probkit.inference.gaussian import _cvi, _ep, _gp_exact, _gp_laplace
from probkit.inference.gaussian._conditioning import Sites, factorise
from probkit.inference.gaussian._problem import Problem

THETA = np.log([1.3, 0.8, 0.2])


def model() -> pk.Model:
    """Regression with a squared-exponential kernel."""
    return pk.Model(
        sd=pk.dist.LogNormal(0.0, 1.0),
        length=pk.dist.LogNormal(0.0, 1.0),
        noise=pk.dist.LogNormal(-1.0, 1.0),
        f=pk.gp(lambda sd, length: sd**2 * pk.kernels.RBF(length), at=["a", "b"]),
        y=pk.rv(lambda f, noise: pk.dist.Normal(f, noise), dims="row"),
    )


def energies(problem: Problem, theta: jax.Array) -> dict[str, jax.Array]:
    """Log evidences by engine at given hyperparameters."""
    prior = problem.prior(theta)
    flat = problem.start(theta, prior)
    sites = {
        "EP": _ep.solve(problem, theta, prior, flat).sites,
        "CVI": _cvi.solve(problem, theta, prior, flat, max_steps=1).sites,
        "Laplace": _gp_laplace.solve(problem, theta, prior, flat).sites,
    }
    hybrid = _ep.energy(problem, theta, prior, sites["CVI"]).value
    return {
        "exact": _gp_exact.value(problem, theta),
        "EP": _ep.value(problem, theta, sites["EP"]),
        "CVI, one step": _cvi.value(problem, theta, sites["CVI"]),
        "Laplace": _gp_laplace.value(problem, theta, sites["Laplace"]),
        "hybrid": hybrid,
    }


def by_gpjax(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the function at new points by GPJax, in double precision."""
    import gpjax

    gpx: Any = gpjax

    sd, length, noise = np.exp(THETA)
    kernel = gpx.kernels.RBF(lengthscale=jnp.asarray(length), variance=jnp.asarray(sd**2))
    prior = gpx.gps.Prior(kernel, gpx.mean_functions.Zero(), jitter=0.0)
    likelihood = gpx.likelihoods.Gaussian(jnp.asarray(noise))
    data = gpx.Dataset(X=jnp.asarray(x), y=jnp.asarray(y)[:, None])
    found = (prior * likelihood).condition(data).predict(jnp.asarray(new), covariance="diagonal")
    return np.asarray(found.mean), np.asarray(found.variance)


def main() -> None:
    """Measure, print and write."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(args.rows, 2))
    y = np.sin(2 * x[:, 0]) * x[:, 1] + 0.2 * rng.normal(size=args.rows)
    new = rng.uniform(-2, 2, size=(50, 2))
    sd, length, noise = np.exp(THETA)
    kernel = ConstantKernel(sd**2) * RBF(length)
    options: Any = {"optimizer": None, "alpha": noise**2}
    peer: Any = GaussianProcessRegressor(kernel, **options).fit(x, y)
    reference: Any = peer.log_marginal_likelihood_value_
    target = model().bind({"a": x[:, 0], "b": x[:, 1], "y": y})
    figures = {}
    with jax.enable_x64(True):
        problem = Problem.of(target)
        order = [list(problem.latent.theta.shapes).index(k) for k in ("sd", "length", "noise")]
        theta = jnp.zeros(3).at[jnp.asarray(order)].set(THETA)
        found = jax.jit(lambda t: energies(problem, t))(theta)
        for name, value in found.items():
            figures[name] = abs(float(value) - reference)
            c.line(f"{name}: |log evidence - scikit-learn's| x 1e8", figures[name] * 1e8, 1.0)
        a, b, _ = problem.latent.gaussian_terms(theta, problem.arrays)
        at = factorise(problem.prior(theta), Sites(b, a))
        cross = problem.latent.cross_covariance(
            theta, jnp.asarray(x), jnp.asarray(new), {**target.arrays}
        )
        half = at.inverse @ (at.s[:, None] * cross)
        mean, var = cross.T @ at.alpha, sd**2 - jnp.sum(half**2, axis=0)
    peer_mean, peer_sd = peer.predict(new, return_std=True)
    figures["mean"] = float(np.max(np.abs(np.asarray(mean) - peer_mean)))
    figures["var"] = float(np.max(np.abs(np.asarray(var) - peer_sd**2)))
    c.line("predicted means against scikit-learn's x 1e8", figures["mean"] * 1e8, 1.0)
    c.line("predicted variances against scikit-learn's x 1e8", figures["var"] * 1e8, 1.0)
    with jax.enable_x64(True):
        other_mean, other_var = by_gpjax(x, y, new)
    figures["gpjax_mean"] = float(np.max(np.abs(np.asarray(mean) - other_mean)))
    figures["gpjax_var"] = float(np.max(np.abs(np.asarray(var) - other_var)))
    c.line("predicted means against GPJax's x 1e8", figures["gpjax_mean"] * 1e8, 1.0)
    c.line("predicted variances against GPJax's x 1e8", figures["gpjax_var"] * 1e8, 1.0)
    c.save("gp_equal", figures)


if __name__ == "__main__":
    main()
