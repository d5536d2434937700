r"""Real fits on targets whose moments are known: are the wrong ones flagged, and only they?

Fifty targets in 2 and 5 dimensions, ``z = A x`` with a random matrix A and independent entries x of
one kind a target, all with known means and variances:

    normal;    log gamma of shape 0.5 to 6;    Student t of 4 to 12 degrees of freedom;
    bent: ``x_1`` of a normal pair moved by ``b (x_0^2 - 1)``, b of 0.1 to 0.8

Each is fitted by `pk.VI` with a mean-field Gaussian, a full-rank one or the default flow, in turn.
A fit is wrong if a mean is off by more than 0.1 sd or an sd by a factor outside [0.8, 1.25] (by
20,000 draws of the fit against the truth); it is flagged if a check of `posterior.check()` fails.

``python -m benchmarks.vi_fits [--targets 50]``
"""

from __future__ import annotations

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from scipy.special import polygamma

import probkit as pk
from benchmarks import _common as c

KINDS = ("normal", "log gamma", "Student t", "bent")
FAMILIES = ("meanfield", "fullrank", "flow")
SIZES = (2, 5)


def log_density(z: Any, data: Any) -> Any:
    """Of ``z = A x``; the kind is a number in the data, so that one program serves all."""
    x = data["white"] @ z["x"]
    a, kind = data["number"], data["kind"]
    moved = x.at[1].add(-a * (x[0] ** 2 - 1.0))
    bent = -0.5 * jnp.sum(moved**2)
    gamma = jnp.sum(a * x - jnp.exp(x) - gammaln(a))
    heavy = jnp.sum(-0.5 * (a + 1.0) * jnp.log1p(x**2 / a))
    found = jnp.stack([-0.5 * jnp.sum(x**2), gamma, heavy, bent])
    return found[kind]


def case(rng: np.random.Generator, kind: int, size: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Data of the density, and the true mean and sd of each coordinate."""
    mix = np.eye(size) + rng.uniform(0.0, 0.7) * rng.normal(size=(size, size)) / np.sqrt(size)
    mean, variance = np.zeros(size), np.ones(size)
    number = 1.0
    if kind == 1:
        number = float(np.exp(rng.uniform(np.log(0.5), np.log(6.0))))
        mean, variance = polygamma(0, number) * np.ones(size), polygamma(1, number) * np.ones(size)
    elif kind == 2:
        number = float(rng.uniform(4.0, 12.0))
        variance = np.full(size, number / (number - 2.0))
    elif kind == 3:
        number = float(rng.uniform(0.1, 0.8))
        variance[1] = 1.0 + 2.0 * number**2
    data = {
        "white": np.linalg.inv(mix).astype(np.float32),
        "number": np.float32(number),
        "kind": np.int32(kind),
    }
    return data, mix @ mean, np.sqrt(np.diag(mix @ np.diag(variance) @ mix.T))


def measure(targets: int) -> list[dict[str, Any]]:
    """One row a target."""
    rng, out, programs = np.random.default_rng(11), [], {}
    for number in range(targets):
        kind, family = number % len(KINDS), FAMILIES[(number // 4) % len(FAMILIES)]
        size = SIZES[(number // 12) % len(SIZES)]
        data, mean, sd = case(rng, kind, size)
        fresh = pk.Target.from_log_density(log_density, {"x": np.zeros(size, np.float32)}, data)
        program = programs.setdefault(size, fresh.program)
        target = pk.Target(program, fresh.arrays, fresh.labels)
        posterior = pk.fit(target, method=pk.VI(family=family), seed=number, progress=False)
        verdict = posterior.check()
        weights: Any = posterior.weights
        points = np.asarray(weights.points, float)
        shift = np.abs(points.mean(axis=0) - mean) / sd
        ratio = points.std(axis=0) / sd
        wrong = bool(np.any(shift > 0.1) or np.any((ratio < 0.8) | (ratio > 1.25)))
        failed = [check.name for check in verdict.failed]
        row = {
            "kind": KINDS[kind],
            "family": family,
            "dims": size,
            "number": float(data["number"]),
            "shift": float(shift.max()),
            "ratio": float(ratio[np.argmax(np.abs(np.log(ratio)))]),
            "wrong": wrong,
            "failed": failed,
            "status": posterior.status.name,
        }
        out.append(row)
        print(
            f"  {row['kind']:<10}{family:<10} d={size} shift {row['shift']:.2f} sd ratio "
            f"{row['ratio']:.2f} {'WRONG' if wrong else 'right'}; fails {failed}",
            flush=True,
        )
    return out


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=50)
    args = parser.parse_args()
    rows = measure(args.targets)
    wrong = np.array([r["wrong"] for r in rows])
    flagged = np.array([bool(r["failed"]) for r in rows])
    c.line(f"recall among {wrong.sum()} wrong fits", flagged[wrong].mean(), 0.95, at_least=True)
    c.line(f"false flags among {(~wrong).sum()} right fits", flagged[~wrong].mean(), 0.05)
    c.save("vi_fits", {"targets": rows})


if __name__ == "__main__":
    main()
