"""Every kind of term through `pk.fit`: engines against dense twins, the truth, and predictions.

Terms of the twins are SciPy's. Each fit learns one hyperparameter; the twin is run where that
ended, and a little on either side. Which engine takes which terms in the quick tests is a matter
of seconds, not of principle: the other pairs are marked slow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

import probkit as pk
from probkit import dist
from probkit.core import Status
from probkit.inference.gaussian._posterior import log_predictive
from tests.inference.gaussian import twins

N, MEAN, DRAWS = 16, 0.2, 4000
RNG = np.random.default_rng(4)
X = np.sort(RNG.uniform(-3, 3, N))
F = np.sin(1.5 * X)
SD = RNG.uniform(0.2, 0.8, N)
CUTS = np.array([-0.7, 0.6])
NEW = np.array([-1.0, 0.5, 4.0])
ENGINES: dict[str, tuple[Any, Callable[..., twins.Twin]]] = {
    "ep": (pk.EP, twins.ep),
    "cvi": (pk.CVI, twins.variational),
    "laplace": (pk.GPLaplace, twins.laplace),
}


class Case(NamedTuple):
    """A likelihood: its node, outcomes, and SciPy's log density and distribution function."""

    node: Any
    y: np.ndarray
    log: Callable[[np.ndarray, np.ndarray], np.ndarray]
    cdf: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    columns: dict[str, np.ndarray] = {}


def row(fn: Callable[..., Any]) -> Any:
    return pk.rv(fn, dims="row")


def ordered(y: np.ndarray, f: np.ndarray) -> np.ndarray:
    edges = np.concatenate([[-np.inf], CUTS, [np.inf]])
    return np.log(expit(edges[y + 1] - f) - expit(edges[y] - f))


