"""Draws of an exact process at many new rows: CPU seconds beside scikit-learn's ``sample_y``.

A regression on 60 rows, 500 joint draws of the function (and of outcomes) at new rows, one thread.
Both sample one normal of all new rows, up to 1,024 of them: beyond, this package's are in blocks,
independent of one another given the function at the old rows. The first call compiles and is told
apart.

``taskset -c 0 python -m benchmarks.gp_predict [--rows 500 1000 2000]``
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

import probkit as pk  # noqa: E402
from benchmarks import _common as c  # noqa: E402

LIMIT = 1.0


def fitted(x: np.ndarray, y: np.ndarray) -> tuple[pk.Posterior, Any]:
    """The same regression by this package and, at its optimum, by scikit-learn."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    model = pk.Model(
        sd=pk.dist.LogNormal(0.0, 1.0),
        length=pk.dist.LogNormal(0.0, 1.0),
        noise=pk.dist.LogNormal(-1.0, 1.0),
        f=pk.gp(lambda sd, length: sd**2 * pk.kernels.RBF(length), at="x"),
        y=pk.rv(lambda f, noise: pk.dist.Normal(f, noise), dims="row"),
    )
    ours = pk.fit(model, {"x": x, "y": y}, method=pk.GPExact(), progress=False)
    assert ours.approximation is not None
    sd, length, noise = np.exp(ours.approximation.stats["theta"])
    options: Any = {"alpha": noise**2, "optimizer": None}
    peer = GaussianProcessRegressor(ConstantKernel(sd**2) * RBF(length), **options)
    return ours, peer.fit(x[:, None], y)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[500, 1000, 2000])
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.uniform(0.0, 10.0, size=60)
    ours, peer = fitted(x, np.sin(2.0 * x) + 0.2 * rng.normal(size=60))
    took: dict[str, dict[str, float]] = {}
    for rows in args.rows:
        new = np.linspace(0.0, 10.0, rows)
        clock = time.process_time()
        ours.predict({"x": new})
        first = time.process_time() - clock
        clock = time.process_time()
        f = ours.predict({"x": new + 1e-3})["predictions"]["f"].values[0]
        again = time.process_time() - clock
        clock = time.process_time()
        theirs = peer.sample_y(new[:, None] + 1e-3, 500, random_state=0)
        other = time.process_time() - clock
        took[str(rows)] = {"first": first, "again": again, "sklearn": other}
        gap = float(np.max(np.abs(f.mean(0) - theirs.mean(1)) / theirs.std(1)))
        c.line(f"{rows} rows: CPU s, first call", first)
        c.line(f"{rows} rows: CPU s, again", again)
        c.line(f"{rows} rows: CPU s, scikit-learn", other)
        c.line(f"{rows} rows: means apart, in sds of a draw (0.06 a standard error)", gap)
        c.line(f"{rows} rows: ratio to scikit-learn, again", again / other, LIMIT)
    c.save("gp_predict", took)


if __name__ == "__main__":
    main()
