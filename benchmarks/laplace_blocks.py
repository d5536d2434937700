"""Laplace's approximation of a hierarchy by blocks: cost against the number of groups.

Poisson regression with an intercept and a slope for each group around common means, of known spread
(the log density is concave: there is one mode); five rows a group, in double precision. Processor
seconds of a second fit (no compilation) over its Newton steps, and the log evidence against the
dense Hessian's where that is affordable.

``python -m benchmarks.laplace_blocks [--groups 100 400 1600 6400]``
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

_DENSE = 400


def hierarchy(groups: int) -> pk.Target:
    """The model with data of so many groups."""
    rng = np.random.default_rng(0)
    group, x = np.repeat(np.arange(groups), 5), rng.normal(size=5 * groups)
    y = rng.poisson(np.exp(0.5 + 0.3 * rng.normal(size=groups)[group] + 0.4 * x))
    model = pk.Model(
        mu=pk.dist.Normal(0, 1),
        slope=pk.dist.Normal(0, 1),
        a=pk.rv(lambda mu: pk.dist.Normal(mu, 0.3), dims="group"),
        b=pk.rv(lambda slope: pk.dist.Normal(slope, 0.5), dims="group"),
        y=pk.rv(
            lambda a, b, group_of, x: pk.dist.Poisson(jnp.exp(a[group_of] + b[group_of] * x)),
            dims="row",
        ),
    )
    data = {"y": y, "group_of": group, "x": x}
    return model.bind(data, coords={"group": np.arange(groups)}, reparam="off")


def measure(target: pk.Target, structure: str) -> dict[str, Any]:
    """A second fit: seconds, steps, log evidence."""
    method = pk.Laplace(structure=structure, starts=1)
    pk.run(target, method, 0)
    begin = time.process_time()
    done = pk.run(target, method, 0)
    seconds = time.process_time() - begin
    stats = done.output.stats  # type: ignore[union-attr]
    evidence = done.output.log_evidence  # type: ignore[union-attr]
    return {
        "seconds": seconds,
        "steps": stats["steps"],
        "evidence": evidence,
        "status": done.status.name,
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[100, 400, 1600, 6400])
    args = parser.parse_args()
    out: dict[str, Any] = {}
    with jax.enable_x64(True):
        for groups in args.groups:
            target = hierarchy(groups)
            found = {"blocks": measure(target, "blocks")}
            if groups <= _DENSE:
                found["dense"] = measure(target, "dense")
            for name, one in found.items():
                each = 1e3 * one["seconds"] / one["steps"]
                print(
                    f"  {groups:>6} groups, {name:<6} {one['seconds']:8.3f} s, {one['steps']} "
                    f"steps, {each:.3f} ms a step, log evidence {one['evidence']:.5f} "
                    f"{one['status']}",
                    flush=True,
                )
            out[str(groups)] = found
    few, many = (out[str(g)]["blocks"] for g in (min(args.groups), max(args.groups)))
    per_step = [one["seconds"] / one["steps"] for one in (few, many)]
    ratio = per_step[1] / per_step[0] / (max(args.groups) / min(args.groups))
    c.line("cost of a step over that of linear growth", ratio, 1.0)
    gaps = [
        abs(f["blocks"]["evidence"] - f["dense"]["evidence"]) for f in out.values() if "dense" in f
    ]
    if gaps:
        c.line("log evidence against the dense Hessian's, largest gap", max(gaps), 1e-3)
    c.save("laplace_blocks", out)


if __name__ == "__main__":
    main()
