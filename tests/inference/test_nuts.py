"""NUTS: the right distribution with every engine and metric, its statistics, and calibration."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

import probkit as pk
from probkit.core import Status, Target, run
from probkit.inference.mcmc import _blackjax, _numpyro_engine
from probkit.inference.mcmc._schedule import Schedule
from probkit.inference.mcmc._start import find_start
from tests.inference.cases import (
    BOUND,
    CENTRE,
    COVARIANCE,
    SCHOOLS,
    SCHOOLS_EVIDENCE,
    correlated,
    schools,
    scores,
)

ENGINES = [
    {"metric": "low_rank"},
    {"metric": "diag"},
    {"metric": "dense"},
    {"engine": "numpyro", "metric": "diag"},
    {"engine": "numpyro", "metric": "dense"},
]
_TARGET = correlated()


@functools.cache
def schools_target() -> Target:
    return schools.bind(SCHOOLS)


def _fit(target: Target, seed: int = 0, **options):
    method = pk.NUTS(**{"draws": 700, "warmup": 500, **options})
    return pk.fit(target, method=method, seed=seed, progress=False)


# -- the distribution -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", ENGINES, ids=lambda o: "-".join(o.values()))
def test_a_correlated_gaussian(options):
    """40 scores in all; one of them beyond 5 by chance: 4e-4."""
    posterior = _fit(_TARGET, **options)
    assert posterior.status is Status.OK
    assert np.max(scores(posterior.values["x"], CENTRE, COVARIANCE)) < BOUND
    verdict = posterior.check()
    assert verdict.ok, str(verdict)
    stats = posterior.stats
    expected = {
        "diverging",
        "energy",
        "lp",
        "acceptance_rate",
        "step_size",
        "tree_depth",
        "n_steps",
        "reached_max_treedepth",
    }
    assert set(stats) == expected
    assert stats["diverging"].dtype == bool and not stats["diverging"].any()
    # The chains' step sizes are fixed after the warm-up, and tuned to the acceptance asked for.
    assert np.all(np.ptp(stats["step_size"], axis=1) == 0)
    assert 0.7 < stats["acceptance_rate"].mean() < 0.95
    # A trajectory that was doubled k times has fewer than 2^k leapfrog steps.
    limit = 2 ** (stats["tree_depth"] + (options.get("engine") == "numpyro"))
    assert np.all((0 < stats["n_steps"]) & (stats["n_steps"] < limit))
    # The energy is that of the new point: its potential plus a kinetic energy, which is positive.
    assert np.all(stats["energy"] >= -stats["lp"] - 1e-2)


def test_the_acceptance_rate_is_the_one_asked_for():
    low, high = (
        _fit(_TARGET, metric="diag", target_accept=a).stats["acceptance_rate"].mean()
        for a in (0.6, 0.95)
    )
    assert low < 0.8 and high > 0.9


def test_a_narrow_support_is_entered():
    target = Target.from_log_density(
        lambda z: jnp.where(
            jnp.all(jnp.abs(z["x"]) < 0.01), -0.5 * jnp.sum((z["x"] / 2e-3) ** 2), -jnp.inf
        ),
        {"x": np.zeros(3)},
    )
    position, value, gradient = jax.jit(lambda k: find_start(k, target))(jax.random.key(0))
    assert np.all(np.abs(position) < 0.01) and np.isfinite(value)
    posterior = _fit(target, draws=300, warmup=300, metric="diag")
    sd = posterior.values["x"].std(axis=(0, 1))
    np.testing.assert_allclose(sd, 2e-3, rtol=0.2)


def test_the_deepest_tree_is_reported():
    posterior = _fit(_TARGET, metric="diag", max_depth=2, draws=100, warmup=100)
    assert posterior.stats["reached_max_treedepth"].mean() > 0.3
    assert posterior.stats["n_steps"].max() <= 4


# -- the warm-up ----------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 1, 19, 20, 100, 149, 150, 300, 1000, 1500])
def test_the_schedule_is_stans(warmup):
    schedule = Schedule(warmup)
    ends = schedule.ends[schedule.ends >= 0]
    assert 0 <= schedule.begin <= schedule.end <= warmup
    if warmup < 20:
        assert len(ends) == 0
        return
    assert ends[-1] == schedule.end - 1 and ends[-1] < warmup - 1
    assert schedule.begin >= 0.15 * warmup - 1 or schedule.begin == 75
    lengths = np.diff(np.concatenate([[schedule.begin - 1], ends]))
    assert np.all(lengths > 0) and lengths.sum() == schedule.end - schedule.begin
    if warmup == 1000:
        assert ends.tolist() == [99, 149, 249, 449, 949]


@pytest.mark.parametrize("warmup", [0, 1, 25])
def test_a_short_warmup_runs(warmup):
    posterior = _fit(_TARGET, metric="diag", draws=20, warmup=warmup)
    assert posterior.values["x"].shape == (4, 20, 4)
    assert np.all(np.isfinite(posterior.values["x"]))
    assert ("warmup_posterior" in posterior.groups()) == (warmup > 0)


# -- kinetic energies that overflow ---------------------------------------------------------------

_MATRIX = np.array([[2.0, -1.0], [-1.0, 2.0]], np.float32)


def _kinetic_energies(momentum):
    low_rank = _blackjax.metric_core("low_rank", 2, np.float32).init(2).inverse_mass_matrix
    yield from (
        _blackjax._bounded(metric).kinetic_energy(momentum)
        for metric in (jnp.diag(_MATRIX), jnp.asarray(_MATRIX), low_rank)
    )
    yield _numpyro_engine._kinetic(jnp.asarray(_MATRIX), momentum)
    yield _numpyro_engine._kinetic(jnp.diag(_MATRIX), momentum)


def test_an_enormous_momentum_has_infinite_energy():
    """In float32 p' M p sums infinities of either sign: its value may be minus infinity, or NaN."""
    for momentum in ([3e19, 1e19], [3e30, 1e25], [-3e38, 3e38]):
        for energy in _kinetic_energies(jnp.array(momentum, jnp.float32)):
            assert float(energy) == np.inf


