"""The battery of the methods for Gaussian processes; its rows are `PROCESSES` in `registry.py`.

The problem is a regression on a process with everything but the function known, so that the
posterior and the evidence have closed forms; each method is given what makes it exact for that.
(How hyperparameters are learnt is tested method by method.) The slow part of the battery is what
costs another compilation.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Callback, Status
from tests.counting import Compiles
from tests.registry import CURVES, PROCESS_COORDS, PROCESSES, ProcessRow, curve, process

every = pytest.mark.parametrize("row", PROCESSES, ids=lambda row: row.name)


def _rows(quick: str) -> Any:
    """All rows, those that are not quick marked slow."""
    marked = [
        pytest.param(r, marks=[] if r.quick and getattr(r, quick) else [pytest.mark.slow])
        for r in PROCESSES
    ]
    return pytest.mark.parametrize("row", marked, ids=[r.name for r in PROCESSES])


fits, grouped = _rows("quick"), _rows("groups")
slow = pytest.mark.slow


def fit(row: ProcessRow, change: str = "identity", seed: Any = 0, **more: Any) -> pk.Posterior:
    data = CURVES[change](curve())
    method = row.make(data)
    return pk.fit(
        process(row.shares),
        data.data,
        coords=PROCESS_COORDS,
        method=method,
        seed=seed,
        progress=False,
        **more,
    )


@functools.cache
def fitted(row: ProcessRow, change: str = "identity") -> pk.Posterior:
    return fit(row, change)


@fits
@pytest.mark.parametrize("change", CURVES)
def test_right_answer_in_any_order_and_place(row, change):
    truth, found = CURVES[change](curve()), fitted(row, change)
    stats = found.approximation.stats
    assert found.status is Status.OK and found.check().ok
    assert abs(stats["log_evidence"] - truth.log_evidence) < row.tolerance
    for k, share in enumerate(row.shares):
        mean, sd = (np.atleast_2d(stats[name])[k] for name in ("f_mean", "f_sd"))
        np.testing.assert_allclose(mean, share * truth.mean, atol=row.tolerance)
        np.testing.assert_allclose(sd, truth.sd(share), atol=row.tolerance)
    # Leave-one-out densities: those of a regression on the other rows.
    inverse = np.linalg.inv(truth.noisy)
    var = 1.0 / np.diag(inverse)
    loo = -0.5 * (np.log(2 * np.pi * var) + (inverse @ (truth.y - 0.5)) ** 2 * var)
    np.testing.assert_allclose(stats["loo_i"], loo, atol=10 * row.tolerance)


@fits
def test_draws_are_those_of_the_posterior_and_of_their_seed(row):
    values, truth = fitted(row).values[row.site][0], curve()
    mean, sd = row.shares[0] * truth.mean, truth.sd(row.shares[0])
    mean = mean - (0.5 if row.site == "f_inducing" else 0.0)
    # 20 means and sds of 300 draws, within five standard errors.
    assert np.all(np.abs(values.mean(0) - mean) < 5 * sd / np.sqrt(300) + 1e-3)
    assert np.all(np.abs(values.std(0) / sd - 1) < 5 / np.sqrt(600))
    np.testing.assert_array_equal(values, fit(row).values[row.site][0])
    other = fit(row, seed=1).values[row.site][0]
    assert not np.any(np.all(values == other, axis=-1))


@fits
def test_a_refit_compiles_nothing(row, monkeypatch):
    monkeypatch.setenv("PROBKIT_CACHE", "off")
    fit(row).check()
    new = curve(seed=7)
    with Compiles() as counter:
        again = pk.fit(
            process(row.shares),
            new.data,
            coords=PROCESS_COORDS,
            method=row.make(new, draws=300),
            seed=5,
            progress=True,
        )
        again.check()
    assert counter.count == 0


class StopAt(Callback):
    """Ends the run at the first chunk that ends at or after a step."""

    def __call__(self, progressed):
        return Status.STOPPED if progressed.t >= 1 else None


@fits
def test_resuming_changes_nothing(row):
    broken = fit(row, callbacks=[StopAt()])
    rest = fit(row, resume=broken.state)
    whole = fitted(row)
    assert rest.status is Status.OK
    # Sites that are searched for, not known, move by rounding errors when they are looked at again.
    room = 0.0 if len(row.shares) == 1 else 1e-12
    np.testing.assert_allclose(rest.values[row.site], whole.values[row.site], rtol=0, atol=room)


@grouped
def test_arviz_groups_are_complete(row):
    groups = fitted(row).groups()
    assert set(groups) >= {
        "posterior",
        "log_likelihood",
        "log_prior",
        "unconstrained_posterior",
        "prior",
        "prior_predictive",
        "posterior_predictive",
        "observed_data",
        "constant_data",
    }
    dim = "row" if row.site == "f" else "inducing"
    assert groups["posterior"][row.site].dims == ("chain", "draw", dim)
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive"):
        variable = groups[group]["y"]
        assert variable.dims == ("chain", "draw", "row")
        assert [str(c) for c in variable.coords["row"].values] == PROCESS_COORDS["row"]


@slow
@every
def test_float32(row):
    """Single precision where the model asks for it: no NaN, and the answer to four digits."""
    truth, model = curve(), process(row.shares, precision="single")
    found = pk.fit(model, truth.data, method=row.make(truth), progress=False)
    assert found.target.dtype == np.float32 and found.values[row.site].dtype == np.float32
    stats = found.approximation.stats
    assert abs(stats["log_evidence"] - truth.log_evidence) < 5e-3
    mean = np.atleast_2d(stats["f_mean"])[0]
    np.testing.assert_allclose(mean, row.shares[0] * truth.mean, atol=2e-3)
    assert not jax.config.jax_enable_x64


@slow
@pytest.mark.parametrize("row", [r for r in PROCESSES if r.eager], ids=lambda row: row.name)
def test_one_step_is_the_same_without_jit(row):
    truth = curve()
    target = process(row.shares).bind(truth.data).without_labels()
    leaves, treedef = jax.tree.flatten(row.make(truth))
    with jax.enable_x64(True):
        leaves = [jnp.asarray(x) for x in leaves]

        def step(leaves):
            method = jax.tree.unflatten(treedef, leaves)
            first, second = jax.random.split(jax.random.key(3))
            start = np.random.default_rng(3) if method.init_on_host else first
            state = jax.tree.map(jnp.asarray, method.init(start, target))
            return method.step(second, target, state, None, jnp.asarray(0))

        compiled = jax.jit(step)(leaves)
        with jax.disable_jit():
            eager = step(leaves)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-5)


@every
def test_bad_options_are_named(row):
    for options, error, words in row.bad:
        with pytest.raises(error, match=words):
            row.make(curve(), **options)
    wrong, right = row.misspelt
    with pytest.raises(TypeError, match=f"{wrong}.*{right}"):
        row.make(curve(), **{wrong: 1})


@every
def test_a_model_without_a_process_is_refused(row):
    model = pk.Model(a=pk.dist.Normal(0, 1), y=pk.rv(lambda a: pk.dist.Normal(a, 1), dims="row"))
    with pytest.raises(ValueError, match="gaussian_latent"):
        pk.fit(model, {"y": np.zeros(4)}, method=row.make(curve()), progress=False)
