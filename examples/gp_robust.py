"""A curve with outliers: Student-t noise against normal noise, by the same Gaussian process.

The data are made here: ``0.3 + 0.4 x + 0.5 sin(2.7 x) + 1.1 / (1 + x^2)`` (Neal 1997) with noise of
sd 0.1, and of sd 1 for one observation in ten. A normal likelihood has to explain the outliers by a
large noise or a wiggly function; a Student-t lets them be. Both are fitted by expectation
propagation and judged on observations without outliers that neither has seen.

Run it with ``python examples/gp_robust.py``. It prints both fits and writes ``gp_robust.png``.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import probkit as pk
from probkit import dist

smooth = pk.Model(
    scale=dist.LogNormal(0, 1),
    size=dist.LogNormal(0, 1),
    noise=dist.LogNormal(-2, 1),
    f=pk.gp(lambda scale, size: pk.kernels.RBF(scale, size**2), at="x"),
    y=pk.rv(lambda f, noise: dist.Normal(f, noise), dims="row"),
)
heavy = smooth.replace(y=pk.rv(lambda f, noise: dist.StudentT(3.0, f, noise), dims="row"))


def truth(x: np.ndarray) -> np.ndarray:
    """The curve."""
    return 0.3 + 0.4 * x + 0.5 * np.sin(2.7 * x) + 1.1 / (1 + x**2)


def main() -> None:
    quick = "--quick" in sys.argv
    rng = np.random.default_rng(3)
    n = 60 if quick else 120
    x = rng.uniform(-3, 3, n)
    outlier = rng.random(n) < 0.1
    y = truth(x) + np.where(outlier, 1.0, 0.1) * rng.normal(size=n)
    new = np.linspace(-3, 3, 100)
    clean = truth(new) + 0.1 * rng.normal(size=100)

    curves = {}
    for name, model in {"normal": smooth, "Student-t": heavy}.items():
        posterior = pk.fit(model, {"x": x, "y": y}, method=pk.EP(draws=300), seed=1, progress=False)
        print(f"--- {name} noise\n{posterior.check()}")
        curve = posterior.predict({"x": new}).predictions["f"]
        curves[name] = curve.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values
        error = np.sqrt(np.mean((curves[name][1] - truth(new)) ** 2))
        score = float(np.mean(posterior.log_predictive({"x": new, "y": clean}).to_numpy()))
        noise = float(posterior.values["noise"].mean())
        print(f"noise {noise:.3f}; error of the curve {error:.3f} (rms)")
        print(f"log predictive density of clean observations {score:.3f} each\n")
    draw_picture(x, y, new, curves)
    print("wrote gp_robust.png")


def draw_picture(x: Any, y: Any, new: Any, curves: dict[str, np.ndarray]) -> None:
    """The data, the curve, and what either likelihood makes of it."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.5), sharey=True, layout="constrained")
    for axes, (name, (low, middle, high)) in zip(panels, curves.items(), strict=True):
        axes.fill_between(new, low, high, alpha=0.4)
        axes.plot(new, middle, label="median and 90 % interval")
        axes.plot(new, truth(new), "k--", linewidth=0.8, label="truth")
        axes.plot(x, y, ".", color="0.4", markersize=4)
        axes.set(title=f"{name} noise", xlabel="x")
    panels[0].legend()
    figure.savefig("gp_robust.png", dpi=150)


if __name__ == "__main__":
    main()