def test_a_usual_momentum_keeps_its_energy():
    momentum = np.array([0.3, -0.5], np.float32)
    dense = 0.5 * momentum @ _MATRIX @ momentum
    diagonal = 0.5 * np.sum(np.diag(_MATRIX) * momentum**2)
    identity = 0.5 * momentum @ momentum
    found = [float(e) for e in _kinetic_energies(jnp.asarray(momentum))]
    np.testing.assert_allclose(found, [diagonal, dense, identity, dense, diagonal], rtol=1e-5)


# -- eight schools --------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["auto", "dense"])
def test_no_chain_of_eight_schools_is_lost(metric):
    """A chain that accepts a point of energy minus infinity never comes back."""
    for seed in range(4):
        posterior = _fit(schools_target(), seed, metric=metric, draws=400, warmup=1000)
        assert posterior.stats["diverging"].sum(axis=1).max() < 40
        assert np.all(np.isfinite(posterior.stats["energy"]))
        assert posterior.stats["lp"].min() > -100


def test_the_log_evidence_of_eight_schools():
    """Three standard errors on each of three seeds: a false alarm in 120 choices of seeds."""
    for seed in range(3):
        evidence = _fit(schools_target(), seed, draws=1000, warmup=1000).log_evidence
        gap = abs(evidence.value - SCHOOLS_EVIDENCE)
        assert gap < 0.10 and gap < 3 * evidence.se, evidence


# -- calibration ----------------------------------------------------------------------------------
#
# Simulation-based calibration (Talts et al. 2018): with parameters from the prior and data from
# the model, the rank of a parameter among posterior draws is uniform. Each test compares one
# parameter's ranks in 8 bins with chi-square at level 1e-4: 7 parameters in all, so that a choice
# of seeds fails by chance with probability 7e-4.

_ROWS = 10


