r"""Draws of a Gaussian process' hyperparameters with the function integrated out.

    p(theta | y)  proportional to  p(theta) Z(theta),      Z(theta) = int p(y | f) N(f; m, K) df

``Z`` is exact for Gaussian terms, and otherwise an engine's approximation, Laplace's or EP's; its
derivative is the engine's own, so a gradient costs one Cholesky factor and one inverse beyond the
sites. Any method that needs a log density can take the draws: the sampler moves in the few
hyperparameters, never in the n entries of ``f``. Afterwards one ``f`` is drawn for each
``theta_j`` from the engine's Gaussian, one draw after the other, so memory stays O(n^2).

Predictions are those of the mixture (Lalchand and Rasmussen 2019),
``p(y* | y) = (1/M) sum_j int p(y* | f*) q(f* | theta_j) df*``; `mixture` computes them with the
inner integrals done, in O(n^2) memory, instead of from draws of ``f``. Sites start flat at each
``theta``: a density must not depend on where the sampler came from.

A gradient costs O(n^3), so none should be spent on finding the place and the scales: the method
works in the coordinates ``u`` with ``theta = centre + scale u`` of the highest point found and the
curvature there (`_summit`). A method that starts uniformly in a box of half-width 2, as all of the
package do, then starts a little wider than the posterior. The search, the same for every seed and
chain, costs some 50 + 2 d gradients. With such coordinates NUTS has little left to learn, so that
the default takes a warm-up of 250, and an acceptance rate of 0.65, which in few dimensions buys
more effective draws a gradient than 0.8 does. Where posteriors of the hyperparameters are nearly
normal (many rows), ``metric="identity"`` and a lower rate halve the gradients once more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from probkit.core import (
    Approximation,
    Batch,
    Batches,
    Draws,
    Inference,
    Target,
    check_choice,
    check_options,
    whole_step,
)
from probkit.core._abreast import devices_for, divided
from probkit.core._function import FunctionProgram
from probkit.core._inference import POSITION
from probkit.core._programs import compiled
from probkit.core._target import Program
from probkit.core._trees import in_precision
from probkit.core._weighing import weigh
from probkit.inference.gaussian._conditioning import (
    Sites,
    factorise,
    safe_cholesky,
    split_by_precision,
    weights,
)
from probkit.inference.gaussian._fixed_point import NOT_FINITE
from probkit.inference.gaussian._gp_methods import (
    ep_engine,
    exact_engine,
    laplace_engine,
    several_ep_engine,
    several_laplace_engine,
)
from probkit.inference.gaussian._learning import Engine
from probkit.inference.gaussian._posterior import problem_of
from probkit.inference.gaussian._problem import Problem, placed
from probkit.inference.gaussian._several_posterior import draws
from probkit.inference.gaussian._several_problem import Several, posed
from probkit.inference.gaussian._starts import starts
from probkit.inference.gaussian._summit import Summit, curved, highest_of, plain

ENGINES = ("auto", "exact", "laplace", "ep")
_PRECISE = 1e-7
_WEIGHED = 500  # draws of an approximation that its evidence is estimated from
#: Searches for the top, and scattered points that each begins with the best of. (With a length
#: scale a column there are several tops: of two sets of concrete data one search of 4 points missed
#: the highest by 8 nats on one, and draws from there took three times as many gradients.)
_SEARCHES, _SCREEN = 2, 16


def engine_named(name: str, problem: Problem | Several) -> Engine:
    """The engine that integrates the function out; ``"auto"`` is exact where that is possible.

    (Of several processes it is Laplace's method.)
    """
    if isinstance(problem, Several):
        return several_ep_engine(1.0, 0.8) if name == "ep" else several_laplace_engine(closed=True)
    if name == "exact" or (name == "auto" and problem.kind == "gaussian"):
        return exact_engine()
    return laplace_engine() if name == "laplace" else ep_engine(1.0, 0.8)


def posed_for(program: Program, arrays: dict, name: str) -> Problem | Several:
    """The problem of a Program and arrays that fit it, for the engine named so."""
    return posed(program, arrays, closed=name != "ep")


def sites_at(problem: Problem | Several, engine: Engine, theta: Array) -> tuple[Sites, Array]:
    """An engine's sites at ``theta``, and whether they are finite."""
    prior = problem.prior(theta)
    start = problem.start(theta, prior)
    found = engine.solve(problem, theta, prior, start, jnp.asarray(_PRECISE, theta.dtype))
    return found.sites, found.reason != NOT_FINITE


def reduced(target: Target, name: str, at: Summit | None = None) -> Target:
    """The Target of the hyperparameters alone, in the coordinates ``at`` (their own by default)."""
    program = target.program
    shapes = posed_for(program, target.arrays, name).latent.theta.shapes

    def log_density(z: Mapping[str, Array], arrays: dict) -> Array:
        problem = posed_for(program, arrays["data"], name)
        at = Summit(*arrays["at"])
        height = curved(lambda u: _height(problem, name, at.out(u)))
        return height(problem.latent.theta.ravel(z)) + at.log_scale

    def make() -> Program:
        example = {k: np.zeros(s, program.dtype) for k, s in shapes.items()}
        with in_precision(program.dtype):
            return FunctionProgram(log_density, example, True)

    made = program.cached(("marginal", name), make)
    if at is None:
        with in_precision(program.dtype):
            at = plain(made.flat.size, program.dtype)
    return Target(made, {"data": {"data": target.arrays, "at": tuple(at)}})


def _height(problem: Problem | Several, name: str, theta: Array) -> Array:
    """Log evidence plus log prior of hyperparameters, with the engine's own derivative."""
    engine = engine_named(name, problem)
    sites, fine = jax.lax.stop_gradient(sites_at(problem, engine, jax.lax.stop_gradient(theta)))
    value = engine.value(problem, theta, sites) - problem.penalty(theta)
    value += problem.latent.log_prior(theta, problem.arrays)
    return jnp.where(fine, value, -jnp.inf)


def highest(target: Target, name: str) -> Summit:
    """Where the hyperparameters' log density is highest, and how it falls off."""
    problem = posed_for(target.program, target.arrays, name)
    d = problem.latent.theta.size
    points = jnp.asarray(starts(np.uint32(0), _SEARCHES * _SCREEN, d, target.dtype))
    sets = points.reshape(_SEARCHES, _SCREEN, d)
    found = highest_of(lambda aside: _height(problem, name, placed(problem, aside)), sets)
    spread = problem.latent.spread.astype(target.dtype)
    return Summit(
        placed(problem, found.centre),
        found.scale * spread[:, None],
        found.log_scale + np.sum(np.log(spread)),
    )


class Marginal(Inference):
    """Any method on a Gaussian process' hyperparameters, the function integrated out.

    Args:
        method: draws or approximates the hyperparameters; by default
            ``pk.NUTS(draws=1000, warmup=250, metric="low_rank", target_accept=0.65)``, 4 chains.
        engine: how the function is integrated out: ``"exact"`` (Gaussian terms), ``"laplace"``,
            ``"ep"``, or ``"auto"``: exact where the terms are Gaussian, else EP. Several processes
            whose terms meet row by row are integrated out by Laplace's method, or by ``"ep"``.

    An approximation in the place of a sampler (``pk.Marginal(pk.VI())``) is one of the
    hyperparameters, with the function drawn given them. ``posterior.log_evidence`` comes with it,
    by importance sampling of the hyperparameters with the error of that (the engine's own error,
    where terms are not Gaussian, is not in it); draws come without one: for these, fit by VI too.

    Raises:
        TypeError: ``method`` is no method (or takes mini-batches), or an option is misspelt.
        ValueError: an unknown engine; at fitting, ``"exact"`` for terms that are not Gaussian.

    Example:
        >>> import probkit as pk
        >>> pk.Marginal().num_steps
        1250
        >>> pk.Marginal(pk.NUTS(draws=200, chains=2), engine="laplace").chains
        2
    """

    method: Inference
    engine: str = eqx.field(static=True)

    def __init__(self, method: Inference | None = None, engine: str = "auto", **unknown: Any):
        check_options("Marginal", unknown, ("method", "engine"))
        check_choice("Marginal(engine)", engine, ENGINES)
        if method is None:
            method = _sampler()
        if not isinstance(method, Inference):
            raise TypeError(
                f"Marginal: expected an inference method such as pk.NUTS(), found {method!r}"
            )
        latent = {"gaussian_latent", "gaussian_latents"} & set(method.requires)
        if method.batches is not None or latent:
            raise TypeError(
                f"Marginal: expected a method that takes the whole log density, such as pk.NUTS() "
                f"or pk.VI(), found {method!r}"
            )
        self.method, self.engine = method, engine

    @property
    def chains(self) -> int:
        return self.method.chains

    @property
    def num_steps(self) -> int:
        return self.method.num_steps

    @property
    def num_warmup(self) -> int:
        return self.method.num_warmup

    @property
    def requires(self) -> tuple[str, ...]:
        return ("gaussian_latent",) if self.engine == "exact" else ("gaussian_latents",)

    @property
    def batches(self) -> Batches | None:
        return None

    def init(self, key: Array, target: Target) -> Any:
        problem = posed_for(target.program, target.arrays, self.engine)
        if not problem.latent.theta.size:
            raise ValueError(
                "Marginal: this model has no hyperparameters to draw; use pk.GPExact() or pk.EP()"
            )
        engine_named(self.engine, problem).check(problem)
        at = highest(target, self.engine)
        return {"at": tuple(at), "inner": self.method.init(key, reduced(target, self.engine, at))}

    def step(
        self, key: Array, target: Target, state: Any, batch: Batch | None, t: Array
    ) -> tuple[Any, dict[str, Array]]:
        at = Summit(*state["at"])
        inner, info = whole_step(
            self.method, key, reduced(target, self.engine, at), state["inner"], None, t
        )
        if POSITION in info:
            info = {**info, POSITION: at.out(info[POSITION])}
        if "lp" in info:
            info = {**info, "lp": info["lp"] - at.log_scale}
        return {"at": state["at"], "inner": inner}, info

    def terminate(self, state: Any, info: dict[str, Array]) -> tuple[Array, Array]:
        return self.method.terminate(state["inner"], info)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Draws | Approximation:
        at = Summit(*(part[0] for part in state["at"]))
        within = reduced(target, self.engine, at)
        out = self.method.finish(key, within, state["inner"], history)
        if isinstance(out, Approximation):
            return _completed(target, _weighed(within, out, key), self.engine, at)
        # Warm-up draws of the function say nothing that anybody asks for.
        whole = _with_function(target, out.unconstrained, key, self.engine)
        return dataclasses.replace(out, unconstrained=whole, warmup=None, warmup_stats={})


def _sampler() -> Inference:
    """The default method; see the module's text."""
    from probkit.inference.mcmc._nuts import NUTS

    return NUTS(draws=1000, warmup=250, metric="low_rank", target_accept=0.65)


def complete(program: Program, name: str, arrays: dict, theta: Array, key: Array) -> Array:
    """A draw of ``f`` given hyperparameters, as a point of the whole unconstrained space.

    As `_posterior.draw`, but without the factor's inverse: there is one draw only. The factor that
    the prior is drawn by is the one that the draw is whitened with.
    """
    problem = posed_for(program, arrays, name)
    sites, _ = sites_at(problem, engine_named(name, problem), theta)
    if isinstance(problem, Several):
        f = draws(problem, theta, sites, key, 1)[0]
        return program.flat.ravel(problem.latent.point(theta, f, arrays))
    prior = problem.prior(theta)
    n, s = prior.m.shape[0], jnp.sqrt(sites.l2)
    noise = jax.random.normal(key, (2, n), prior.m.dtype)
    root, point = problem.latent.pointing(theta, arrays)
    g = prior.m + root @ noise[0]
    tril = safe_cholesky(jnp.eye(n, dtype=s.dtype) + s[:, None] * prior.K * s)
    # Pseudo-observations l1 / l2 with noise 1 / l2 (written without division), less simulated ones.
    gap = split_by_precision(prior, sites, sites.l1 - sites.l2 * g - s * noise[1])
    f = g + prior.K @ weights(prior, s, tril, gap)[0]
    return program.flat.ravel(point(f))


def _with_function(target: Target, theta: np.ndarray, key: np.ndarray, name: str) -> np.ndarray:
    """Draws of the whole space, ``(chain, draw, d)``, for draws of the hyperparameters."""
    program, (chains, draws, size) = target.program, theta.shape
    devices = devices_for(chains, None)

    def fn(theta: Array, rows: Array, key: Array, arrays: dict) -> Array:
        key = jax.random.wrap_key_data(key)

        def one(pair: tuple[Array, Array]) -> Array:
            return complete(program, name, arrays, pair[0], jax.random.fold_in(key, pair[1]))

        return jax.lax.map(one, (theta, rows))

    split = divided(fn, devices, (0, 0, None, None), 0)
    rows = np.arange(chains * draws, dtype=np.uint32)
    args = (theta.reshape(-1, size), rows, np.asarray(key), target.arrays)
    with in_precision(target.dtype):
        made = compiled(program, "marginal_draws", (name, devices), split, args)
        out = np.asarray(made(*args))
    return out.reshape(chains, draws, -1)


def _weighed(within: Target, found: Approximation, key: np.ndarray) -> Approximation:
    """With the log evidence that importance sampling makes of the hyperparameters, and its checks.

    Made here, where their density is known: that of the whole space is not, so that nobody can
    weigh the completed draws.
    """
    if found.log_density is None:
        return found
    mine = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(key)), _SCREEN)
    made = weigh(within, found, np.asarray(jax.random.key_data(mine)), _WEIGHED)
    evidence = made.log_evidence
    stats = {**found.stats, "log_evidence_se": evidence.se, "k_hat": made.best.khat}
    checks = (*found.checks, *made.checks(within.program.flat.labels().__getitem__))
    return dataclasses.replace(found, log_evidence=evidence.value, stats=stats, checks=checks)


