r"""Real fits on targets whose moments are known: are the wrong ones flagged, and only they?

Targets ``z = A x`` with a random matrix A and entries x of one kind a target. Fifty in 2 and 5
dimensions, all with known means and variances:

    normal;    log gamma of shape 0.5 to 6;    Student t of 4 to 12 degrees of freedom;
    bent: ``x_1`` of a normal pair moved by ``b (x_0^2 - 1)``, b of 0.1 to 0.8

each fitted by `pk.VI` with a mean-field Gaussian, a full-rank one or the default flow, in turn. And
a second set of other seeds, in 2, 5 and 10 dimensions and with a Student-t family as well, of which
six kinds are new (moments by a million exact draws):

    skew normal of slope 1 to 6;    two normals 1.6 to 4 sds apart;    a funnel ``x_0 ~ N(0, a^2)``,
    ``x_i ~ N(0, e^{x_0})``, a of 0.3 to 1;    logistic (a uniform seen through logit);    normals
    with correlations of 0.9 to 0.99;    ``exp(-x^4 / 4)``

A fit is wrong if a mean is off by more than 0.1 sd or an sd by a factor outside [0.8, 1.25] (by
20,000 draws of the fit against the truth); it is flagged if a check of `posterior.check()` fails.

``python -m benchmarks.vi_fits [--targets 50] [--more 120]``
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from scipy.special import polygamma

import probkit as pk
from benchmarks import _common as c

KINDS = ("normal", "log gamma", "Student t", "bent")
FAMILIES = ("meanfield", "fullrank", "flow")
SIZES = (2, 5)
MORE = (*KINDS, "skew", "two modes", "funnel", "logistic", "correlated", "quartic")
MORE_FAMILIES = (*FAMILIES, "student_t")
MORE_SIZES = (2, 5, 10)
_EXACT = 1_000_000


def log_density(z: Any, data: Any) -> Any:
    """Of ``z = A x``; the kind is a number in the data, so that one program serves all."""
    x = data["white"] @ z["x"]
    a, kind = data["number"], data["kind"]
    moved = x.at[1].add(-a * (x[0] ** 2 - 1.0))
    bent = -0.5 * jnp.sum(moved**2)
    gamma = jnp.sum(a * x - jnp.exp(x) - gammaln(a))
    heavy = jnp.sum(-0.5 * (a + 1.0) * jnp.log1p(x**2 / a))
    normal = -0.5 * jnp.sum(x**2)
    skew = normal + jnp.sum(jax.scipy.stats.norm.logcdf(a * x))
    pair = jnp.logaddexp(-0.5 * (x[0] - a) ** 2, -0.5 * (x[0] + a) ** 2)
    pair += -0.5 * jnp.sum(x[1:] ** 2)
    funnel = -0.5 * (x[0] / a) ** 2 - 0.5 * jnp.sum(x[1:] ** 2 * jnp.exp(-x[0]) + x[0])
    logistic = jnp.sum(-x - 2.0 * jax.nn.softplus(-x))
    quartic = -0.25 * jnp.sum(x**4)
    found = [normal, gamma, heavy, bent, skew, pair, funnel, logistic, normal, quartic]
    return jnp.stack(found)[kind]


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


def more_case(
    rng: np.random.Generator, kind: int, size: int
) -> tuple[dict, np.ndarray, np.ndarray]:
    """The same for the kinds of the second set, by exact draws where they are new."""
    if kind < len(KINDS):
        return case(rng, kind, size)
    mix = np.eye(size) + rng.uniform(0.0, 0.7) * rng.normal(size=(size, size)) / np.sqrt(size)
    x, number = rng.normal(size=(_EXACT, size)), 1.0
    if kind == 4:
        number = float(rng.uniform(1.0, 6.0))
        slope = number / np.sqrt(1.0 + number**2)
        x = slope * np.abs(x) + np.sqrt(1.0 - slope**2) * rng.normal(size=x.shape)
    elif kind == 5:
        number = float(rng.uniform(0.8, 2.0))
        x[:, 0] += number * rng.choice([-1.0, 1.0], _EXACT)
    elif kind == 6:
        number = float(rng.uniform(0.3, 1.0))
        x[:, 0] *= number
        x[:, 1:] *= np.exp(0.5 * x[:, :1])
    elif kind == 7:
        x = rng.logistic(size=x.shape)
    elif kind == 8:
        cov = np.full((size, size), rng.uniform(0.9, 0.99))
        np.fill_diagonal(cov, 1.0)
        mix = np.linalg.cholesky(cov)
    elif kind == 9:
        x = np.sign(x) * (4.0 * rng.gamma(0.25, size=x.shape)) ** 0.25
    data = {
        "white": np.linalg.inv(mix).astype(np.float32),
        "number": np.float32(number),
        "kind": np.int32(kind),
    }
    z = x @ mix.T
    return data, z.mean(axis=0), z.std(axis=0)


def measure(targets: int) -> list[dict[str, Any]]:
    """One row a target of the first set."""
    rng, out, programs = np.random.default_rng(11), [], {}
    for number in range(targets):
        kind, family = number % len(KINDS), FAMILIES[(number // 4) % len(FAMILIES)]
        size = SIZES[(number // 12) % len(SIZES)]
        out.append(row(case(rng, kind, size), KINDS[kind], family, number, programs))
    return out


def measure_more(targets: int) -> list[dict[str, Any]]:
    """One row a target of the second set."""
    rng, out, programs = np.random.default_rng(2026), [], {}
    for number in range(targets):
        kind = number % len(MORE)
        family = MORE_FAMILIES[(number // len(MORE)) % len(MORE_FAMILIES)]
        size = MORE_SIZES[(number // (len(MORE) * len(MORE_FAMILIES))) % len(MORE_SIZES)]
        out.append(row(more_case(rng, kind, size), MORE[kind], family, 7000 + number, programs))
    return out


def row(made: tuple, kind: str, family: str, seed: int, programs: dict) -> dict[str, Any]:
    """Fit one target and judge it."""
    data, mean, sd = made
    size = len(mean)
    fresh = pk.Target.from_log_density(log_density, {"x": np.zeros(size, np.float32)}, data)
    program = programs.setdefault(size, fresh.program)
    target = pk.Target(program, fresh.arrays, fresh.labels)
    posterior = pk.fit(target, method=pk.VI(family=family), seed=seed, progress=False)
    verdict = posterior.check()
    weights: Any = posterior.weights
    points = np.asarray(weights.points, float)
    shift = np.abs(points.mean(axis=0) - mean) / sd
    ratio = points.std(axis=0) / sd
    found = {
        "kind": kind,
        "family": family,
        "dims": size,
        "number": float(data["number"]),
        "shift": float(shift.max()),
        "ratio": float(ratio[np.argmax(np.abs(np.log(ratio)))]),
        "wrong": bool(np.any(shift > 0.1) or np.any((ratio < 0.8) | (ratio > 1.25))),
        "failed": [check.name for check in verdict.failed],
        "k_hat": weights.khat,
        "ess_ratio": weights.ess_ratio,
        "status": posterior.status.name,
    }
    print(
        f"  {kind:<10}{family:<10} d={size} shift {found['shift']:.2f} sd ratio "
        f"{found['ratio']:.2f} {'WRONG' if found['wrong'] else 'right'}; k-hat "
        f"{weights.khat:.2f}, fails {found['failed']}",
        flush=True,
    )
    return found


def told(rows: list[dict[str, Any]], name: str) -> None:
    """Recall and false flags, beside those of k-hat and ESS/N alone."""
    wrong = np.array([r["wrong"] for r in rows])
    flagged = np.array([bool(r["failed"]) for r in rows])
    alone = np.array([not r["k_hat"] < 0.7 or r["ess_ratio"] < 0.1 for r in rows])
    c.line(f"{name}: recall, {wrong.sum()} wrong fits", flagged[wrong].mean(), 0.95, at_least=True)
    c.line(f"{name}: false flags, {(~wrong).sum()} right fits", flagged[~wrong].mean(), 0.05)
    c.line("  by k-hat and ESS/N alone: recall", alone[wrong].mean())
    c.line("  by k-hat and ESS/N alone: false flags", alone[~wrong].mean())


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=50)
    parser.add_argument("--more", type=int, default=120)
    args = parser.parse_args()
    out = {}
    if args.targets:
        out["targets"] = measure(args.targets)
        told(out["targets"], "first set")
    if args.more:
        out["more"] = measure_more(args.more)
        told(out["more"], "second set")
    c.save("vi_fits", out)


if __name__ == "__main__":
    main()
