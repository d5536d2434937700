"""Carbon dioxide at Mauna Loa: a Gaussian process learns trend and season, and forecasts.

The data come with statsmodels: weekly concentrations (parts per million by volume) since 1958, here
averaged by month. The function is a sum of four parts, each of them a kernel (after Rasmussen and
Williams 2006, section 5.4.3): a straight line, a smooth bend of it, a season whose shape drifts
over decades, and irregularities of a year or two. Their scales are learnt from the data by
maximising the evidence; the last years are held out and forecast.

The scales are point estimates, and growth sped up after 1993: forecasts several years ahead are too
sure of themselves. ``pk.NUTS()`` in place of ``pk.GPExact()`` averages over the scales.

Run it with ``python examples/co2.py [--quick]``. It prints the verdict, what was learnt and the
forecast against what came, and writes ``co2.png``.
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

HELD_OUT = 1994.0


def covariance(trend, rise, season, shape, drift, wiggle, length) -> Any:
    """The four parts; scales in ppm and years."""
    line = kernels.Linear(1.0)  # a slope of the order of 1 ppm a year
    bend = kernels.RBF(trend, rise**2)
    yearly = kernels.RBF(drift, season**2) * kernels.Periodic(shape, period=1.0)
    irregular = kernels.RationalQuadratic(length, alpha=1.0, variance=wiggle**2)
    return line + bend + yearly + irregular


model = pk.Model(
    # Years: how fast the trend bends, how long a season keeps its shape, how long irregularities
    # last. ppm: how far each of them moves the concentration.
    trend=dist.LogNormal(np.log(50), 0.5),
    rise=dist.LogNormal(np.log(20), 0.5),
    drift=dist.LogNormal(np.log(100), 0.5),
    season=dist.LogNormal(np.log(3), 0.5),
    shape=dist.LogNormal(0, 0.5),
    length=dist.LogNormal(0, 0.5),
    wiggle=dist.LogNormal(np.log(0.5), 0.5),
    noise=dist.LogNormal(np.log(0.3), 0.5),
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


def main() -> None:
    quick = "--quick" in sys.argv
    frame = load(quick)
    train, test = frame[frame.year < HELD_OUT], frame[frame.year >= HELD_OUT]

    begin = time.perf_counter()
    method = pk.GPExact(draws=200)
    posterior = pk.fit(model, train, method=method, seed=1)
    print(f"\n{posterior.check()}\n")
    scales = {k: float(posterior.values[k].mean()) for k in posterior.values if k != "f"}
    for name, value in scales.items():
        print(f"  {name:<8} {value:8.2f}")

    low, middle, high = forecast(posterior, test)
    actual = test.co2.to_numpy()
    print(f"\nForecast from {HELD_OUT:.0f} on (ppm, 90 % intervals), every eighth point")
    for i in range(0, len(test), 8):
        mark = "" if low[i] <= actual[i] <= high[i] else "   outside"
        print(
            f"  {test.year.iloc[i]:8.2f} {middle[i]:7.1f}  [{low[i]:6.1f}, {high[i]:6.1f}]   "
            f"actual {actual[i]:6.1f}{mark}"
        )
    inside = np.mean((low <= actual) & (actual <= high))
    error = np.sqrt(np.mean((middle - actual) ** 2))
    score = float(np.mean(posterior.log_predictive(test).to_numpy()))
    print(f"  {inside:.0%} inside; error {error:.2f} ppm (rms); log density {score:.2f} a point")
    draw_picture(frame, test.year.to_numpy(), low, middle, high)
    print(f"wrote co2.png ({time.perf_counter() - begin:.0f} s in all)")


def forecast(posterior: pk.Posterior, new: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The 5 %, 50 % and 95 % quantiles of new observations."""
    predicted = posterior.predict(new).predictions["co2"]
    return tuple(predicted.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values)


def draw_picture(frame: pd.DataFrame, year: np.ndarray, low: Any, middle: Any, high: Any) -> None:
    """The data, and the forecast of the years held out."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    axes.plot(frame.year, frame.co2, ".", markersize=2, color="0.4", label="measured")
    axes.fill_between(year, low, high, alpha=0.4, label="90 % of the forecast")
    axes.plot(year, middle, linewidth=0.8, label="its median")
    axes.set(xlabel="year", ylabel="CO2 (ppm)")
    axes.legend()
    figure.savefig("co2.png", dpi=150)


if __name__ == "__main__":
    main()
