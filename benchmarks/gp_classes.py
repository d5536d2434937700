"""Several processes in one likelihood: classes by softmax, and a noise that varies.

Classes: log loss and share of right labels by five folds of iris and wine (scikit-learn's KFold,
shuffled with seed 0; inputs standardised by the training rows). One isotropic Matern-5/2 process a
class with a common scale and length, engines for several processes; against EP for one class
against the rest, scaled to add up to one (`pk.estimators.GPClassifier`). Probabilities are
integrated by quadrature, not drawn.

Noise: the mean negative log density of 200 new rows given 100, over data sets of a sine whose noise
grows tenfold from left to right; against one process with a noise that does not vary.

``python -m benchmarks.gp_classes [--sets iris wine noise] [--engines laplace cvi ep hybrid]
[--pieces FOLDER --seconds 300]``
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import probkit as pk
from benchmarks import _common as c
from probkit.inference.gaussian._posterior import log_predictive
from probkit.inference.gaussian._several_posterior import predict_rows

METHODS: dict[str, Any] = {
    "laplace": pk.GPLaplace,
    "cvi": pk.CVI,
    "ep": pk.EP,
    "hybrid": pk.HybridEP,
}
DATA_SETS = 5


def classes(columns: int) -> pk.Model:
    """The softmax classifier of three classes."""
    at = [f"x{i}" for i in range(columns)]
    process = lambda: pk.gp(lambda sd, length: sd**2 * pk.kernels.Matern52(length), at=at)  # noqa: E731
    return pk.Model(
        sd=pk.dist.LogNormal(0.5, 1.0),
        length=pk.dist.LogNormal(1.0, 1.0),
        f0=process(),
        f1=process(),
        f2=process(),
        y=pk.rv(
            lambda f0, f1, f2: pk.dist.CategoricalLogits(jnp.stack([f0, f1, f2], -1)), dims="row"
        ),
    )


def folds(name: str) -> list[tuple[np.ndarray, ...]]:
    """Training and test inputs and labels of five folds."""
    from sklearn import datasets
    from sklearn.model_selection import KFold

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    out = []
    for old, new in KFold(5, shuffle=True, random_state=0).split(x):
        mean, unit = x[old].mean(0), x[old].std(0)
        out.append(((x[old] - mean) / unit, y[old], (x[new] - mean) / unit, y[new]))
    return out


def told(clock: float, posterior: pk.Posterior) -> tuple[dict[str, Any], Any]:
    """Figures of a fit, and what the engine returned."""
    found = posterior.approximation
    assert found is not None
    figures = {
        "cpu": time.process_time() - clock,
        "compile": posterior.seconds["compile"],
        "log_evidence": found.stats["log_evidence"],
        "theta": found.stats["theta"].tolist(),
        "status": posterior.status.name,
    }
    return figures, found


def softmax(bound: pk.Model, method: Any, fold: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """Fit one fold and score the rows left out."""
    old, y, new, labels = fold
    clock = time.process_time()
    named = lambda x: {f"x{i}": x[:, i] for i in range(x.shape[1])}  # noqa: E731
    target = bound.bind({**named(old), "y": y})
    posterior = pk.fit(target, method=method, seed=0, progress=False)
    figures, found = told(clock, posterior)
    logs = []
    for k in range(3):
        other = bound.bind({**named(new), "y": np.full(len(new), k)})
        logs.append(predict_rows(target, found, other)["log_density"])
    return {**figures, **score(np.stack(logs, -1), labels)}


def rest(fold: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """One class against the rest by EP."""
    old, y, new, labels = fold
    clock = time.process_time()
    found = pk.estimators.GPClassifier("matern52", inference="ep").fit(old, y)
    logs = np.log(found.predict_proba(new))
    cpu = time.process_time() - clock
    return {"cpu": cpu, "compile": np.inf, "status": "OK", **score(logs, labels)}


def score(logs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    p = np.exp(logs)
    own = logs[np.arange(len(labels)), labels]
    return {
        "loss": -float(np.mean(own)),
        "right": float(np.mean(p.argmax(1) == labels)),
        "total": float(np.max(np.abs(p.sum(1) - 1.0))),
    }


def varying(constant: bool) -> pk.Model:
    """A mean, and a log sd of its own (or one number)."""
    length, level = pk.dist.LogNormal(0.0, 1.0), pk.dist.Normal(-1.0, 1.0)
    f = pk.gp(lambda length, sd: sd**2 * pk.kernels.RBF(length), at="x")
    if constant:
        y = pk.rv(lambda f, level: pk.dist.Normal(f, jnp.exp(level)), dims="row")
        return pk.Model(length=length, sd=pk.dist.LogNormal(0.0, 1.0), level=level, f=f, y=y)
    return pk.Model(
        length=length,
        sd=pk.dist.LogNormal(0.0, 1.0),
        level=level,
        wide=pk.dist.LogNormal(0.5, 0.5),
        f=f,
        g=pk.gp(
            lambda wide: pk.kernels.RBF(wide, 1.0),
            at="x",
            mean=lambda level: level,
        ),
        y=pk.rv(lambda f, g: pk.dist.Normal(f, jnp.exp(g)), dims="row"),
    )


def noisy(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """100 rows to fit and 200 others."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, 300)
    y = np.sin(2 * x) + 0.1 * 10 ** ((x + 3) / 6) * rng.normal(size=300)
    return {"x": x[:100], "y": y[:100]}, {"x": x[100:], "y": y[100:]}