def _location_scale():
    return pk.Model(
        mu=pk.dist.Normal(0, 2),
        sigma=pk.dist.LogNormal(0, 0.5),
        y=pk.rv(lambda mu, sigma: pk.dist.Normal(mu, sigma), dims="row"),
    )


def _poisson():
    return pk.Model(
        a=pk.dist.Normal(1, 0.5),
        b=pk.dist.Normal(0, 0.5),
        y=pk.rv(lambda a, b, x: pk.dist.Poisson(jnp.exp(a + b * x)), dims="row"),
    )


def _hierarchy():
    return pk.Model(
        mu=pk.dist.Normal(0, 1),
        tau=pk.dist.HalfNormal(1),
        theta=pk.rv(lambda mu, tau: pk.dist.Normal(mu, tau), dims="row"),
        y=pk.rv(lambda theta: pk.dist.Normal(theta, 1.0), dims="row"),
    )


MODELS = {
    "location-scale": (_location_scale, ("mu", "sigma")),
    "poisson": (_poisson, ("a", "b")),
    "hierarchy": (_hierarchy, ("mu", "tau", "theta")),
}


def _ranks(name: str, fits: int) -> dict[str, np.ndarray]:
    make, parameters = MODELS[name]
    model, x = make(), np.linspace(-1, 1, _ROWS)
    data = {"x": x} if name == "poisson" else {}
    kind = int if name == "poisson" else float
    sizes = model.bind({**data, "y": np.ones(_ROWS, kind)}, reparam="off")
    keys = jax.random.split(jax.random.key(20), fits)
    simulate = jax.jit(jax.vmap(lambda k: sizes.program.simulate(k, {}, sizes.arrays)))
    prior = {k: np.asarray(v) for k, v in simulate(keys).items()}
    method = pk.NUTS(draws=63 * 5, warmup=250, chains=1, metric="diag", target_accept=0.9)
    ranks: dict[str, list[int]] = {k: [] for k in parameters}
    for i in range(fits):
        target = model.bind({**data, "y": prior["y"][i].astype(kind)}, reparam="off")
        values = _values(run(target, method, i).output, target)
        for k in parameters:
            draws, truth = values[k][0, ::5], prior[k][i]
            if k == "theta":
                draws, truth = draws[:, 0], truth[0]
            ranks[k].append(int(np.sum(draws < truth)))
    return {k: np.array(v) for k, v in ranks.items()}


def _values(output, target):
    from probkit.results._values import constrained

    return constrained(target, output.unconstrained, np.zeros(2, np.uint32))


def _calibrated(name: str, fits: int) -> None:
    for parameter, ranks in _ranks(name, fits).items():
        counts = np.bincount(ranks // 8, minlength=8)
        expected = fits / 8
        statistic = float(np.sum((counts - expected) ** 2 / expected))
        assert chi2.sf(statistic, 7) > 1e-4, (parameter, counts)


def test_calibration_small():
    _calibrated("location-scale", 80)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_calibration(name):
    _calibrated(name, 400)


@pytest.mark.parametrize("engine", ["blackjax", "numpyro"])
def test_an_identity_metric_learns_the_step_size_alone(engine):
    # Scales of 0.1 and 10: with a metric learnt, a step is of the order of one.
    model = pk.Model(x=pk.dist.Normal(0.0, np.array([0.1, 10.0])))
    options = {"draws": 200, "warmup": 150, "chains": 2, "engine": engine}
    fits = {
        metric: pk.fit(model, {}, method=pk.NUTS(metric=metric, **options), progress=False)
        for metric in ("identity", "diag")
    }
    steps = {k: float(np.mean(f.stats["step_size"])) for k, f in fits.items()}
    assert steps["identity"] < 0.3 < steps["diag"]
    sd = fits["identity"].values["x"].std(axis=(0, 1))
    assert 0.07 < sd[0] < 0.13 and 6.0 < sd[1] < 15.0
    assert Schedule(150, "identity").ends.max() == -1
