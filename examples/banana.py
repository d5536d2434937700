"""A posterior bent like a banana: what a Gaussian misses, what a flow finds, and how one is told.

One number is observed, ``y ~ N(a + b^2, 0.3)``, with standard normal priors on ``a`` and ``b``.
Mean-field and full-rank Gaussians, and the default flow, are fitted in turn; each verdict says
whether to trust the fit. The evidence is known by quadrature.

Run it with ``python examples/banana.py [folder]``: it prints the verdicts and writes
``banana.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import probkit as pk
from probkit import dist

SEEN, NOISE = 1.0, 0.3

model = pk.Model(
    a=dist.Normal(0, 1),
    b=dist.Normal(0, 1),
    y=pk.rv(lambda a, b: dist.Normal(a + b**2, NOISE)),
)


def grid(width: float = 3.5, points: int = 601) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Axes and the exact joint density p(a, b, y) on a grid, shape ``(b, a)``."""
    axis = np.linspace(-width, width, points)
    a, b = np.meshgrid(axis, axis)
    gap = (SEEN - a - b**2) / NOISE
    log_p = -0.5 * (a**2 + b**2 + gap**2) - 1.5 * np.log(2 * np.pi) - np.log(NOISE)
    return axis, axis, np.exp(log_p)


def main() -> None:
    """Fit, judge, draw."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".")
    a, b, density = grid()
    truth = float(np.log(density.sum() * (a[1] - a[0]) ** 2))
    print(f"log evidence by quadrature: {truth:.4f}\n")
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    for panel, family in zip(panels, ("meanfield", "fullrank", "flow"), strict=True):
        method = pk.VI(family=family)
        posterior = pk.fit(model, {"y": SEEN}, method=method, seed=0, progress=False)
        print(f"--- {family}\n{posterior.check()}\n")
        draws = {k: posterior.values[k][0, :1500] for k in ("a", "b")}
        panel.contour(a, b, density, levels=np.max(density) * np.array([0.01, 0.1, 0.5]))
        panel.plot(draws["a"], draws["b"], ".", markersize=2, alpha=0.4, color="#c62828")
        elbo, evidence = posterior.elbo.value, posterior.log_evidence.value
        panel.set_title(f"{family}: ELBO {elbo:.2f}, log evidence {evidence:.2f}")
        panel.set_xlabel("a")
    panels[0].set_ylabel("b")
    figure.tight_layout()
    path = folder / "banana.png"
    figure.savefig(path, dpi=120)
    print(f"exact density: contours; fits: dots; written: {path}")


if __name__ == "__main__":
    main()