def noise(bound: pk.Model, method: Any, seed: int) -> dict[str, Any]:
    """Fit one data set and score new rows."""
    old, new = noisy(seed)
    clock = time.process_time()
    target = bound.bind(old)
    posterior = pk.fit(target, method=method, seed=0, progress=False)
    figures, found = told(clock, posterior)
    other = bound.bind(new)
    if isinstance(method, pk.GPExact):
        logs = log_predictive(target, found, other)
    else:
        logs = predict_rows(target, found, other)["log_density"]
    return {**figures, "loss": -float(np.mean(logs))}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="*", default=["iris", "wine", "noise"])
    parser.add_argument("--engines", nargs="*", default=list(METHODS))
    c.Pieces.options(parser)
    args = parser.parse_args()
    pieces, figures = c.Pieces.of(args), {}
    for name in args.sets:
        runs: dict[str, Any] = {}
        if name == "noise":
            for engine in args.engines:
                method, bound = METHODS[engine](starts=1), varying(False)
                runs[engine] = [
                    lambda m=method, b=bound, s=s: noise(b, m, s) for s in range(DATA_SETS)
                ]
            constant = varying(True)
            runs["exact, one noise"] = [
                lambda b=constant, s=s: noise(b, pk.GPExact(starts=1), s) for s in range(DATA_SETS)
            ]
        else:
            parts = folds(name)
            bound = classes(parts[0][0].shape[1])
            for engine in args.engines:
                method = METHODS[engine](starts=1)
                runs[engine] = [lambda b=bound, m=method, f=f: softmax(b, m, f) for f in parts]
            runs["ep, one against the rest"] = [lambda f=f: rest(f) for f in parts]
        for engine, calls in runs.items():
            rows = [pieces.get(f"{name}-{engine}-{i}", call) for i, call in enumerate(calls)]
            means = {k: float(np.mean([r[k] for r in rows])) for k in ("loss", "cpu")}
            c.line(f"{name}, {engine}: log loss", means["loss"])
            if "right" in rows[0]:
                c.line(f"{name}, {engine}: share right", float(np.mean([r["right"] for r in rows])))
            c.line(f"{name}, {engine}: CPU s a fit", means["cpu"])
            bad = sum(r["status"] != "OK" for r in rows)
            c.line(f"{name}, {engine}: fits that did not converge", bad)
            figures[f"{name}-{engine}"] = rows
    c.save("gp_classes", {"jax": jax.__version__, "rows": figures})


if __name__ == "__main__":
    main()
