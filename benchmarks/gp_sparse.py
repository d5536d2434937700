"""Sparse Gaussian processes: a step beside GPJax's, the bound reached, and the exact process.

The data are scikit-learn's Friedman function (`make_friedman1`: five inputs, noise), outcomes
standardised; the kernel is a squared exponential with a length scale a column, the noise normal.

1. Beside GPJax's `fit_natgrads` (whitened q, natural gradients of step 0.1, Adam on everything
   else, inducing inputs included): the same rows, inducing points to start from, starting values,
   batch size and number of steps, in one process, one after the other. A step's time is the CPU
   time of the steps over their number, compilation aside (our windows' judging counts). The bounds
   are both taken on all rows: GPJax's by its own `elbo` after the steps, ours after the fit's end
   on all rows, which GPJax does not have.
2. Beside the exact process (`GPExact`), on 1,000 rows at the most: test NLPD and RMSE.
3. All rows in each step beside mini-batches.

``python -m benchmarks.gp_sparse [--rows 5000] [--points 100] [--part step|exact|batch]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import probkit as pk  # noqa: E402
from benchmarks import _common as c  # noqa: E402
from probkit.core import Callback  # noqa: E402
from probkit.inference.gaussian._posterior import _predict  # noqa: E402
from probkit.inference.gaussian._sparse_posterior import predict_rows  # noqa: E402

COLUMNS, BATCH, RATE = 5, 256, 0.02
DIMS = {"x": ("row", "column"), "y": ("row",)}


def data(rows: int, seed: int, tests: int = 2000) -> tuple[np.ndarray, ...]:
    """Inputs and standardised outcomes: training, then test."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(rows + tests, n_features=COLUMNS, noise=1.0, random_state=seed)
    y = (y - y[:rows].mean()) / y[:rows].std()
    return x[:rows], y[:rows], x[rows:], y[rows:]


def model() -> pk.Model:
    """The regression: hyperparameters in logs, priors wide."""
    return pk.Model(
        log_sd=pk.dist.Normal(0.0, 3.0),
        log_length=pk.rv(lambda: pk.dist.Normal(0.0, 3.0), dims="column"),
        log_noise=pk.dist.Normal(0.0, 3.0),
        f=pk.gp(
            lambda log_sd, log_length: pk.kernels.RBF(jnp.exp(log_length), jnp.exp(2 * log_sd)),
            at="x",
        ),
        y=pk.rv(lambda f, log_noise: pk.dist.Normal(f, jnp.exp(log_noise)), dims="row"),
    )


MODEL = model()


def target(x: np.ndarray, y: np.ndarray) -> pk.Target:
    """The model bound to rows."""
    return MODEL.bind({"x": x, "y": y}, dims=DIMS, coords={"column": np.arange(COLUMNS)})


def ours(bound: pk.Target, z: np.ndarray, steps: int) -> dict[str, float]:
    """A fit of so many steps: CPU seconds, compilation aside, and the bound on all rows."""
    method = pk.SVGP(
        inducing=z,
        batch_size=BATCH,
        draws=1,
        move=True,
        objective="ml2",
        rate=RATE,
        max_steps=steps,
        screen=1,
        tolerance=1e-9,
    )
    pk.run(bound, method)  # (compiles)
    clock = Clock()
    done = pk.run(bound, method, callbacks=[clock])
    stats: Any = done.output
    return {"cpu": clock.seconds, "steps": float(done.steps), "elbo": float(stats.stats["elbo"])}


class Clock(Callback):
    """CPU seconds of a run's steps, without its beginning and its end."""

    seconds = 0.0

    def start(self, total: int, warmup: int, t: int) -> None:
        self.begin = time.process_time()

    def stop(self) -> None:
        self.seconds = time.process_time() - self.begin


