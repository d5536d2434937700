"""Eight schools by variational inference, as it is written: what the default call does.

The model is the centred one of Rubin (1981); nothing is reparametrised by hand. The default fit is
compared with one that leaves the parametrisation alone and with NUTS. The log evidence by
quadrature is -31.3113.

Run it with ``python examples/eight_schools.py [folder]``: it prints the verdicts and writes
``eight_schools.png``.
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

NAMES = ["Choate", "Deerfield", "Phillips A.", "Phillips E.", "Hotchkiss", "Lawrenceville"]
NAMES += ["St. Paul's", "Mt. Hermon"]
DATA = {
    "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}
EVIDENCE = -31.3113

schools = pk.Model(
    mu=dist.Normal(0, 5),
    tau=dist.HalfCauchy(5),
    theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
    y=pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
)


def main() -> None:
    """Fit three times, judge, draw."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".")
    given = {"coords": {"school": NAMES}, "seed": 0, "progress": False}
    fits = {
        "pk.VI()": pk.fit(schools, DATA, method=pk.VI(), **given),
        "mean-field, as written": pk.fit(
            schools, DATA, method=pk.VI(family="meanfield"), reparam="off", **given
        ),
        "NUTS": pk.fit(schools, DATA, method=pk.NUTS(target_accept=0.95), **given),
    }
    print(f"log evidence by quadrature: {EVIDENCE}\n")
    for name, posterior in fits.items():
        print(f"--- {name}\n{posterior.check()}\n{posterior.log_evidence}\n")
    draw_picture(folder / "eight_schools.png", fits)


def draw_picture(path: Path, fits: dict[str, pk.Posterior]) -> None:
    """The scale of the schools' effects, the neck of the funnel, and the effects themselves."""
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.2))
    colours = dict(zip(fits, ("#1565c0", "#c62828", "#424242"), strict=True))
    for number, (name, posterior) in enumerate(fits.items()):
        values = {k: v.reshape(-1, *v.shape[2:]) for k, v in posterior.values.items()}
        tau, theta, colour = values["tau"], values["theta"], colours[name]
        bins = np.linspace(0, 20, 41)
        panels[0].hist(tau, bins, density=True, histtype="step", color=colour, label=name)
        if name != "mean-field, as written":
            rows = slice(0, len(tau), max(len(tau) // 1500, 1))
            dots = panels[1].plot(theta[rows, 0], np.log(tau[rows]), ".", color=colour)
            dots[0].set(markersize=2, alpha=0.5)
        low, middle, high = np.quantile(theta, [0.05, 0.5, 0.95], axis=0)
        place = np.arange(8) + 0.2 * (number - 1)
        panels[2].errorbar(middle, place, xerr=[middle - low, high - middle], fmt="o", color=colour)
    panels[0].set(xlabel="tau", title="the schools' spread")
    panels[0].legend()
    panels[1].set(xlabel="effect of Choate", ylabel="log tau", title="the funnel, default and NUTS")
    panels[2].set_yticks(np.arange(8), NAMES)
    panels[2].invert_yaxis()
    panels[2].set(xlabel="effect", title="effects, 90 % intervals")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
