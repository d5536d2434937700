"""The battery that every inference method goes through; its rows are in `tests/registry.py`.

False alarms: the seeds are fixed, so a test that passes keeps passing until numbers change. Under
another seed each z-score below exceeds its bound of 5 with probability 6e-7 if the standard errors
were exact; with errors estimated from some hundred effective draws it is below 1e-4, and the whole
battery (about 300 scores) fails by chance less than once in 30 seeds.
"""

from __future__ import annotations

import functools
from typing import Any

import blackjax.util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Batch, Callback, Status, key_data, wrap_key
from probkit.core._run import precision
from probkit.results._diagnostics import ess_bulk, mcse_mean, mcse_sd
from tests.counting import Compiles
from tests.registry import COORDS, DIMS, REGISTRY, ROWS, TERMS, TRANSFORMS, Row, problem, regression
from tests.registry import softplus as softplus_model

_BOUND = 5.0

rows = pytest.mark.parametrize("row", REGISTRY, ids=lambda row: row.name)
eager = pytest.mark.parametrize(
    "row",
    [pytest.param(r, marks=[pytest.mark.slow] if r.slow_eager else []) for r in REGISTRY],
    ids=lambda row: row.name,
)
drawing = pytest.mark.parametrize("row", [r for r in REGISTRY if r.draws], ids=lambda row: row.name)


def fit(row: Row, transform: str = "identity", *, seed: Any = 0, wide: bool = False, **more: Any):
    data = TRANSFORMS[transform](problem()).data
    with jax.enable_x64(wide):
        target = regression.bind(data, coords=COORDS, dims=DIMS)
    method = more.pop("method", None) or row.make()
    return pk.fit(target, method=method, seed=seed, **{"progress": False, **more})


@functools.cache
def fitted(row: Row, transform: str = "identity", wide: bool = False):
    return fit(row, transform, wide=wide)


def scores(values: np.ndarray, mean: np.ndarray, cov: np.ndarray, slack: tuple[float, float]):
    """z-scores of means and sds against the truth, with what is allowed beyond noise removed."""
    values = np.asarray(values, np.float64)
    sd = np.sqrt(np.diag(cov))
    far = np.abs(values.mean(axis=(0, 1)) - mean) - slack[0] * sd
    wide = np.abs(values.std(axis=(0, 1)) - sd) - slack[1] * sd
    return np.concatenate([far / mcse_mean(values), wide / mcse_sd(values)])


# -- the right distribution, whatever the coordinates ---------------------------------------------


@rows
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_right_answer_in_all_coordinates(row, transform):
    truth = TRANSFORMS[transform](problem())
    posterior = fitted(row, transform)
    assert posterior.status is Status.OK
    theta = posterior.values["theta"]
    assert np.all(ess_bulk(theta) > 100)
    assert np.max(scores(theta, truth.mean, row.covariance(truth), row.slack)) < _BOUND


@pytest.mark.parametrize("row", [r for r in REGISTRY if r.nonlinear], ids=lambda row: row.name)
def test_right_answer_through_a_nonlinear_map(row):
    truth = problem()
    posterior = pk.fit(softplus_model, truth.data, method=row.make(), progress=False)
    positive = posterior.values["positive"].astype(np.float64)
    theta = np.log(np.expm1(positive))
    assert np.max(scores(theta, truth.mean, truth.covariance, row.slack)) < _BOUND


# -- numbers do not depend on how they are computed -----------------------------------------------