def _completed(target: Target, inner: Approximation, name: str, at: Summit) -> Approximation:
    """An approximation of the hyperparameters, with the function drawn given them."""
    program = target.program

    def sample(params: dict, key: Array, n: int) -> Array:
        first, second = jax.random.split(key)
        theta = Summit(*params["at"]).out(inner.sample(params["inner"], first, n))
        one = lambda pair: complete(program, name, params["arrays"], *pair)  # noqa: E731
        return jax.lax.map(one, (theta, jax.random.split(second, n)))

    return dataclasses.replace(
        inner,
        sample=sample,
        log_density=None,
        params={"inner": inner.params, "arrays": target.arrays, "at": tuple(at)},
        key=("marginal", name, inner.key),
        weights=None,
        examine=(),
    )


def hyperparameters(target: Target, unconstrained: np.ndarray) -> np.ndarray:
    """The hyperparameters' part of draws ``(..., d)`` of the whole space: ``(..., theta.size)``."""
    latent = posed_for(target.program, target.arrays, "auto").latent
    parts = target.program.flat.unravel_host(np.asarray(unconstrained))
    lead = np.shape(unconstrained)[:-1]
    return np.concatenate([parts[k].reshape(*lead, -1) for k in latent.theta.shapes], axis=-1)


def mixture(target: Target, new: Target, theta: np.ndarray, engine: str = "auto") -> dict:
    """Predictions at the rows of ``new``, mixed over draws ``theta`` of shape ``(M, theta.size)``.

    Returns:
        ``mean`` and ``var`` of ``f*`` and ``log_density`` of the outcomes in ``new``, ``(n*,)``.
    """
    program, other = target.program, new.program

    def one(theta: Array, arrays: dict, there: dict) -> tuple[Array, Array, Array]:
        problem, ahead = problem_of(program, arrays), problem_of(other, there)
        sites, _ = sites_at(problem, engine_named(engine, problem), theta)
        factor = factorise(problem.prior(theta), sites)
        points = (problem.latent.points(arrays), ahead.latent.points(there))
        cross = problem.latent.cross_covariance(theta, *points, arrays)
        mean = ahead.latent.mean(theta, there) + cross.T @ factor.alpha
        half = factor.inverse @ (factor.s[:, None] * cross)
        whole = ahead.latent.variance(theta, points[1], there)
        tiny = 8.0 * jnp.finfo(whole.dtype).eps * whole
        var = jnp.maximum(whole - jnp.sum(half**2, axis=0), tiny)
        return mean, var, ahead.tilted(theta, mean, var).value

    def fn(thetas: Array, arrays: dict, there: dict) -> dict[str, Array]:
        mean, var, logs = jax.lax.map(lambda t: one(t, arrays, there), thetas)
        centre = jnp.mean(mean, axis=0)
        return {
            "mean": centre,
            "var": jnp.mean(var, axis=0) + jnp.mean((mean - centre) ** 2, axis=0),
            "log_density": logsumexp(logs, axis=0) - jnp.log(len(thetas)),
        }

    with in_precision(target.dtype):
        args = (np.asarray(theta, target.dtype), target.arrays, new.arrays)
        made = compiled(other, "gp_mixture", (program, engine), fn, args)
        return {k: np.asarray(v) for k, v in made(*args).items()}