def counts(y: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    return y, 2.0, 2.0 / (2.0 + np.exp(f))


def shares(y: np.ndarray, f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return y, 8.0 * expit(f), 8.0 * expit(-f)


CASES: dict[str, Case] = {
    "normal, sd a column": Case(
        row(lambda f, sd: dist.Normal(f, sd)),
        F + SD * RNG.normal(size=N),
        # New rows have the first sds.
        lambda y, f: stats.norm.logpdf(y, f, SD[: len(y)]),
        lambda y, f: stats.norm.cdf(y, f, SD[: len(y)]),
        {"sd": SD},
    ),
    "logit": Case(
        row(lambda f: dist.Bernoulli(logits=f)),
        (RNG.uniform(size=N) < expit(F)).astype(int),
        lambda y, f: stats.bernoulli.logpmf(y, expit(f)),
        lambda y, f: stats.bernoulli.cdf(y, expit(f)),
    ),
    "poisson": Case(
        row(lambda f: dist.Poisson(jnp.exp(f))),
        RNG.poisson(np.exp(F)),
        lambda y, f: stats.poisson.logpmf(y, np.exp(f)),
        lambda y, f: stats.poisson.cdf(y, np.exp(f)),
    ),
    "negative binomial": Case(
        row(lambda f: dist.NegativeBinomial2(jnp.exp(f), 2.0)),
        RNG.poisson(np.exp(F) * RNG.gamma(2.0, 0.5, N)),
        lambda y, f: stats.nbinom.logpmf(*counts(y, f)),
        lambda y, f: stats.nbinom.cdf(*counts(y, f)),
    ),
    "student": Case(
        row(lambda f: dist.StudentT(4.0, f, 0.3)),
        F + 0.3 * RNG.standard_t(4.0, N),
        lambda y, f: stats.t.logpdf(y, 4.0, f, 0.3),
        lambda y, f: stats.t.cdf(y, 4.0, f, 0.3),
    ),
    "beta": Case(
        row(lambda f: dist.BetaProportion(1.0 / (1.0 + jnp.exp(-f)), 8.0)),
        np.clip(RNG.beta(8.0 * expit(F), 8.0 * expit(-F)), 1e-3, 1.0 - 1e-3),
        lambda y, f: stats.beta.logpdf(*shares(y, f)),
        lambda y, f: stats.beta.cdf(*shares(y, f)),
    ),
    "ordinal": Case(
        row(lambda f: dist.OrderedLogistic(f, CUTS)),
        np.sum(2.0 * F + 0.5 * RNG.logistic(size=N) > CUTS[:, None], axis=0),
        ordered,
        lambda y, f: expit(np.append(CUTS, np.inf)[y] - f),
    ),
    "gumbel": Case(
        row(lambda f: dist.Gumbel(f, 0.4)),
        F + 0.4 * RNG.gumbel(size=N),
        lambda y, f: stats.gumbel_r.logpdf(y, f, 0.4),
        lambda y, f: stats.gumbel_r.cdf(y, f, 0.4),
    ),
    # A robust loss that is no distribution's.
    "factor": Case(
        pk.factor(lambda f, y: -2.0 * jnp.log(jnp.cosh(y - f)), dims="row", likelihood=True),
        F + 0.3 * RNG.normal(size=N),
        lambda y, f: -2.0 * np.log(np.cosh(y - f)),
        None,
    ),
}
QUICK = {
    ("normal, sd a column", "cvi"),
    ("logit", "ep"),
    ("poisson", "laplace"),
    ("negative binomial", "laplace"),
    ("student", "ep"),
    ("beta", "laplace"),
    ("ordinal", "ep"),
    ("factor", "ep"),
}
PAIRS = [
    pytest.param(case, engine, marks=[] if (case, engine) in QUICK else pytest.mark.slow)
    for case in CASES
    for engine in ENGINES
]


def model(case: Case) -> pk.Model:
    process = pk.gp(lambda size: size**2 * pk.kernels.Matern32(1.0), at="x", mean=MEAN)
    return pk.Model(size=dist.LogNormal(0, 0.5), f=process, **{_name(case): case.node})


def _name(case: Case) -> str:
    """A factor reads its outcomes from a column; a variable is the column."""
    return "loss" if case.cdf is None else "y"


def matern32(a: np.ndarray, b: np.ndarray, log_size: float) -> np.ndarray:
    u = np.sqrt(3.0) * np.abs(a[:, None] - b)
    return np.exp(2.0 * log_size) * (1.0 + u) * np.exp(-u)


@functools.cache
def fitted(name: str, engine: str) -> pk.Posterior:
    case = CASES[name]
    method = ENGINES[engine][0](draws=DRAWS, starts=1, screen=1)
    data = {"x": X, "y": case.y, **case.columns}
    return pk.fit(model(case), data, method=method, progress=False)


def twin(name: str, engine: str, log_size: float) -> twins.Twin:
    case = CASES[name]
    with np.errstate(all="ignore"):
        return ENGINES[engine][1](
            matern32(X, X, log_size), np.full(N, MEAN), lambda f: case.log(case.y, f)
        )


@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_engines_do_what_their_dense_twins_do(name: str, engine: str) -> None:
    found = fitted(name, engine)
    stats_ = found.approximation.stats
    (log_size,) = stats_["theta"]
    assert found.status is Status.OK and found.check().ok
    slow = twin(name, engine, log_size)
    # (NumPyro's count densities are right to 1e-6 from 8 on.)
    assert abs(stats_["log_evidence"] - slow.log_evidence) < 1e-5
    np.testing.assert_allclose(stats_["f_mean"], slow.mean, atol=3e-5)
    np.testing.assert_allclose(stats_["f_sd"], np.sqrt(np.diag(slow.cov)), atol=3e-5)
    # The hyperparameter is at the top of the twin's evidence (plus prior): what the parabola
    # through three points promises is what searches leave. (Where precisions were cut at zero,
    # derivatives at frozen sites are off a little.)
    low, here, high = (
        twin(name, engine, log_size + d).log_evidence + stats.norm.logpdf(log_size + d, 0, 0.5)
        for d in (-0.01, 0.0, 0.01)
    )
    assert here > max(low, high)
    gain = (high - low) ** 2 / (8.0 * (2.0 * here - low - high))
    assert gain < (1e-3 if name == "student" else 3e-5)


@pytest.mark.parametrize("name", [k for k, engine in sorted(QUICK) if engine == "ep"])
def test_expectation_propagation_is_close_to_the_truth(name: str) -> None:
    """And the evidence bound of VI below it; Laplace's method is off by more (not tested)."""
    case, stats_ = CASES[name], fitted(name, "ep").approximation.stats
    (log_size,) = stats_["theta"]
    log_z, error, mean, sd = twins.sampled(
        matern32(X, X, log_size),
        np.full(N, MEAN),
        lambda f: case.log(case.y, f),
        twin(name, "ep", log_size),
    )
    assert error < 0.01
    # Errors of EP itself (0.03 nats, 5 % of an sd) and five of the sampler's.
    assert abs(stats_["log_evidence"] - log_z) < 0.03 + 5 * error
    assert np.all(np.abs(stats_["f_mean"] - mean) < (0.05 + 5 * error) * sd)
    assert np.all(np.abs(stats_["f_sd"] / sd - 1.0) < 0.12 + 5 * error)
    assert twin(name, "cvi", log_size).log_evidence < log_z + 5 * error


def new_rows(case: Case) -> dict[str, np.ndarray]:
    return {"x": NEW, "y": case.y[:3], **{k: v[:3] for k, v in case.columns.items()}}


def function_ahead(name: str, engine: str) -> tuple[np.ndarray, np.ndarray]:
    (log_size,) = fitted(name, engine).approximation.stats["theta"]
    K, cross = matern32(X, X, log_size), matern32(X, NEW, log_size)
    whole = np.full(3, np.exp(2.0 * log_size))
    return twins.ahead(K, cross, whole, MEAN, twin(name, engine, log_size))


@pytest.mark.parametrize(
    ("name", "engine"),
    [p if p.values[1] == "ep" else pytest.param(*p.values, marks=pytest.mark.slow) for p in PAIRS],
)
def test_predictive_densities_are_integrated(name: str, engine: str) -> None:
    case, found = CASES[name], fitted(name, engine)
    new = new_rows(case)
    mean, var = function_ahead(name, engine)
    truth = twins.tilted(lambda f: case.log(new["y"], f), mean, var)[0]
    bound = model(case).bind(new)
    ours = log_predictive(found.target, found.approximation, bound)
    np.testing.assert_allclose(ours, truth, atol=2e-5)
    plugged = case.log(new["y"], mean)
    assert np.max(np.abs(ours - plugged)) > 0.01


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=[] if k == "ordinal" else pytest.mark.slow) for k in CASES]
)
def test_what_users_predict_is_integrated(name: str) -> None:
    """Draws of outcomes and log densities from the posterior, against one-dimensional integrals."""
    case = CASES[name]
    found, new = fitted(name, "ep"), new_rows(case)
    mean, var = function_ahead(name, "ep")
    log_z, _, _ = twins.tilted(lambda f: case.log(new["y"], f), mean, var)
    if case.cdf is None:
        # A loss has no outcomes; the function is predicted all the same.
        ahead = np.asarray(found.predict(new).predictions["f"])[0]
        assert np.all(np.abs(ahead.mean(0) - mean) < 5 * np.sqrt(var / DRAWS))
        assert np.all(np.abs(ahead.var(0) / var - 1) < 5 * np.sqrt(2 / DRAWS))
        return
    f = mean + np.sqrt(var) * np.random.default_rng(1).normal(size=(100_000, 3))
    terms = np.exp(case.log(new["y"], f))
    # The draws of the function are 4000: five of their standard errors, relative ones of a mean.
    room = 5.0 * np.std(terms, axis=0) / np.mean(terms, axis=0) / np.sqrt(DRAWS)
    got = np.asarray(found.log_predictive(new))
    assert np.all(np.abs(got - log_z) < room)
    drawn = found.predict({k: v for k, v in new.items() if k != "y"}).predictions["y"]
    below = np.asarray(drawn).reshape(-1, 3) <= new["y"]
    share = np.mean(case.cdf(new["y"], f), axis=0)
    slack = 5.0 * np.sqrt(share * (1.0 - share) / DRAWS) + 0.01
    assert np.all(np.abs(below.mean(axis=0) - share) < slack)


