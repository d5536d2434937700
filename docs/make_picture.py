"""Draw the picture of the README: what eight schools reported, and what is believed of them now.

python docs/make_picture.py        writes docs/_static/schools.png
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import probkit as pk
from probkit import dist

NAMES = [
    "Choate",
    "Deerfield",
    "Andover",
    "Exeter",
    "Hotchkiss",
    "Lawrenceville",
    "St Paul's",
    "Mt Hermon",
]
DATA = {
    "y": [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0],
    "sigma": [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0],
}


def fitted() -> pk.Posterior:
    """The README's model and fit."""
    schools = pk.Model(
        mu=dist.Normal(0, 5),
        tau=dist.HalfCauchy(5),
        theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
        y=pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
    )
    method = pk.NUTS(target_accept=0.95)
    return pk.fit(schools, DATA, method=method, coords={"school": NAMES}, seed=0, progress=False)


def draw(posterior: pk.Posterior, path: Path) -> None:
    """Reported effects with two standard errors; posterior means with 50 % and 94 % intervals."""
    theta = posterior.draws["theta"].stack(sample=("chain", "draw"))
    low, inner_low, inner_high, high = (
        theta.quantile(q, "sample").values for q in (0.03, 0.25, 0.75, 0.97)
    )
    rows = np.arange(len(NAMES))
    y, sigma = np.array(DATA["y"]), np.array(DATA["sigma"])
    figure = Figure(figsize=(7.2, 3.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hlines(rows - 0.16, y - 2 * sigma, y + 2 * sigma, color="#b8b8b8", lw=1.5)
    axes.plot(y, rows - 0.16, "o", color="#8a8a8a", ms=5, label="reported, with 2 standard errors")
    axes.hlines(rows + 0.16, low, high, color="#2f6fab", lw=1.5)
    axes.hlines(rows + 0.16, inner_low, inner_high, color="#2f6fab", lw=4)
    mean = theta.mean("sample").values
    label = "posterior: mean, 50 % and 94 % intervals"
    axes.plot(mean, rows + 0.16, "o", color="#12395c", ms=5, label=label)
    axes.axvline(0.0, color="#d0d0d0", lw=1, zorder=0)
    axes.set_yticks(rows, NAMES)
    axes.invert_yaxis()
    axes.set_xlabel("effect of coaching (points)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(path, facecolor="white")


if __name__ == "__main__":
    posterior = fitted()
    print(posterior.check())
    print(posterior.summary().round(1).to_string())
    draw(posterior, Path(__file__).parent / "_static" / "schools.png")
