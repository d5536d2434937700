"""Evidence: eight schools' log marginal likelihood by NUTS against quadrature, and Laplace's k-hat.

The exact value integrates the effects and the mean in closed form and the scale by quadrature.

``python -m benchmarks.evidence [--seeds 5]``
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import probkit as pk
from benchmarks import _common as c
from benchmarks._models import CASES


def quadrature(y: np.ndarray, sigma: np.ndarray) -> float:
    """Log evidence of eight schools: y | tau is normal, tau is integrated numerically."""
    from scipy import integrate, stats

    def density(tau: float) -> float:
        # y_j | mu, tau ~ N(mu, sigma_j^2 + tau^2), and mu ~ N(0, 25) adds 25 to every entry.
        cov: Any = np.diag(sigma**2 + tau**2) + 25.0
        likelihood = stats.multivariate_normal.pdf(y, np.zeros(len(y)), cov)
        return float(likelihood * stats.halfcauchy.pdf(tau, scale=5))

    near = integrate.quad(density, 0, 30, epsabs=0, epsrel=1e-10, limit=500)[0]
    far = integrate.quad(density, 30, np.inf, epsabs=0, epsrel=1e-8, limit=500)[0]
    return float(np.log(near + far))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    case = CASES["schools"]()
    exact = quadrature(case.data["y"].astype(float), case.data["sigma"].astype(float))
    print(f"quadrature: {exact:.4f}")
    found = []
    for seed in range(args.seeds):
        posterior = pk.fit(case.model, case.data, seed=seed, progress=False)
        evidence = posterior.log_evidence
        gap = abs(evidence.value - exact)
        found.append([evidence.value, evidence.se, gap])
        c.line(f"seed {seed}: {evidence.method}: distance from quadrature", gap, 0.10)
        c.line(f"seed {seed}: the same in reported standard errors", gap / evidence.se, 3.0)
    laplace = pk.fit(case.model, case.data, method=pk.Laplace(), seed=0, progress=False)
    k_hat = laplace.check()["k_hat"].value
    c.line("Laplace alone: Pareto k-hat", k_hat, 0.7, at_least=True)
    c.save("evidence", {"quadrature": exact, "nuts": found, "laplace_k_hat": k_hat})


if __name__ == "__main__":
    main()
