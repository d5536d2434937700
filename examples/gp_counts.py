"""Sunspots: yearly counts with a cycle of about eleven years, by a Gaussian process.

The data come with statsmodels: Wolf's sunspot numbers, 1700 to 2008. The log of the expected number
is a Gaussian process whose kernel is a periodic one that drifts (its period is learnt), plus slow
changes of the level; counts are negative binomial around it. The last years are held out.

Run it with ``python examples/gp_counts.py [--quick]``. It prints the verdict, the period and the
forecast of the years held out, and writes ``gp_counts.png``.
"""

from __future__ import annotations

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import statsmodels.api as sm

import probkit as pk
from probkit import dist, kernels

HELD_OUT = 1998


def covariance(size, period, drift, level, slow) -> Any:
    """A cycle that keeps its shape for about ``drift`` years, and a level that moves slowly."""
    cycle = kernels.Matern52(drift, size**2) * kernels.Periodic(1.0, period)
    return cycle + kernels.RBF(slow, level**2)


model = pk.Model(
    period=dist.LogNormal(np.log(11), 0.1),
    drift=dist.LogNormal(np.log(30), 0.5),
    size=dist.LogNormal(0, 0.5),
    slow=dist.LogNormal(np.log(50), 0.5),
    level=dist.LogNormal(-1, 0.5),
    shape=dist.LogNormal(1, 1),
    f=pk.gp(covariance, at="year", mean=3.5),
    spots=pk.rv(lambda f, shape: dist.NegativeBinomial2(jnp.exp(f), shape), dims="row"),
)


def main() -> None:
    frame: Any = pd.DataFrame(sm.datasets.sunspots.load_pandas().data)
    frame = frame.assign(spots=frame.SUNACTIVITY.round().astype(int), year=frame.YEAR.astype(float))
    if "--quick" in sys.argv:
        frame = frame[frame.year >= 1880]
    train, test = frame[frame.year < HELD_OUT], frame[frame.year >= HELD_OUT]

    method = pk.GPLaplace(draws=300)
    posterior = pk.fit(model, train[["year", "spots"]], method=method, seed=1)
    print(f"\n{posterior.check()}\n")
    for name in ("period", "drift", "size", "slow", "level", "shape"):
        print(f"  {name:<8} {float(posterior.values[name].mean()):8.2f}")

    predicted = posterior.predict(test[["year"]]).predictions["spots"]
    low, middle, high = predicted.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values
    print(f"\nForecast from {HELD_OUT} on (90 % intervals)")
    for year, lo, mid, hi, seen in zip(test.year, low, middle, high, test.spots, strict=True):
        mark = "" if lo <= seen <= hi else "   outside"
        print(f"  {year:.0f} {mid:6.0f}  [{lo:4.0f}, {hi:4.0f}]   actual {seen:4d}{mark}")
    scores = posterior.log_predictive(test[["year", "spots"]])
    print(f"  log predictive density {float(np.mean(scores.to_numpy())):.2f} a year")
    draw_picture(frame, test.year, low, middle, high)
    print("wrote gp_counts.png")


def draw_picture(frame: Any, year: Any, low: Any, middle: Any, high: Any) -> None:
    """The counts, and the forecast of the years held out."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    frame = frame[frame.year >= 1900]
    before, after = frame[frame.year < HELD_OUT], frame[frame.year >= HELD_OUT]
    axes.plot(before.year, before.spots, ".-", color="0.3", lw=0.5, ms=4, label="counted")
    axes.plot(after.year, after.spots, "o", color="C3", ms=4, label="held out")
    axes.fill_between(year, low, high, alpha=0.4, label="90 % of the forecast")
    axes.plot(year, middle, label="its median")
    axes.set(xlabel="year", ylabel="sunspots")
    axes.legend(loc="upper left")
    figure.savefig("gp_counts.png", dpi=150)


if __name__ == "__main__":
    main()
