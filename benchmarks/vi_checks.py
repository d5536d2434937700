"""Do the checks of an approximation see what is wrong, and only that?

Moments: 50 Gaussian targets in 2 to 10 dimensions, whose moments are known, each with
a made approximation: the best mean-field one, or the right one with its mean moved by up to 0.3 sd
and its scale multiplied by 0.6 to 1.5. A fit is wrong if a mean is off by more than 0.1 sd or a
ratio of sds lies outside [0.8, 1.25]; flagged if `Weights.checks` fails.

Modes: mixtures of 2 to 16 Gaussians in 2 to 10 dimensions. The approximation is the mixture with
some components left out, or all of them with other weights. Wrong if over 10 % of the mass is left
out; flagged if the mode check fails. The prior is N(0, 6^2) in each dimension.

Harder modes, of other seeds: components of scales that differ by factors of up to 3, weights from
Dirichlet(1), t with 6 degrees of freedom in the place of normals for every other case, and a prior
N(0, 4^2), so that means lie up to 2.5 prior sds out in each dimension.

``python -m benchmarks.vi_checks [--repeats 6] [--only moments|modes|harder]``
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

import probkit as pk
from benchmarks import _common as c
from probkit.core import Approximation, Weights, weigh
from probkit.inference.vi._mode_check import mode_check

_PARTS, _FREEDOM = 16, 6.0
#: Log weight of a component that is not there. (Minus infinity has no gradient.)
_NONE = -1e6


# -- moments --------------------------------------------------------------------------------------


def moments_case(rng: np.random.Generator, number: int) -> tuple[Weights, bool]:
    """One target and one made fit: its weights, and whether its moments are wrong."""
    size = int(rng.choice([2, 3, 5, 10]))
    mix = np.eye(size) + rng.uniform(0, 0.9) * rng.normal(size=(size, size)) / np.sqrt(size)
    cov: Any = mix @ mix.T
    right = np.sqrt(np.diag(cov))
    precision: Any = np.linalg.inv(cov)
    if number % 2:
        mean, cov_q = np.zeros(size), np.diag(1.0 / np.diag(precision))
    else:
        mean = rng.uniform(-0.3, 0.3, size) * right * rng.integers(0, 2)
        cov_q = cov * rng.choice([1.0, rng.uniform(0.6, 1.5)]) ** 2
    factor = np.linalg.cholesky(cov_q)
    noise = rng.normal(size=(20_000, size))
    z = mean + noise @ factor.T
    log_q = -0.5 * np.sum(noise**2, axis=1) - np.log(np.diag(factor)).sum()
    log_p = -0.5 * np.einsum("ij,jk,ik->i", z, precision, z)
    ratio = np.sqrt(np.diag(cov_q)) / right
    wrong = np.any(np.abs(mean / right) > 0.1) or np.any((ratio < 0.8) | (ratio > 1.25))
    return Weights(z, log_p, log_q), bool(wrong)


def moments(targets: int = 50) -> list[list[bool]]:
    """Wrong and flagged, for each target."""
    rng, out = np.random.default_rng(5), []
    for number in range(targets):
        weights, wrong = moments_case(rng, number)
        out.append([wrong, any(check.ok is False for check in weights.checks())])
    return out


# -- modes ----------------------------------------------------------------------------------------


def _log_mixture(p: Any, x: Any) -> Any:
    def one(mean: Any, white: Any, weight: Any) -> Any:
        gap, size, df = white @ (x - mean), x.shape[0], _FREEDOM
        log_det = jnp.sum(jnp.log(jnp.abs(jnp.diag(white))))
        normal = -0.5 * gap @ gap - 0.5 * size * jnp.log(2 * jnp.pi)
        constant = gammaln(0.5 * (df + size)) - gammaln(0.5 * df) - 0.5 * size * np.log(df * np.pi)
        heavy = constant - 0.5 * (df + size) * jnp.log1p(gap @ gap / df)
        return weight + log_det + jnp.where(p["heavy"] > 0, heavy, normal)

    return jax.nn.logsumexp(jax.vmap(one)(p["mean"], p["white"], p["weight"]))


def _draw(p: Any, key: Any, n: int) -> Any:
    first, second, third = jax.random.split(key, 3)
    which = jax.random.categorical(first, p["weight"], shape=(n,))
    noise = jax.random.normal(second, (n, p["mean"].shape[1]))
    mixing = jnp.sqrt(jax.random.chisquare(third, _FREEDOM, (n, 1)) / _FREEDOM)
    noise = jnp.where(p["heavy"] > 0, noise / mixing, noise)
    return p["mean"][which] + jnp.einsum("nij,nj->ni", p["factor"][which], noise)


def mixture(
    rng: np.random.Generator, modes: int, size: int, hard: bool = False, heavy: bool = False
) -> dict[str, np.ndarray]:
    """A mixture with well separated means, padded to 16 components."""
    means: list[np.ndarray] = []
    half, tries = 10.0, 0
    while len(means) < modes:
        fresh, tries = rng.uniform(-half, half, size), tries + 1
        if all(np.linalg.norm(fresh - m) > 5 for m in means):
            means.append(fresh)
        elif tries % 200 == 0:
            # Sixteen discs of that size hardly fit into the plane's box: anew, in a larger one.
            means, half = [], 1.05 * half
    mean = np.zeros((_PARTS, size))
    mean[:modes] = means
    factor = np.tril(0.3 * rng.normal(size=(_PARTS, size, size)))
    factor[:, range(size), range(size)] = rng.uniform(0.5, 1.2, (_PARTS, size))
    weight = np.full(_PARTS, _NONE)
    weight[:modes] = np.log(rng.dirichlet(np.full(modes, 1.0 if hard else 3.0)) + 1e-6)
    if hard:
        factor *= 3.0 ** rng.uniform(-0.5, 0.5, (_PARTS, 1, 1))
    found = {"mean": mean, "factor": factor, "white": np.linalg.inv(factor), "weight": weight}
    found["heavy"] = np.asarray(float(heavy))
    return {k: v.astype(np.float32) for k, v in found.items()}


def modes_model(sd: float) -> Any:
    """The prior's density is taken off again, so that the posterior is the mixture."""
    prior = lambda x: jnp.sum(pk.dist.Normal(0, sd).log_prob(x))  # noqa: E731

    def peaks(x: Any, mean: Any, white: Any, weight: Any, heavy: Any) -> Any:
        p = {"mean": mean, "white": white, "weight": weight, "heavy": heavy}
        return _log_mixture(p, x) - prior(x)

    return pk.Model(
        x=pk.rv(lambda mean: pk.dist.Normal(0, sd).expand([mean.shape[1]]).to_event(1)),
        peaks=pk.factor(peaks),
    )