def peers(x: np.ndarray, y: np.ndarray, z: np.ndarray, steps: int) -> dict[str, float]:
    """The same of GPJax. Its scan is compiled in a first call, as ours is."""
    import gpjax
    import optax

    made: Any = gpjax  # (its annotations ask for wrappers that its constructors do not need)
    with jax.enable_x64(True):
        rows = made.Dataset(X=jnp.asarray(x), y=jnp.asarray(y)[:, None])
        prior = made.gps.Prior(
            mean_function=made.mean_functions.Zero(),
            kernel=made.kernels.RBF(lengthscale=jnp.ones(COLUMNS), variance=1.0),
        )
        family = made.variational_families.WhitenedVariationalGaussian(
            model=prior * made.likelihoods.Gaussian(obs_stddev=1.0), inducing_inputs=jnp.asarray(z)
        )

        @jax.jit
        def fit(rows: Any) -> Any:
            found, _ = made.fit_natgrads(
                model=family,
                objective=lambda q, d: -made.objectives.elbo(q, d),
                train_data=rows,
                optim=optax.adam(RATE),
                natgrad_lr=0.1,
                num_iters=steps,
                batch_size=BATCH,
                verbose=False,
                safe=False,
            )
            return made.objectives.elbo(found, rows)

        jax.block_until_ready(fit(rows))
        clock = time.process_time()
        elbo = jax.block_until_ready(fit(rows))
        took = time.process_time() - clock
    return {"cpu": took, "steps": float(steps), "elbo": float(elbo)}


def by_step(rows: int, points: int, steps: int) -> dict[str, Any]:
    """Part 1."""
    x, y, _, _ = data(rows, 0)
    z = x[np.random.default_rng(0).permutation(rows)[:points]]
    bound = target(x, y)
    out: dict[str, Any] = {}
    makers = {
        "ours": lambda n: ours(bound, z, n),
        "gpjax": lambda n: peers(x, y, z, n),
    }
    for name, make in makers.items():
        last = make(4 * steps)
        each = last["cpu"] / last["steps"]
        out[name] = {"step": each, "elbo": last["elbo"] / rows, "steps": last["steps"]}
        c.line(f"{name}: CPU milliseconds a step", 1e3 * each)
        c.line(f"{name}: ELBO per row after {int(last['steps'])} steps", last["elbo"] / rows)
    c.line("CPU time of a step, ours / GPJax", out["ours"]["step"] / out["gpjax"]["step"], 1.0)
    return out


def scored(bound: pk.Target, method: Any, xt: np.ndarray, yt: np.ndarray) -> dict[str, float]:
    """A fit's CPU seconds (compilation included), bound, and test NLPD and RMSE."""
    clock = time.process_time()
    found = pk.fit(bound, method=method, seed=1, progress=False)
    took = time.process_time() - clock
    assert found.approximation is not None
    stats = found.approximation.stats
    ahead = MODEL.bind({"x": xt, "y": yt}, dims=DIMS, coords={"column": np.arange(COLUMNS)})
    rows = predict_rows if "u_mean" in stats else _predict
    told = rows(bound, found.approximation, ahead)
    density, mean = told["log_density"], told["mean"]
    return {
        "cpu": took,
        "steps": float(stats["steps"]),
        "bound": float(stats["log_evidence"]) / len(bound.labels.observed["y"]),
        "nlpd": -float(np.mean(density)),
        "rmse": float(np.sqrt(np.mean((mean - yt) ** 2))),
        "ok": float(found.check().ok),
    }


def against_exact(rows: int, points: int) -> dict[str, Any]:
    """Part 2."""
    x, y, xt, yt = data(rows, 1)
    bound = target(x, y)
    out = {
        "exact": scored(bound, pk.GPExact(starts=1, draws=2), xt, yt),
        "sparse": scored(bound, pk.SVGP(inducing=points), xt, yt),
        "batches": scored(bound, pk.SVGP(inducing=points, batch_size=BATCH), xt, yt),
    }
    for name, found in out.items():
        for what, value in found.items():
            c.line(f"{rows} rows, {name}: {what}", value)
    return out


def by_batch(rows: int, points: int) -> dict[str, Any]:
    """Part 3."""
    x, y, xt, yt = data(rows, 2)
    bound, out = target(x, y), {}
    for name, size in (("all rows", None), (f"batches of {BATCH}", BATCH)):
        out[name] = scored(bound, pk.SVGP(inducing=points, batch_size=size), xt, yt)
        for what, value in out[name].items():
            c.line(f"{rows} rows, {name}: {what}", value)
    return out


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--part", choices=("step", "exact", "batch"), default=None)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    if args.part in (None, "step"):
        found["step"] = by_step(args.rows, args.points, args.steps)
    if args.part in (None, "exact"):
        found["exact"] = against_exact(min(args.rows, 1000), args.points)
    if args.part in (None, "batch"):
        found["batch"] = by_batch(args.rows, args.points)
    c.save("gp_sparse" if args.part is None else f"gp_sparse_{args.part}", found)


if __name__ == "__main__":
    main()
