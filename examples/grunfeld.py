"""How firms' investment follows their value: a hierarchical regression on Grunfeld's panel.

The data come with statsmodels: yearly investment, market value and capital stock of eleven American
firms, 1935 to 1954. Every firm has an intercept and a slope of its own, drawn from a population of
firms, so that firms with little information borrow from the others. The last year is held out and
predicted.

Run it with ``make demo``, or ``python examples/grunfeld.py [--quick]``. It shows progress, prints
the verdict and the summary, and writes ``demo.nc`` (for ArviZ) and ``demo.html`` (a report).
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd
import statsmodels.api as sm

import probkit as pk
from probkit import dist

HELD_OUT = 1954

model = pk.Model(
    # The population of firms: log investment in an average year, and its elasticity to value.
    level=dist.Normal(4, 2),
    elasticity=dist.Normal(1, 1),
    level_sd=dist.HalfNormal(2),
    elasticity_sd=dist.HalfNormal(0.5),
    # Each firm.
    a=pk.rv(lambda level, level_sd: dist.Normal(level, level_sd), dims="firm"),
    b=pk.rv(lambda elasticity, elasticity_sd: dist.Normal(elasticity, elasticity_sd), dims="firm"),
    capital_effect=dist.Normal(0, 0.5),
    sigma=dist.HalfNormal(0.5),
    # Each row of the data: `firm` is a categorical column, and so an index into `a` and `b`.
    mean=pk.deterministic(
        lambda a, b, capital_effect, firm, log_value, log_capital: (
            a[firm] + b[firm] * log_value + capital_effect * log_capital
        ),
        dims="row",
    ),
    log_invest=pk.rv(lambda mean, sigma: dist.StudentT(5, mean, sigma), dims="row"),
)


def load() -> pd.DataFrame:
    """The panel with logs; value and capital against each firm's own average before the last year.

    Centred by firm, a firm's intercept is its investment in an average year and hardly depends on
    its slope, which is what samplers like.
    """
    frame = pd.DataFrame(sm.datasets.grunfeld.load_pandas().data)
    frame["log_invest"] = np.log(frame["invest"])
    for name in ("value", "capital"):
        frame[f"log_{name}"] = np.log(frame[name])
        early = frame.query("year < @HELD_OUT")
        frame[f"log_{name}"] -= frame.firm.map(early.groupby("firm")[f"log_{name}"].mean())
    return frame


def main() -> None:
    quick = "--quick" in sys.argv
    frame = load()
    train, test = frame[frame.year < HELD_OUT], frame[frame.year == HELD_OUT]
    print(model, end="\n\n")

    begin = time.perf_counter()
    method = pk.NUTS(draws=250, warmup=250) if quick else pk.NUTS(target_accept=0.9)
    posterior = pk.fit(model, train, method=method, seed=1, progress=True)
    print(f"\n{posterior.check(loo=True)}\n")
    parameters = [
        "level",
        "elasticity",
        "level_sd",
        "elasticity_sd",
        "capital_effect",
        "sigma",
        "b",
    ]
    print(posterior.summary(parameters).round(2).to_string(), end="\n\n")

    predicted = posterior.predict(test).predictions["log_invest"]
    low, middle, high = np.exp(predicted.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values)
    actual = test.invest.to_numpy()
    print(f"Investment in {HELD_OUT}, held out (million dollars; 90 % intervals)")
    for firm, *figures in zip(test.firm, low, middle, high, actual, strict=True):
        lo, mid, hi, seen = figures
        mark = "" if lo <= seen <= hi else "   outside"
        print(f"  {firm:<18} {mid:8.1f}  [{lo:7.1f}, {hi:8.1f}]   actual {seen:8.1f}{mark}")
    inside = np.mean((low <= actual) & (actual <= high))
    score = float(np.sum(posterior.log_predictive(test).to_numpy()))
    print(f"  {inside:.0%} inside; log predictive density of the year {score:.2f}\n")

    posterior.save("demo.nc")
    posterior.report("demo.html", title="Grunfeld's investment panel")
    print(f"wrote demo.nc and demo.html ({time.perf_counter() - begin:.0f} s in all)")


if __name__ == "__main__":
    main()
