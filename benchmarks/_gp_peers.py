"""Exact regression by other libraries, a fit a line of input: ``python _gp_peers.py NAME FILE``.

Run by the interpreter of an environment of its own, so nothing of this package is imported. FILE is
an .npz of inputs ``x{i}`` and outcomes ``y{i}``; each line of the standard input is a number ``i``,
answered by a line of JSON with the CPU seconds of the fit and the log evidence it ended at. Both
start at ones, use doubles and one thread, and take Cholesky factors (no conjugate gradients).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np


def tinygp() -> Any:
    """Value and gradient compiled once; SciPy's L-BFGS-B in the logarithms."""
    import jax
    import jax.numpy as jnp
    from scipy.optimize import minimize
    from tinygp import GaussianProcess, kernels  # pyright: ignore[reportMissingImports]

    jax.config.update("jax_enable_x64", True)

    @jax.jit
    @jax.value_and_grad
    def loss(theta: Any, x: Any, y: Any) -> Any:
        sd, length, noise = jnp.exp(theta)
        kernel = sd**2 * kernels.ExpSquared(length, distance=kernels.distance.L2Distance())
        return -GaussianProcess(kernel, x, diag=noise**2).log_probability(y)

    def fit(x: np.ndarray, y: np.ndarray) -> float:
        def fun(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = loss(theta, x, y)
            return float(value), np.asarray(slope)

        return -float(minimize(fun, np.zeros(3), jac=True, method="L-BFGS-B").fun)

    return fit


def gpytorch() -> Any:
    """An exact model; torch's L-BFGS with a strong Wolfe line search."""
    import gpytorch as gp  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)

    class Model(gp.models.ExactGP):
        def __init__(self, x: Any, y: Any, likelihood: Any):
            super().__init__(x, y, likelihood)
            self.mean_module = gp.means.ZeroMean()
            self.covar_module = gp.kernels.ScaleKernel(gp.kernels.RBFKernel())

        def forward(self, x: Any) -> Any:
            return gp.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def fit(x: np.ndarray, y: np.ndarray) -> float:
        at, seen = torch.from_numpy(x), torch.from_numpy(y)
        likelihood = gp.likelihoods.GaussianLikelihood().double()
        model = Model(at, seen, likelihood).double()
        model.covar_module.outputscale = model.covar_module.base_kernel.lengthscale = 1.0
        likelihood.noise = 1.0
        evidence = gp.mlls.ExactMarginalLogLikelihood(likelihood, model)
        model.train()
        likelihood.train()
        search = torch.optim.LBFGS(
            model.parameters(), max_iter=100, tolerance_change=1e-8, line_search_fn="strong_wolfe"
        )
        dense = (
            gp.settings.fast_computations(False, False, False),
            gp.settings.max_cholesky_size(10**6),
        )

        def loss() -> Any:
            search.zero_grad()
            value = -evidence(model(at), seen)
            value.backward()
            return value

        with dense[0], dense[1]:
            search.step(loss)
            return float(evidence(model(at), seen)) * len(y)

    return fit


def main(library: str, path: str) -> None:
    """Answer the lines of the standard input."""
    fit = {"tinygp": tinygp, "gpytorch": gpytorch}[library]()
    with np.load(path) as arrays:
        data = dict(arrays)
    print("ready", flush=True)
    for line in sys.stdin:
        x, y = data[f"x{int(line)}"], data[f"y{int(line)}"]
        clock = time.process_time()
        evidence = fit(x, y)
        took = time.process_time() - clock
        print(json.dumps({"cpu": took, "evidence": evidence}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
