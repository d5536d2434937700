"""Classification evidence on a grid: EP, the ELBO and the hybrid against a reference of log Z.

A probit classifier with an isotropic Matern-5/2 kernel on a grid of log sd and log length scale in
[-1, 5] each. The reference at a point is the better (by its own standard error) of

* importance sampling from EP's q: with sites t_i, log Z = log G + log E_q prod p(y_i | f_i) / t_i;
* GHK: log Z is the probability that N(0, K + I) falls into the orthant of the labels, by
  sequential sampling of truncated normals;
* annealed importance sampling from EP's q, elliptical slice sampling in between: only where the
  errors of both others exceed 0.1 nats.

``--data`` is a folder with ionosphere.npz and sonar.npz (arrays train_X, train_Y in -1 and 1,
test_X, test_Y).

``python -m benchmarks.gp_surface --data FOLDER [--grid 21] [--sets ionosphere sonar] [--pieces
FOLDER --seconds 300]``
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, logsumexp, ndtri

import probkit as pk
from benchmarks import _common as c
from probkit.inference.gaussian import _cvi, _ep, _gp_laplace
from probkit.inference.gaussian._conditioning import factorise, safe_cholesky
from probkit.inference.gaussian._posterior import log_predictive
from probkit.inference.gaussian._problem import Problem

SAMPLES = 2000
_AIS_ABOVE, _RUNGS, _CHAINS = 0.1, 100, 128
LIMITS = {"ep": 0.003, "hybrid": 0.01}
NLPD = {"ionosphere": 0.125, "sonar": 0.32}
METHODS: dict[str, Any] = {"ep": pk.EP, "cvi": pk.CVI, "hybrid": pk.HybridEP}


def model() -> pk.Model:
    """The classifier; priors give starting points only (ML-II)."""
    return pk.Model(
        log_sd=pk.dist.Normal(1.0, 1.0),
        log_length=pk.dist.Normal(1.0, 1.0),
        f=pk.gp(
            lambda log_sd, log_length: (
                jnp.exp(2.0 * log_sd) * pk.kernels.Matern52(jnp.exp(log_length))
            ),
            at="x",
        ),
        y=pk.rv(lambda f: pk.BernoulliProbit(f), dims="row"),
    )


def load(folder: str, name: str, part: str) -> pk.Target:
    """One part of one data set, bound."""
    with np.load(Path(folder) / f"{name}.npz") as arrays:
        x, y = arrays[f"{part}_X"], (arrays[f"{part}_Y"][:, 0] > 0).astype(np.int32)
    return MODEL.bind({"x": x, "y": y}, dims={"x": ("row", "column"), "y": ("row",)})


def log_mean(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logarithm of a mean of weights, and its standard error (delta method)."""
    total = logsumexp(logs)
    share = jnp.exp(logs - total)
    n = len(logs)
    return total - jnp.log(n), jnp.sqrt(jnp.sum((share - 1.0 / n) ** 2))


def deviations(prior: Any, at: Any, tril: jax.Array, key: jax.Array, count: int) -> jax.Array:
    """Draws of the Gaussian posterior of sites, less its mean, ``(n, count)``."""
    noise = jax.random.normal(key, (2, len(at.s), count), tril.dtype)
    g, s = tril @ noise[0], at.s[:, None]
    return g - prior.K @ (s * (at.inverse.T @ (at.inverse @ (s * g + noise[1]))))


def log_ratio(sites: Any, sign: jax.Array, f: jax.Array) -> jax.Array:
    """``log prod p(y_i | f_i) / t_i(f_i)``, one a column."""
    terms = log_ndtr(sign[:, None] * f) - sites.l1[:, None] * f + 0.5 * sites.l2[:, None] * f**2
    return jnp.sum(terms, axis=0)


def importance(prior: Any, sites: Any, sign: jax.Array, key: jax.Array) -> tuple:
    """Importance sampling from the Gaussian posterior of EP's sites."""
    at = factorise(prior, sites)
    f = at.mu[:, None] + deviations(prior, at, safe_cholesky(prior.K), key, SAMPLES)
    value, error = log_mean(log_ratio(sites, sign, f))
    return at.log_g + value, error