def test_terms_with_a_kink_are_not_taken_for_gaussian_ones() -> None:
    """Their second derivatives do not vary where they exist: absolute errors, Huber's loss."""

    def huber(f, y):
        r = jnp.abs(y - f)
        return -jnp.where(r < 9.0, 0.5 * r**2, 9.0 * r - 40.5)

    kinks = [
        row(lambda f: dist.Laplace(f, 0.4)),
        pk.factor(lambda f, y: -0.2 * jnp.maximum(y - f, 0.0), dims="row", likelihood=True),
        pk.factor(huber, dims="row", likelihood=True),
        row(lambda f: dist.Normal(jnp.clip(f, -5.0, 5.0), 0.3)),
    ]
    straight = [
        row(lambda f: dist.Normal(3.0 - 2.0 * f, 0.3)),
        pk.factor(lambda f, y: y * f - 0.5 * f**2, dims="row", likelihood=True),
    ]
    for nodes, kind in ((kinks, None), (straight, "gaussian")):
        for node in nodes:
            named = {"y" if isinstance(node, type(kinks[0])) else "loss": node}
            bound = pk.Model(f=pk.gp(pk.kernels.Matern32(1.0), at="x"), **named).bind(
                {"x": X, "y": F + 1.0}
            )
            assert bound.gaussian_latent.family(bound.arrays) == kind
    bent = row(lambda f: pk.BernoulliProbit(jnp.maximum(f, -4.0)))
    bound = pk.Model(f=pk.gp(pk.kernels.Matern32(1.0), at="x"), y=bent).bind(
        {"x": X, "y": (F > 0).astype(int)}
    )
    assert bound.gaussian_latent.family(bound.arrays) is None
