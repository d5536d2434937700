"""The automatic stop: how far from the family's optimum fits end, and after how many steps.

Ten targets, and three that were added after the rule was fixed; full-rank Gaussians. The optimum is
the best of all fits and of a long one (128 draws a step, tolerance 5e-4); gaps are differences of
ELBOs by 50,000 common draws. The oracle's steps are the fewest of 50, 200, 400, 800, ... with which
the same fit, cut there, is within .02 of it. Beside it the sample-average approximation (L-BFGS on
fixed draws) with as many seeds.

``python -m benchmarks.vi_stop [--seeds 20] [--only NAME ...]``
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import probkit as pk
from benchmarks import _common as c
from benchmarks._models import CASES
from probkit.inference.vi._scale_maps import scale_of

_CLOSE, _DRAWS = 0.02, 50_000
_BUDGETS = (50, 200, 400, 800, 1600, 3200, 6400, 12_800)


def _function(fn: Callable, **shapes: Any) -> pk.Target:
    return pk.Target.from_log_density(fn, {k: np.zeros(v) for k, v in shapes.items()})


def _banana() -> pk.Target:
    return _function(
        lambda z: -0.5 * z["x"][0] ** 2 - 0.5 * ((z["x"][1] - z["x"][0] ** 2) / 0.3) ** 2, x=2
    )


def _funnel() -> pk.Target:
    def fn(z: dict) -> Any:
        return -((z["v"] / 3) ** 2) / 2 - jnp.sum(z["x"] ** 2) * jnp.exp(-z["v"]) / 2 - 4.5 * z["v"]

    return _function(fn, v=(), x=9)


def _gaussian(spread: float, mixing: float) -> Callable[[], pk.Target]:
    def make() -> pk.Target:
        rng = np.random.default_rng(0)
        scales = np.logspace(0, spread, 10)
        mix = np.eye(10) + mixing * np.tril(rng.normal(size=(10, 10)), -1)
        root = jnp.asarray(np.linalg.inv(scales[:, None] * mix), jnp.float32)
        return _function(lambda z: -0.5 * jnp.sum((root @ (z["x"] - 1.0)) ** 2), x=10)

    return make


def _schools(reparam: str) -> Callable[[], pk.Target]:
    def make() -> pk.Target:
        case = CASES["schools"]()
        return case.model.bind(case.data, reparam=reparam)

    return make


def _scaled_regression() -> pk.Target:
    rng = np.random.default_rng(1)
    units = 10.0 ** np.array([-2, -1, 0, 1, 2, 3])
    X = rng.normal(size=(80, 6)) * units
    y = X @ (1 / units) + rng.normal(size=80)
    model = pk.Model(
        b=pk.rv(lambda s: pk.dist.Normal(0, s), dims="k"),
        sd=pk.dist.HalfNormal(2.0),
        y=pk.rv(lambda X, b, sd: pk.dist.Normal(X @ b, sd), dims="row"),
    )
    return model.bind({"X": X, "y": y, "s": 10.0 / units}, dims={"X": ("row", "k")})


def _cancer() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_breast_cancer

    data: Any = load_breast_cancer()
    X = (data.data - data.data.mean(0)) / data.data.std(0)
    return np.c_[np.ones(len(X)), X[:, :10]], data.target


def _logistic() -> pk.Target:
    X, y = _cancer()
    model = pk.Model(
        b=pk.rv(lambda: pk.dist.Normal(0, 2), dims="k"),
        y=pk.rv(lambda X, b: pk.dist.Bernoulli(logits=X @ b), dims="row"),
    )
    return model.bind({"X": X, "y": y}, dims={"X": ("row", "k")}, coords={"k": np.arange(11)})


def _robust() -> pk.Target:
    rng = np.random.default_rng(2)
    X = rng.normal(size=(60, 4))
    y = X @ np.array([1.0, -1, 0.5, 0]) + rng.standard_t(2, size=60)
    model = pk.Model(
        b=pk.rv(lambda: pk.dist.Normal(0, 2), dims="k"),
        sd=pk.dist.HalfNormal(2.0),
        nu=pk.dist.Gamma(2.0, 0.1),
        y=pk.rv(lambda X, b, sd, nu: pk.dist.StudentT(nu, X @ b, sd), dims="row"),
    )
    return model.bind({"X": X, "y": y}, dims={"X": ("row", "k")}, coords={"k": np.arange(4)})


def _counts() -> pk.Target:
    rng = np.random.default_rng(3)
    y = rng.poisson(np.exp(0.5 + 0.7 * rng.normal(size=15)))
    model = pk.Model(
        mu=pk.dist.Normal(0, 2),
        sd=pk.dist.HalfNormal(1.0),
        a=pk.rv(lambda mu, sd: pk.dist.Normal(mu, sd), dims="row"),
        y=pk.rv(lambda a: pk.dist.Poisson(jnp.exp(a)), dims="row"),
    )
    return model.bind({"y": y})


def _lasso() -> pk.Target:
    """Linear regression on the diabetes data with Laplace priors: kinks in the density."""
    from sklearn.datasets import load_diabetes

    data: Any = load_diabetes()
    X = data.data / data.data.std(0)
    y = (data.target - data.target.mean()) / data.target.std()
    model = pk.Model(
        width=pk.dist.HalfNormal(1.0),
        b=pk.rv(lambda width: pk.dist.Laplace(0, width), dims="k"),
        sd=pk.dist.HalfNormal(1.0),
        y=pk.rv(lambda X, b, sd: pk.dist.Normal(X @ b, sd), dims="row"),
    )
    return model.bind({"X": X, "y": y}, dims={"X": ("row", "k")}, coords={"k": np.arange(10)})


def _items() -> pk.Target:
    """Item responses: 12 abilities, 8 difficulties and discriminations, 96 answers."""
    rng = np.random.default_rng(4)
    person, item = np.repeat(np.arange(12), 8), np.tile(np.arange(8), 12)
    logits = 1.5 * (rng.normal(size=12)[person] - rng.normal(size=8)[item])
    answer = (rng.random(96) < 1 / (1 + np.exp(-logits))).astype(int)
    model = pk.Model(
        ability=pk.rv(lambda: pk.dist.Normal(0, 1), dims="person"),
        difficulty=pk.rv(lambda: pk.dist.Normal(0, 2), dims="item"),
        slope=pk.rv(lambda: pk.dist.LogNormal(0, 0.5), dims="item"),
        y=pk.rv(
            lambda ability, difficulty, slope, who, what: pk.dist.Bernoulli(
                logits=slope[what] * (ability[who] - difficulty[what])
            ),
            dims="row",
        ),
    )
    data = {"y": answer, "who": person, "what": item}
    return model.bind(data, coords={"person": np.arange(12), "item": np.arange(8)})


def _heavy_tails() -> pk.Target:
    rng = np.random.default_rng(5)
    root = jnp.asarray(np.eye(6) + 0.5 * np.tril(rng.normal(size=(6, 6)), -1), jnp.float32)
    return _function(lambda z: -0.5 * 9.0 * jnp.log1p(jnp.sum((root @ z["x"]) ** 2) / 3.0), x=6)


TARGETS: dict[str, Callable[[], pk.Target]] = {
    "banana": _banana,
    "funnel": _funnel,
    "schools": _schools("auto"),
    "schools, centred": _schools("off"),
    "Gaussian, sds 1 to 1e4": _gaussian(4.0, 0.5),
    "Gaussian, correlated": _gaussian(0.0, 2.0),
    "regression, scales 1e5": _scaled_regression,
    "logistic, cancer data": _logistic,
    "robust regression": _robust,
    "counts, random effects": _counts,
    # Not seen when the rule was chosen.
    "lasso, diabetes data": _lasso,
    "item responses": _items,
    "Student-t, 3 df": _heavy_tails,
}


def measure(target: pk.Target, seeds: int) -> dict[str, Any]:
    """Gaps and steps of every seed, and the oracle's steps of the first three."""
    fits = {}

    def fit(seed: int, **more: Any) -> Any:
        method = pk.VI(family="fullrank", draws=10, **more)
        return pk.run(target, method, seed)

    fits["long"] = fit(1000, particles=128, tolerance=5e-4)
    for seed in range(seeds):
        fits[seed] = fit(seed)
        fits["saa", seed] = fit(seed, optimizer="saa")
    noise = jax.random.normal(jax.random.key(0), (_DRAWS, target.program.flat.size))

    @jax.jit
    def elbo(params: Any, lower: Any, arrays: dict) -> Any:
        frame, inner = params["frame"], params["family"]
        root = frame["scale"] @ lower
        z = frame["centre"] + frame["scale"] @ inner["loc"] + noise @ root.T
        log_p = jax.vmap(pk.Target(target.program, arrays).flat_log_density)(z)
        return jnp.mean(log_p) + jnp.sum(jnp.log(jnp.diag(root)))

    def value(run: Any, scale: str = "linear") -> float:
        inner = run.output.params["family"]
        lower = jnp.tril(inner["lower"], -1) + jnp.diag(scale_of(scale, inner["scale"]))
        return float(elbo(run.output.params, lower, target.arrays))

    # Fixed draws have log scales.
    values = {k: value(run, "exp" if isinstance(k, tuple) else "linear") for k, run in fits.items()}
    best = max(values.values())
    oracle = []
    for seed in range(min(3, seeds)):
        cut = [b for b in _BUDGETS if best - value(fit(seed, max_steps=b)) <= _CLOSE]
        oracle.append(cut[0] if cut else _BUDGETS[-1])
    return {
        "gaps": [best - values[s] for s in range(seeds)],
        "steps": [fits[s].steps * 50 for s in range(seeds)],
        "statuses": [fits[s].status.name for s in range(seeds)],
        "oracle": oracle,
        "seconds": [fits[s].seconds["run"] for s in range(seeds)],
        "saa_gaps": [best - values["saa", s] for s in range(seeds)],
        "saa_statuses": [fits["saa", s].status.name for s in range(seeds)],
        "saa_seconds": [fits["saa", s].seconds["run"] for s in range(seeds)],
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(TARGETS))
    args = parser.parse_args()
    out, close, total, in_time = {}, 0, 0, 0
    for name in args.only:
        found = measure(TARGETS[name](), args.seeds)
        out[name] = found
        gaps, steps = np.array(found["gaps"]), np.array(found["steps"])
        limit = 3 * c.median(found["oracle"]) + 1500
        near, soon = int(np.sum(gaps <= _CLOSE)), int(np.sum(steps <= limit))
        fixed = int(np.sum(np.array(found["saa_gaps"]) <= _CLOSE))
        unended = sum(s != "OK" for s in found["saa_statuses"])
        close, in_time, total = close + near, in_time + soon, total + len(gaps)
        print(
            f"  {name:<24} near {near}, in time {soon} of {len(gaps)}; "
            f"gap median {np.median(gaps):.4f}, largest {gaps.max():.4f}; "
            f"steps median {np.median(steps):.0f}, most {steps.max()}; oracle {found['oracle']}; "
            f"{np.median(found['seconds']):.2f} s; fixed draws: near {fixed}, "
            f"largest gap {max(found['saa_gaps']):.4f}, not ended {unended}, "
            f"{np.median(found['saa_seconds']):.2f} s",
            flush=True,
        )
    c.line("share of fits within .02 nat", close / total, 0.95, at_least=True)
    c.line("share of fits within 3x the oracle's steps + 1,500", in_time / total, 1.0, True)
    c.save("vi_stop", {"targets": out, "close": close / total, "in_time": in_time / total})


if __name__ == "__main__":
    main()