def ghk(prior: Any, sign: jax.Array, key: jax.Array) -> tuple:
    """Sequential importance sampling of an orthant's probability."""
    n = len(sign)
    signed = sign[:, None] * prior.K * sign + jnp.eye(n, dtype=sign.dtype)
    tril = safe_cholesky(signed)
    uniform = jax.random.uniform(key, (n, SAMPLES), sign.dtype)

    def one(carry: tuple, i: jax.Array) -> tuple:
        eta, logs = carry
        edge = (tril[i] @ eta) / tril[i, i]  # eta_i > -edge
        logs += log_ndtr(edge)
        # Upper tail beyond -edge: Phi(-eta) is uniform on (0, Phi(edge)).
        tail = jnp.clip(uniform[i] * jnp.exp(log_ndtr(edge)), 1e-300, 1.0 - 1e-16)
        return (eta.at[i].set(-ndtri(tail)), logs), None

    first = (jnp.zeros((n, SAMPLES), sign.dtype), jnp.zeros(SAMPLES, sign.dtype))
    (_, logs), _ = jax.lax.scan(one, first, jnp.arange(n))
    return log_mean(logs)


def annealed(prior: Any, sites: Any, sign: jax.Array, key: jax.Array) -> tuple:
    """Annealed importance sampling from EP's Gaussian; one elliptical slice move a rung."""
    q = factorise(prior, sites)
    tril, centre = safe_cholesky(prior.K), q.mu[:, None]
    powers = jnp.linspace(0.0, 1.0, _RUNGS + 1)

    def likely(f: jax.Array) -> jax.Array:
        return log_ratio(sites, sign, centre + f)

    def rung(carry: tuple, at: tuple) -> tuple:
        f, logs = carry
        low, high, key = at
        logs += (high - low) * likely(f)
        keys = jax.random.split(key, 3)
        nu = deviations(prior, q, tril, keys[0], _CHAINS)
        level = high * likely(f) + jnp.log(jax.random.uniform(keys[1], logs.shape))
        top = 2.0 * jnp.pi * jax.random.uniform(keys[2], logs.shape)

        def going(c: tuple) -> jax.Array:
            return ~jnp.all(c[0])

        def shrink(c: tuple) -> tuple:
            done, angle, least, most, key, moved = c
            new = f * jnp.cos(angle) + nu * jnp.sin(angle)
            fine = high * likely(new) > level
            moved = jnp.where(fine & ~done, new, moved)
            done = done | fine
            least = jnp.where(angle < 0, angle, least)
            most = jnp.where(angle < 0, most, angle)
            key, sub = jax.random.split(key)
            angle = least + (most - least) * jax.random.uniform(sub, angle.shape)
            return done, angle, least, most, key, moved

        never = jnp.zeros(logs.shape, bool)
        start = (never, top, top - 2.0 * jnp.pi, top, keys[2], f)
        return (jax.lax.while_loop(going, shrink, start)[-1], logs), None

    first, rest = jax.random.split(key)
    f = deviations(prior, q, tril, first, _CHAINS)
    steps = (powers[:-1], powers[1:], jax.random.split(rest, _RUNGS))
    (_, logs), _ = jax.lax.scan(rung, (f, jnp.zeros(_CHAINS, sign.dtype)), steps)
    value, error = log_mean(logs)
    return q.log_g + value, error


def look(problem: Problem, sign: jax.Array, theta: jax.Array, key: jax.Array) -> dict:
    """Energies and references at one point."""
    prior = problem.prior(theta)
    ep = _ep.solve(problem, theta, prior, problem.start(theta, prior), tolerance=1e-6)
    cvi = _cvi.solve(problem, theta, prior, ep.sites, tolerance=1e-5)
    one, two = jax.random.split(key)
    return {
        "ep": _ep.energy(problem, theta, prior, ep.sites).value,
        "elbo": _cvi.value(problem, theta, cvi.sites),
        "hybrid": _ep.energy(problem, theta, prior, cvi.sites).value,
        "importance": importance(prior, ep.sites, sign, one),
        "ghk": ghk(prior, sign, two),
        "steps": jnp.stack([ep.steps, cvi.steps]),
        "reasons": jnp.stack([ep.reason, cvi.reason]),
        "sites": ep.sites,
    }


