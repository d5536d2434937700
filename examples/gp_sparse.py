"""A surface of probabilities from 20,000 labels, by a sparse Gaussian process.

The labels are made here: ``y ~ Bernoulli(Phi(g(x)))`` at random places of a square, with a smooth
``g``. A dense process would factorise matrices of 20,000 x 20,000 (3.2 GB each) some hundred times.
`SVGP` sees the rows through 80 inducing points, 512 rows a step. The fit is compared with the truth
that made the labels, on a grid, and the picture shows both, with the inducing points.

Run it with ``python examples/gp_sparse.py``. It prints the verdict and writes ``gp_sparse.png``.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.stats import norm

import probkit as pk
from probkit import dist

model = pk.Model(
    scale=dist.LogNormal(0, 1),
    size=dist.LogNormal(0, 1),
    f=pk.gp(lambda scale, size: pk.kernels.Matern52(scale, size**2), at=["east", "north"]),
    y=pk.rv(lambda f: pk.BernoulliProbit(f), dims="row"),
)


def truth(east: np.ndarray, north: np.ndarray) -> np.ndarray:
    """The function behind the labels."""
    return 1.5 * np.sin(1.7 * east) * np.cos(1.3 * north) + 0.4 * east


def main() -> None:
    quick = "--quick" in sys.argv
    rng = np.random.default_rng(0)
    n, side = (1500, 15) if quick else (20_000, 50)
    east, north = rng.uniform(-3, 3, size=(2, n))
    y = (rng.random(n) < norm.cdf(truth(east, north))).astype(int)
    method = pk.SVGP(inducing=40 if quick else 80, batch_size=256 if quick else 512, draws=200)
    data = {"east": east, "north": north, "y": y}
    posterior = pk.fit(model, data, method=method, seed=1, progress=False)
    print(posterior.check())
    print(posterior.summary(["scale", "size"], stats=("mean",)))
    figures = posterior.approximation.stats if posterior.approximation else {}
    print(f"{figures['steps']} steps; bound {figures['elbo'] / n:.4f} nats a row")

    line = np.linspace(-3, 3, side)
    grid = [a.ravel() for a in np.meshgrid(line, line)]
    ones = {"east": grid[0], "north": grid[1], "y": np.ones(side**2, int)}
    found = np.exp(posterior.log_predictive(ones).to_numpy())
    right = norm.cdf(truth(*grid))
    print(f"error of the probabilities {np.sqrt(np.mean((found - right) ** 2)):.4f} (rms)")
    points = np.asarray(figures["inducing_points"])
    draw_picture(line, {"truth": right, "SVGP, its inducing points": found}, points)
    print("wrote gp_sparse.png")


def draw_picture(line: np.ndarray, surfaces: dict[str, np.ndarray], points: np.ndarray) -> None:
    """The probabilities that made the labels, and those found."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    levels, drawn = np.linspace(0, 1, 11), []
    for axes, (name, values) in zip(panels, surfaces.items(), strict=True):
        surface = values.reshape(len(line), len(line))
        drawn.append(axes.contourf(line, line, surface, levels, cmap="RdBu_r"))
        axes.set(title=name, xlabel="east", aspect="equal")
    panels[0].set_ylabel("north")
    panels[1].plot(*points.T, "k.", markersize=4)
    figure.colorbar(drawn[0], ax=panels, label="P(y = 1)")
    figure.savefig("gp_sparse.png", dpi=150)


if __name__ == "__main__":
    main()