def modes_case(
    rng: np.random.Generator, model: Any, p: dict[str, np.ndarray], modes: int, lose: bool
) -> dict[str, float]:
    """The mass that was left out, and what the check says."""
    data = {k: v for k, v in p.items() if k != "factor"}
    target = model.bind(data)
    q, lost = dict(p), 0.0
    weight = p["weight"].astype(float)
    if lose:
        order = rng.permutation(modes)
        count = 1 + int(rng.integers(0, modes - 1))
        gone = order[:count]
        lost = float(np.exp(weight[gone]).sum())
        weight[gone] = _NONE
    else:
        weight[:modes] += 0.3 * rng.normal(size=modes)
    q["weight"] = (weight - np.log(np.exp(weight).sum())).astype(np.float32)
    fitted = Approximation(_draw, _log_mixture, q, 1000, "mixture")
    key = rng.integers(0, 2**32, 2, dtype=np.uint32)
    weights = weigh(target, fitted, key)
    begin = time.process_time()
    (check,) = mode_check(target, fitted, key, weights)
    return {
        "lost": lost,
        "found": check.value,
        "flagged": -1.0 if check.ok is None else float(check.ok is False),
        "k_hat": weights.khat,
        "seconds": time.process_time() - begin,
    }


def modes(repeats: int, hard: bool) -> list[dict[str, float]]:
    """All cases, one line each."""
    rng, out = np.random.default_rng(77 if hard else 3), []
    for size in (2, 5, 10):
        model = modes_model(4.0 if hard else 6.0)
        for count in (2, 3, 4, 8, 16):
            for repeat in range(repeats):
                p = mixture(rng, count, size, hard, hard and repeat % 4 > 1)
                case = modes_case(rng, model, p, count, repeat % 2 == 0)
                out.append({"modes": count, "dims": size, **case})
        c.line(f"dims {size}: cases so far", float(len(out)))
    return out


def told(cases: list[dict[str, float]], name: str) -> None:
    """Recall, false alarms, and how long a check takes."""
    lost, flagged, k_hat = (np.array([x[k] for x in cases]) for k in ("lost", "flagged", "k_hat"))
    judged = flagged >= 0
    bad, good = (lost > 0.1) & judged, (lost == 0.0) & judged & (k_hat < 0.7)
    c.line(f"{name}: inconclusive, of {len(cases)}", float(np.mean(~judged)))
    c.line(f"{name}: recall among {bad.sum()}", float(flagged[bad].mean()), 0.95, at_least=True)
    c.line(f"{name}: false alarms among {good.sum()}", float(flagged[good].mean()), 0.05)
    c.line("  processor seconds a check, median", float(np.median([x["seconds"] for x in cases])))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--only", choices=("moments", "modes", "harder"), default=None)
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    if args.only in (None, "moments"):
        table = np.array(moments())
        wrong, flagged = table[:, 0], table[:, 1]
        recall, false = flagged[wrong].mean(), flagged[~wrong].mean()
        c.line(f"moments: recall among {wrong.sum()} wrong fits", recall, 0.95, at_least=True)
        c.line(f"moments: false flags among {(~wrong).sum()} right fits", false, 0.05)
        figures["moments"] = table.tolist()
    for name in ("modes", "harder"):
        if args.only in (None, name):
            figures[name] = modes(args.repeats, name == "harder")
            told(figures[name], name)
    c.save("vi_checks", figures)


if __name__ == "__main__":
    main()
