"""Carbon dioxide at Mauna Loa: a Gaussian process learns trend and season, and forecasts.

The data come with statsmodels: weekly concentrations (parts per million by volume) since 1958, here
averaged by month. The function is a sum of parts, each of them a kernel (after Rasmussen and
Williams 2006, section 5.4.3): a straight line, a smooth bend of it, a season whose shape drifts
over decades, irregularities of some years, and noise that lasts for weeks besides that of single
months. Their scales are learnt from the data by maximising the evidence; eight years are held out
and forecast.

Two of the parts keep the forecast honest. Without the noise that lasts, all of it goes to the
irregularities, which come out short, so that nothing but the smooth bend is left to be wrong about
the years ahead. And the irregularities are those of a Matern kernel, which wander; a smooth kernel
is sure of where it goes. ``--back`` repeats the forecast from earlier dates: the one from 1991 (the
eruption of Pinatubo) was wrong for reasons that no earlier year had shown.

The scales are point estimates; ``pk.Marginal()`` in place of ``pk.GPExact()`` averages over them
and widens the intervals a little.

Run it with ``python examples/co2.py [--quick] [--back]``. It prints the verdict, what was learnt
and the forecast against what came, and writes ``co2.png``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm

import probkit as pk
from probkit import dist, kernels

HELD_OUT, YEARS = 1994.0, 8.0
EARLIER = (1980.0, 1984.0, 1988.0, 1991.0)


def covariance(trend, rise, season, shape, drift, wiggle, length, brief, lasting) -> Any:
    """The parts; scales in ppm and years."""
    line = kernels.Linear(1.0)  # a slope of the order of 1 ppm a year
    bend = kernels.RBF(trend, rise**2)
    yearly = kernels.RBF(drift, season**2) * kernels.Periodic(shape, period=1.0)
    irregular = kernels.Matern32(length, wiggle**2)
    weather = kernels.RBF(brief, lasting**2)
    return line + bend + yearly + irregular + weather


model = pk.Model(
    # Years: how fast the trend bends, how long a season keeps its shape, how long irregularities
    # and the noise last. ppm: how far each of them moves the concentration.
    trend=dist.LogNormal(np.log(50), 0.5),
    rise=dist.LogNormal(np.log(20), 0.5),
    drift=dist.LogNormal(np.log(100), 0.5),
    season=dist.LogNormal(np.log(3), 0.5),
    shape=dist.LogNormal(0, 0.5),
    length=dist.LogNormal(np.log(4), 0.7),
    wiggle=dist.LogNormal(np.log(1.5), 0.7),
    brief=dist.LogNormal(np.log(0.3), 0.5),
    lasting=dist.LogNormal(np.log(0.3), 0.5),
    noise=dist.LogNormal(np.log(0.2), 0.5),
    f=pk.gp(covariance, at="t", mean=340.0),
    co2=pk.rv(lambda f, noise: dist.Normal(f, noise), dims="row"),
)


def load(quick: bool) -> pd.DataFrame:
    """Monthly means (quarterly ones for a quick look) with the time in years."""
    weekly = pd.DataFrame(sm.datasets.co2.load_pandas().data)["co2"]
    means = weekly.resample("QS" if quick else "MS").mean().dropna()
    months = 1.0 if quick else 0.5  # the middle of the quarter, or of the month
    year = (means.index.year + (means.index.month - 1 + months) / 12).to_numpy(float)
    return pd.DataFrame({"year": year, "t": year - 1976.0, "co2": means.to_numpy()})


def split(frame: Any, date: float) -> tuple[Any, Any]:
    """The years before a date, and the eight after it."""
    return frame[frame.year < date], frame[(frame.year >= date) & (frame.year < date + YEARS)]


def learn(train: pd.DataFrame) -> pk.Posterior:
    """The process and its scales."""
    return pk.fit(model, train, method=pk.GPExact(draws=400), seed=1)


def forecast(posterior: pk.Posterior, new: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 5 %, 50 % and 95 % quantiles of new observations."""
    predicted = posterior.predict(new).predictions["co2"]
    return tuple(predicted.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values)


def score(posterior: pk.Posterior, test: pd.DataFrame) -> str:
    """How a forecast did."""
    low, middle, high = forecast(posterior, test)
    actual = test.co2.to_numpy()
    inside = np.mean((low <= actual) & (actual <= high))
    error = np.sqrt(np.mean((middle - actual) ** 2))
    density = float(np.mean(posterior.log_predictive(test).to_numpy()))
    return f"{inside:.0%} inside; error {error:.2f} ppm (rms); log density {density:.2f} a point"


def main() -> None:
    frame = load("--quick" in sys.argv)
    train, test = split(frame, HELD_OUT)
    begin = time.perf_counter()
    posterior = learn(train)
    print(f"\n{posterior.check()}\n")
    for name in posterior.values:
        if name != "f":
            print(f"  {name:<8} {float(posterior.values[name].mean()):8.2f}")

    low, middle, high = forecast(posterior, test)
    actual = test.co2.to_numpy()
    print(f"\nForecast from {HELD_OUT:.0f} on (ppm, 90 % intervals), every eighth point")
    for i in range(0, len(test), 8):
        mark = "" if low[i] <= actual[i] <= high[i] else "   outside"
        print(
            f"  {test.year.iloc[i]:8.2f} {middle[i]:7.1f}  [{low[i]:6.1f}, {high[i]:6.1f}]   "
            f"actual {actual[i]:6.1f}{mark}"
        )
    print(f"  {score(posterior, test)}")
    for date in EARLIER if "--back" in sys.argv else ():
        before, after = split(frame, date)
        print(f"  the eight years from {date:.0f}: {score(learn(before), after)}")
    draw_picture(frame, test.year.to_numpy(), low, middle, high)
    print(f"wrote co2.png ({time.perf_counter() - begin:.0f} s in all)")


def draw_picture(frame: pd.DataFrame, year: np.ndarray, low: Any, middle: Any, high: Any) -> None:
    """The data, and the forecast of the years held out: all years, and the last of them."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axes, first in zip(panels, (frame.year.min(), HELD_OUT - 5), strict=True):
        shown = frame[frame.year >= first]
        axes.fill_between(year, low, high, alpha=0.4, label="90 % of the forecast")
        axes.plot(year, middle, linewidth=0.9, label="its median")
        axes.plot(shown.year, shown.co2, ".", markersize=3, color="0.25", label="measured")
        axes.axvline(HELD_OUT, color="0.6", linewidth=0.8, linestyle=":")
        axes.set(xlabel="year")
    panels[0].set(ylabel="CO2 (ppm)", title="all years")
    panels[1].set(title=f"the years from {HELD_OUT:.0f} on are held out")
    panels[0].legend()
    figure.savefig("co2.png", dpi=150)


if __name__ == "__main__":
    main()
