"""A Bayesian neural network on scikit-learn's diabetes data, against a linear model.

442 patients, ten measurements each, and a figure of how far the disease has come a year later. The
network has one hidden layer of 8 units; all its weights and the scales of both layers' priors are
random variables. It is fitted by a mean-field Gaussian and judged, beside a Bayesian linear
regression by the default call, on a fifth of the patients. A network's posterior has many modes,
for instance all orders of its hidden units, and one Gaussian sees only one of them; the verdict
does not pass it. What it is good for is told by the held-out patients.

Run it with ``python examples/bayesian_network.py [folder]``: it prints the verdict and held-out
figures, and writes ``bayesian_network.png``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import probkit as pk
from probkit import dist

UNITS = 8


network = pk.Model(
    first_scale=dist.HalfNormal(1.0),
    second_scale=dist.HalfNormal(1.0),
    first=pk.rv(lambda first_scale: dist.Normal(0, first_scale), dims=("feature", "unit")),
    shift=pk.rv(lambda: dist.Normal(0, 1), dims="unit"),
    second=pk.rv(lambda second_scale: dist.Normal(0, second_scale), dims="unit"),
    level=dist.Normal(0, 1),
    noise=dist.HalfNormal(1.0),
    f=pk.deterministic(
        lambda X, first, shift, second, level: level + jnp.tanh(X @ first + shift) @ second,
        dims="row",
    ),
    y=pk.rv(lambda f, noise: dist.Normal(f, noise), dims="row"),
)

linear = pk.Model(
    scale=dist.HalfNormal(1.0),
    slope=pk.rv(lambda scale: dist.Normal(0, scale), dims="feature"),
    level=dist.Normal(0, 1),
    noise=dist.HalfNormal(1.0),
    f=pk.deterministic(lambda X, slope, level: level + X @ slope, dims="row"),
    y=pk.rv(lambda f, noise: dist.Normal(f, noise), dims="row"),
)


def patients() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Training and held-out patients, standardised, and the measurements' names."""
    from sklearn.datasets import load_diabetes

    found: Any = load_diabetes()
    X = found.data / found.data.std(axis=0)
    y = (found.target - found.target.mean()) / found.target.std()
    order = np.random.default_rng(0).permutation(len(y))
    X, y, cut = X[order], y[order], len(y) * 4 // 5
    train, held_out = {"X": X[:cut], "y": y[:cut]}, {"X": X[cut:], "y": y[cut:]}
    return train, held_out, list(found.feature_names)


def main() -> None:
    """Fit, judge on held-out patients, draw."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".")
    train, held_out, names = patients()
    coords = {"feature": names, "unit": np.arange(UNITS)}
    dims = {"X": ("row", "feature")}
    fits = {}
    for name, model, family in (
        ("linear", linear, "flow"),
        ("network", network, "meanfield"),
    ):
        given = {k: v for k, v in coords.items() if model is network or k != "unit"}
        fits[name] = posterior = pk.fit(
            model,
            train,
            method=pk.VI(family=family, draws=1000),
            coords=given,
            dims=dims,
            seed=0,
            progress=False,
        )
        score = float(np.mean(posterior.log_predictive(held_out).to_numpy()))
        drawn = posterior.predict({"X": held_out["X"]}).predictions["y"].values
        drawn = drawn.reshape(-1, len(held_out["y"]))
        error = float(np.sqrt(np.mean((drawn.mean(axis=0) - held_out["y"]) ** 2)))
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        inside = float(np.mean((held_out["y"] > low) & (held_out["y"] < high)))
        print(f"--- {name}\n{posterior.check()}")
        print(
            f"held-out: log predictive density {score:.3f} each, error {error:.3f} sds, "
            f"{100 * inside:.0f} % inside 90 % intervals\n"
        )
    draw_picture(folder / "bayesian_network.png", fits, train, held_out, names)


def draw_picture(
    path: Path, fits: dict[str, Any], train: dict, held_out: dict, names: list[str]
) -> None:
    """Effects of two measurements with the others at their means, and held-out predictions."""
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.2), sharey=True)
    colours = dict(zip(fits, ("#1565c0", "#c62828"), strict=True))
    for panel, feature in zip(panels, ("bmi", "age"), strict=False):
        column = names.index(feature)
        grid = np.zeros((60, len(names)))
        grid[:, column] = np.linspace(-2.5, 2.5, 60)
        for name, posterior in fits.items():
            curve = posterior.predict({"X": grid}).predictions["f"].values.reshape(-1, 60)
            low, middle, high = np.quantile(curve, [0.05, 0.5, 0.95], axis=0)
            panel.plot(grid[:, column], middle, color=colours[name], label=name)
            panel.fill_between(grid[:, column], low, high, color=colours[name], alpha=0.15)
        panel.plot(train["X"][:, column], train["y"], ".", color="#9e9e9e", markersize=2)
        panel.set(xlabel=f"{feature} (sds)", title=f"effect of {feature}, 90 % bands")
    panels[0].set_ylabel("progression (sds)")
    panels[0].legend()
    drawn = fits["network"].predict({"X": held_out["X"]}).predictions["y"].values
    drawn = drawn.reshape(-1, len(held_out["y"]))
    order = np.argsort(drawn.mean(axis=0))
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)[:, order]
    place = np.arange(len(order))
    panels[2].fill_between(
        place, low, high, color="#c62828", alpha=0.2, label="90 % of predictions"
    )
    panels[2].plot(place, held_out["y"][order], ".", color="black", label="held-out patients")
    panels[2].set(xlabel="patients, by prediction", title="network, held-out patients")
    panels[2].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