@eager
def test_one_step_is_the_same_without_jit(row, monkeypatch):
    # blackjax passes a Python number to a function of its own that only jit turns into an array.
    linear_map = blackjax.util.linear_map
    monkeypatch.setattr(
        blackjax.util, "linear_map", lambda a, b, **more: linear_map(jnp.asarray(a), b, **more)
    )
    data = problem().data
    target = regression.bind(data, coords=COORDS, dims=DIMS).without_labels()
    leaves, treedef = jax.tree.flatten(row.make())
    batches = row.make().batches

    def init(key, leaves):
        return jax.tree.unflatten(treedef, leaves).init(key, target)

    def step(key, leaves, state, t):
        batch = None
        if batches is not None:
            batch = Batch("row", jnp.arange(batches.size * batches.per_step) % ROWS)
        return jax.tree.unflatten(treedef, leaves).step(key, target, state, batch, t)

    first, second = jax.random.split(jax.random.key(3))
    leaves = [jnp.asarray(x) for x in leaves]
    state = jax.jit(init)(first, leaves)
    args = (second, leaves, state, jnp.asarray(400))
    compiled = jax.jit(step)(*args)
    with jax.disable_jit():
        eager = step(*args)
    assert jax.tree.structure(compiled) == jax.tree.structure(eager)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=2e-3, atol=2e-3)


@drawing
def test_a_chain_does_not_depend_on_the_number_of_chains(row):
    many = fitted(row)._drawn
    target = fitted(row).target
    one = pk.run(target, row.make(), 0, chains=1).output
    # Equal but for rounding: the compiler orders the sums of one chain and of four differently, and
    # an adapted step size magnifies that from step to step.
    np.testing.assert_allclose(one.warmup[0, :8], many.warmup[0, :8], rtol=1e-2, atol=1e-2)
    assert not np.allclose(one.warmup[0, :8], many.warmup[1, :8], rtol=0.1, atol=0.1)


@rows
def test_float32_and_float64(row):
    truth = problem()
    narrow, wide = fitted(row), fitted(row, wide=True)
    for posterior, dtype in ((narrow, np.float32), (wide, np.float64)):
        assert posterior.target.dtype == dtype
        assert posterior._drawn.unconstrained.dtype == dtype
        assert posterior.values["theta"].dtype == dtype
        assert posterior.attrs["dtype"] == str(np.dtype(dtype))
    assert not jax.config.jax_enable_x64
    found = scores(wide.values["theta"], truth.mean, row.covariance(truth), row.slack)
    assert np.max(found) < _BOUND


@rows
def test_keys_are_used_once(row):
    first, again = fitted(row)._drawn.unconstrained, fit(row)._drawn.unconstrained
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, fit(row, seed=jax.random.key(0))._drawn.unconstrained)
    other = fit(row, seed=1)._drawn.unconstrained
    assert not np.any(np.all(first == other, axis=-1))
    chains = first.shape[0]
    for a in range(chains):
        for b in range(a):
            assert not np.any(np.all(first[a] == first[b], axis=-1)), (a, b)
    moved = np.any(np.diff(first, axis=1) != 0, axis=-1)
    assert moved.mean() > 0.1


# -- interrupting and going on --------------------------------------------------------------------