def surface(target: pk.Target, name: str, points: int, pieces: c.Pieces) -> dict[str, Any]:
    """Energies, references and their errors on the grid, one row of it at a time."""
    problem = Problem.of(target)
    sign = 2.0 * jnp.asarray(target.labels.observed["y"], float) - 1.0
    at = jax.jit(functools.partial(look, problem, sign))
    last = jax.jit(lambda theta, sites, key: annealed(problem.prior(theta), sites, sign, key))
    axis = np.linspace(-1.0, 5.0, points)
    order = [["log_sd", "log_length"].index(k) for k in problem.latent.theta.shapes]

    def one(i: int) -> dict[str, Any]:
        pair = np.array([axis[i // points], axis[i % points]])
        theta, key = jnp.asarray(pair[order]), jax.random.key(i)
        found = jax.tree.map(np.asarray, at(theta, key))
        named = {k: tuple(map(float, found.pop(k))) for k in ("importance", "ghk")}
        if min(e for _, e in named.values()) > _AIS_ABOVE:
            more = last(theta, found["sites"], jax.random.fold_in(key, 1))
            named["ais"] = tuple(map(float, more))
        best = min(named, key=lambda k: named[k][1] if np.isfinite(named[k][1]) else np.inf)
        return {
            "log_sd": pair[0],
            "log_length": pair[1],
            **{k: float(found[k]) for k in ("ep", "elbo", "hybrid")},
            "reference": named[best][0],
            "error": named[best][1],
            "by": best,
            "steps": found["steps"].tolist(),
            "reasons": found["reasons"].tolist(),
        }

    rows: list[dict[str, Any]] = []
    for i in range(points):
        make = lambda i=i: [one(points * i + j) for j in range(points)]  # noqa: E731
        rows += pieces.get(f"{name}-{points}-{i}", make)
    return {"n": len(sign), "points": rows}


def slopes(target: pk.Target) -> dict[str, float]:
    """Largest difference of a gradient from central differences, over three points."""
    problem = Problem.of(target)
    solvers: dict[str, Any] = {"ep": _ep.solve, "elbo": _cvi.solve, "laplace": _gp_laplace.solve}
    values: dict[str, Any] = {
        "ep": _ep.value,
        "elbo": _cvi.value,
        "laplace": _gp_laplace.value,
        "hybrid": functools.partial(_ep.value, exact=False),
    }
    out = {}
    for name, value in values.items():
        solver = solvers.get(name, _cvi.solve)

        def sites(theta: jax.Array, solver: Any = solver) -> Any:
            prior = problem.prior(theta)
            start = problem.start(theta, prior)
            return solver(problem, theta, prior, start, tolerance=1e-11).sites

        find = jax.jit(sites)
        both = jax.jit(jax.value_and_grad(functools.partial(value, problem)))
        worst = 0.0
        for theta in ([0.5, 1.0], [1.5, 1.5], [1.0, 2.5]):
            theta = jnp.asarray(theta)
            here = find(theta)
            slope = np.asarray(both(theta, here)[1])
            for k in range(2):
                step = 1e-4 * jnp.eye(2)[k]
                ends = [
                    both(t, here if name == "hybrid" else find(t))[0]
                    for t in (theta + step, theta - step)
                ]
                worst = max(worst, abs(float(ends[0] - ends[1]) / 2e-4 - slope[k]))
        out[name] = worst
    return out


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--grid", type=int, default=21)
    parser.add_argument("--sets", nargs="*", default=["ionosphere", "sonar"])
    c.Pieces.options(parser)
    args = parser.parse_args()
    pieces = c.Pieces.of(args)
    figures: dict[str, Any] = {}
    for name in args.sets:
        begin = time.process_time()
        target = load(args.data, name, "train")
        with jax.enable_x64(True):
            found = surface(target, name, args.grid, pieces)
            slope = pieces.get(f"{name}-slopes", lambda target=target: slopes(target))
        rows, n = found["points"], found["n"]
        print(f"{name}: {len(rows)} points, n = {n}", flush=True)
        gaps = {
            k: float(np.mean([abs(r[k] - r["reference"]) for r in rows]) / n)
            for k in ("ep", "hybrid", "elbo")
        }
        for k, gap in gaps.items():
            c.line(f"{name}: mean |{k} - log Z| / n", gap, LIMITS.get(k))
        errors = np.array([r["error"] for r in rows])
        c.line(f"{name}: mean standard error of the reference / n", float(np.mean(errors)) / n)
        c.line(f"{name}: largest standard error of the reference / n", float(np.max(errors)) / n)
        by = [r["by"] for r in rows]
        print("  references:", {k: by.count(k) for k in sorted(set(by))}, flush=True)
        for key, gap in slope.items():
            c.line(f"{name}: gradient against differences, {key} x 1e5", gap * 1e5, 1.0)
        test, scores = load(args.data, name, "test"), {}
        for key, method in METHODS.items():
            fit = pk.fit(target, method=method(objective="ml2"), progress=False)
            assert fit.approximation is not None
            scores[key] = -float(np.mean(log_predictive(target, fit.approximation, test)))
            limit = NLPD[name] if key == "hybrid" else None
            c.line(f"{name}: NLPD of the given split, {key}", scores[key], limit)
        cpu = time.process_time() - begin
        figures[name] = {"gaps": gaps, "nlpd": scores, "slopes": slope, "cpu": cpu, **found}
        print(f"  CPU s: {cpu:.0f}", flush=True)
    c.save("gp_surface", figures)


MODEL = model()

if __name__ == "__main__":
    main()
