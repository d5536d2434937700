"""Breast cancer: benign or malignant, and how each engine sees the evidence.

The data come with scikit-learn: thirty measurements of the cell nuclei of 569 tumours. A latent
function with an isotropic Matern-5/2 kernel goes through a probit link. With the hyperparameters
fixed on a grid (they are data here, so that one compiled program serves the whole grid), four
engines each give a log evidence: Laplace, expectation propagation, variational inference and the
hybrid of the two. Their surfaces are drawn side by side, with the optimum of each marked; then the
labels held out are predicted by each engine at its own optimum. The classes are nearly separable,
so that EP's evidence hardly falls however large the function gets: its mark is at the upper edge.
(With the two as variables of the model, ``pk.fit`` searches for the optimum without a grid.)

Run it with ``python examples/gp_classification.py [--quick]``. It prints the scores and writes
``gp_classification.png``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer

import probkit as pk

COLUMNS = [f"x{i}" for i in range(30)]
ENGINES = {
    "Laplace": pk.GPLaplace,
    "EP": pk.EP,
    "VI": pk.CVI,
    "hybrid": pk.HybridEP,
}

model = pk.Model(
    f=pk.gp(lambda size, scale: pk.kernels.Matern52(scale, size**2), at=COLUMNS),
    y=pk.rv(lambda f: pk.BernoulliProbit(f), dims="row"),
)


def load(rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Standardised measurements as columns, in two halves; label 1 is benign."""
    x, y = (np.asarray(part) for part in load_breast_cancer(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0)
    order = np.random.default_rng(0).permutation(len(x))[:rows]

    def columns(part: np.ndarray) -> dict[str, Any]:
        return {**{k: x[part, i] for i, k in enumerate(COLUMNS)}, "y": y[part]}

    return columns(order[::2]), columns(order[1::2])


def evidence(posterior: pk.Posterior) -> float:
    """The engine's own estimate of the log evidence."""
    found = posterior.approximation
    return np.nan if found is None or found.log_evidence is None else found.log_evidence


def fit(engine: Any, data: dict[str, Any], log_size: float, log_scale: float) -> pk.Posterior:
    """One engine at one point of the grid."""
    at = {"size": np.exp(log_size), "scale": np.exp(log_scale)}
    method = engine(draws=100, starts=1)
    return pk.fit(model, {**data, **at}, method=method, progress=False)


def main() -> None:
    quick = "--quick" in sys.argv
    train, test = load(160 if quick else 569)
    points = 5 if quick else 9
    sizes, scales = np.linspace(-1, 5, points), np.linspace(-1, 5, points)
    surfaces = {}
    for name, engine in ENGINES.items():
        begin = time.perf_counter()
        surface = np.array([[evidence(fit(engine, train, a, b)) for b in scales] for a in sizes])
        surfaces[name] = surface
        i, j = np.unravel_index(np.nanargmax(surface), surface.shape)
        posterior = fit(engine, train, sizes[i], scales[j])
        at = {"size": np.exp(sizes[i]), "scale": np.exp(scales[j])}
        score = float(np.mean(posterior.log_predictive({**test, **at}).to_numpy()))
        print(
            f"{name:<8} log evidence {surface[i, j]:8.2f} at log size {sizes[i]:4.1f}, log scale "
            f"{scales[j]:4.1f}; negative log predictive density {-score:.4f} "
            f"({time.perf_counter() - begin:.0f} s)"
        )
    draw_picture(sizes, scales, surfaces)
    print("wrote gp_classification.png")


def finer(sizes: Any, scales: Any, surface: np.ndarray) -> tuple[Any, Any, Any]:
    """A surface between the points of its grid, by cubic pieces that add no hills of their own."""
    from scipy.interpolate import pchip_interpolate

    up, along = (np.linspace(axis[0], axis[-1], 121) for axis in (sizes, scales))
    return (
        up,
        along,
        pchip_interpolate(scales, pchip_interpolate(sizes, surface, up), along, axis=1),
    )


def draw_picture(sizes: Any, scales: Any, surfaces: dict[str, np.ndarray]) -> None:
    """Contours of the four surfaces, on one scale; dots are the points of the grid."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(13, 3.6), sharey=True, layout="constrained")
    top = max(np.nanmax(s) for s in surfaces.values())
    levels = -np.array([40, 20, 10, 5, 2, 1, 0.5, 0.0])
    grid = np.meshgrid(scales, sizes)
    shown: Any = None
    for axes, (name, surface) in zip(panels, surfaces.items(), strict=True):
        up, along, values = finer(sizes, scales, surface - top)
        shown = axes.contourf(along, up, np.minimum(values, 0.0), levels=levels, extend="min")
        axes.contour(along, up, values, levels=levels[:-1], colors="k", linewidths=0.4)
        axes.plot(*grid, ".", color="k", alpha=0.25, markersize=1.5)
        i, j = np.unravel_index(np.nanargmax(surface), surface.shape)
        axes.plot(scales[j], sizes[i], "r*", markersize=11, markeredgecolor="w", clip_on=False)
        axes.set(title=name, xlabel="log length scale")
    panels[0].set_ylabel("log size")
    figure.colorbar(shown, ax=panels, label="log evidence, less the highest of all")
    figure.savefig("gp_classification.png", dpi=150)


if __name__ == "__main__":
    main()