class StopAt(Callback):
    """Ends the run at the first chunk that ends at or after a step."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, progressed):
        return Status.STOPPED if progressed.t >= self.step else None


@rows
def test_resuming_changes_nothing(row, tmp_path):
    whole = fitted(row)
    broken = fit(row, callbacks=[StopAt(1)], checkpoint=tmp_path / "run")
    if row.draws:
        assert broken.status is Status.STOPPED and 0 < broken.state.t < row.make().num_steps
    for resume in (broken.state, *([tmp_path / "run"] if row.draws else [])):
        # The seed is the checkpoint's, whatever is passed.
        rest = fit(row, resume=resume, seed=99 if row.draws else 0)
        assert rest.status is Status.OK
        np.testing.assert_array_equal(rest._drawn.unconstrained, whole._drawn.unconstrained)
        np.testing.assert_array_equal(rest.values["theta"], whole.values["theta"])
        for name, value in whole.stats.items():
            np.testing.assert_array_equal(rest.stats[name], value)


# -- compile once ---------------------------------------------------------------------------------


def test_the_counter_counts():
    with Compiles() as counter:
        jax.jit(lambda x: x * 3.25 + counter.count)(np.ones(7))
    assert counter.count >= 1


@rows
def test_a_refit_compiles_nothing(row, monkeypatch, capsys):
    # Nothing may come from the disk either: the programs of the first fit are the second's.
    monkeypatch.setenv("PROBKIT_CACHE", "off")
    for chains in sorted({1, row.chains}):
        more = {"chains": chains} if "chains" in _options(row) else {}
        _everything(fit(row, method=row.make(**more)))
        with Compiles() as counter:
            for progress in (False, True):
                new = problem(seed=7).data
                again = pk.fit(
                    regression,
                    new,
                    coords=COORDS,
                    dims=DIMS,
                    method=row.make(**more, **_other(row)),
                    seed=5,
                    progress=progress,
                )
                _everything(again)
        assert counter.count == 0


def _everything(posterior: Any) -> None:
    posterior.check()
    posterior.groups()
    posterior.log_evidence  # noqa: B018
    posterior.loo()


def _options(row: Row) -> set[str]:
    return {"chains"} if row.draws and row.name != "Thin" else set()


def _other(row: Row) -> dict[str, Any]:
    """Other values of options that are traced: they must not compile anything either."""
    if row.name in ("NUTS", "HMC"):
        return {"target_accept": 0.9, "draws": 400, "warmup": 200}
    if row.name.startswith("SGLD"):
        return {"draws": 300, "step_size": 0.003}
    return {}


# -- what the user sees ---------------------------------------------------------------------------


@rows
def test_bad_options_are_named(row):
    for options, error, words in row.bad:
        with pytest.raises(error, match=words):
            row.make(**options)


@rows
def test_a_misspelt_option_names_the_nearest(row):
    wrong, right = row.misspelt
    with pytest.raises(TypeError, match=f"{wrong}.*{right}"):
        row.make(**{wrong: 1})


@rows
def test_a_model_without_latents_is_refused(row):
    model = pk.Model(y=pk.rv(lambda x: pk.dist.Normal(x, 1.0), dims="row"))
    data = {"x": np.zeros(4), "y": np.zeros(4)}
    with pytest.raises(ValueError, match="latents"):
        pk.fit(model, data, method=row.make(), progress=False)


@rows
def test_arviz_groups_are_complete(row):
    posterior = fitted(row)
    groups = posterior.groups()
    expected = {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "log_prior",
        "unconstrained_posterior",
        "prior",
        "prior_predictive",
        "posterior_predictive",
        "observed_data",
        "constant_data",
    }
    if posterior.method.num_warmup:
        expected |= {"warmup_posterior", "warmup_sample_stats"}
    assert set(groups) == expected
    for name, dims in {"theta": ("term",), "fitted": ("row",)}.items():
        variable = groups["posterior"][name]
        assert variable.dims == ("chain", "draw", *dims)
        assert [str(c) for c in variable.coords[dims[0]].values] == COORDS[dims[0]]
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive"):
        assert groups[group]["y"].dims == ("chain", "draw", "row")
    assert groups["observed_data"]["y"].dims == ("row",)
    assert groups["constant_data"]["X"].dims == ("row", "term")
    theta = posterior.values["theta"]
    assert theta.shape[0] == row.chains and theta.shape[2:] == (TERMS,)
    for variable in groups["sample_stats"].data_vars.values():
        assert variable.dims == ("chain", "draw")
        assert np.all(np.isfinite(variable.values))
    if row.draws:
        assert "lp" in groups["sample_stats"]
    assert len(posterior.to_arviz().posterior.draw) == theta.shape[1]


@rows
def test_infos_have_the_declared_names(row):
    """Statistics bear ArviZ's names, so that any method's file is read alike."""
    known = {
        "diverging",
        "energy",
        "lp",
        "acceptance_rate",
        "step_size",
        "tree_depth",
        "n_steps",
        "reached_max_treedepth",
        "log_q",
        "log_weight",
        "log_psis_weight",
    }
    assert set(fitted(row).stats) <= known


def test_key_data_round_trip():
    np.testing.assert_array_equal(
        jax.random.key_data(wrap_key(key_data(7))), jax.random.key_data(jax.random.key(7))
    )


def test_precision_is_restored():
    with jax.enable_x64(True):
        target = regression.bind(problem().data, coords=COORDS, dims=DIMS)
    with precision(target):
        assert jax.config.jax_enable_x64
    assert not jax.config.jax_enable_x64
