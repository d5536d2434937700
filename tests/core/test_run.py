"""The driver: keys, chunks, endings, callbacks, mini-batches, wrappers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import (
    Batches,
    Callback,
    Checkpoint,
    Progress,
    Status,
    Target,
    Thin,
    TimeLimit,
    key_data,
    run,
)
from probkit.core import _run as driver
from tests.core.walk import Walk, by_hand, normal_target
from tests.counting import Compiles

_TARGET = normal_target()


@functools.cache
def whole():
    return run(_TARGET, Walk(), 5)


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 5, 2**31, 2**32 - 1])
def test_key_data_equals_jax(seed):
    np.testing.assert_array_equal(key_data(seed), jax.random.key_data(jax.random.key(seed)))
    np.testing.assert_array_equal(key_data(seed), key_data(np.int64(seed)))
    np.testing.assert_array_equal(key_data(seed), key_data(jax.random.key(seed)))


def test_wide_seeds_equal_jax_in_float64():
    with jax.enable_x64(True):
        wide = jax.random.key_data(jax.random.key(2**40 + 3))
    np.testing.assert_array_equal(key_data(2**40 + 3), wide)


@pytest.mark.parametrize(
    ("seed", "error", "words"),
    [
        (-1, ValueError, "at least 0"),
        (2**64, ValueError, "below"),
        (1.5, TypeError, "whole number"),
        (True, TypeError, "whole number"),
        ("0", TypeError, "whole number"),
        (jnp.zeros(2, jnp.uint32), TypeError, "typed key"),
        (jax.random.split(jax.random.key(0)), TypeError, "one typed key"),
        (jax.random.key(0, impl="rbg"), TypeError, "rbg"),
    ],
)
def test_bad_seeds(seed, error, words):
    with pytest.raises(error, match=words):
        key_data(seed)


def test_each_step_has_the_key_of_its_number_and_chain():
    draws = whole().output.unconstrained
    for chain in range(3):
        expected = by_hand(key_data(5), chain, 100, 2)
        np.testing.assert_allclose(draws[chain], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(whole().output.stats["t"], np.tile(np.arange(100), (3, 1)))


def test_seed_and_typed_key_are_the_same():
    again = run(_TARGET, Walk(), jax.random.key(5)).output
    np.testing.assert_array_equal(again.unconstrained, whole().output.unconstrained)


# -- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_the_length_of_chunks_changes_nothing(monkeypatch, seconds):
    monkeypatch.setattr(driver, "_CHUNK_SECONDS", seconds)
    count = _Count()
    again = run(_TARGET, Walk(), 5, callbacks=[count])
    np.testing.assert_array_equal(again.output.unconstrained, whole().output.unconstrained)
    assert count.steps == 100
    assert (count.chunks > 60) if seconds < 1 else (count.chunks <= 3)


def test_the_capacity_of_the_program_changes_nothing(monkeypatch):
    monkeypatch.setattr(driver, "_CHUNK_BYTES", 1)
    again = run(normal_target(), Walk(), 5)
    np.testing.assert_array_equal(again.output.unconstrained, whole().output.unconstrained)


def test_one_run_compiles_two_programs(monkeypatch):
    monkeypatch.setenv("PROBKIT_CACHE", "off")
    with Compiles() as counter:
        run(normal_target(7), Walk(), 0)
    assert counter.count == 2


# -- endings --------------------------------------------------------------------------------------


class _Count(Callback):
    def __init__(self):
        self.chunks = self.steps = 0
        self.log: list[str] = []
        self.infos: list[np.ndarray] = []

    def start(self, total, warmup, t):
        self.log.append(f"start {total} {warmup} {t}")

    def __call__(self, progressed):
        self.chunks += 1
        self.steps = progressed.t
        self.infos.append(progressed.infos["t"])
        return None

    def stop(self):
        self.log.append("stop")


class _At(Callback):
    """Does something once a step is reached."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def __call__(self, progressed):
        return self.action() if progressed.t >= self.step else None


def _raise(error):
    raise error


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(driver, "_CHUNK_SECONDS", 1e-9)


def _goes_on(broken):
    assert 0 < broken.steps < 100
    np.testing.assert_array_equal(
        broken.output.unconstrained, whole().output.unconstrained[:, : broken.steps]
    )
    rest = run(_TARGET, Walk(), 5, resume=broken.snapshot)
    assert rest.status is Status.OK
    np.testing.assert_array_equal(rest.output.unconstrained, whole().output.unconstrained)


def test_time_limit_keeps_what_was_computed(short_chunks):
    broken = run(_TARGET, Walk(), 5, callbacks=[TimeLimit(1e-9)])
    assert broken.status is Status.TIME_LIMIT and "time limit" in broken.status.message
    _goes_on(broken)


def test_a_callback_may_stop_the_run(short_chunks):
    broken = run(_TARGET, Walk(), 5, callbacks=[_At(50, lambda: Status.STOPPED)])
    assert broken.status is Status.STOPPED and broken.steps == 50
    _goes_on(broken)


def test_an_interrupt_keeps_what_was_computed(short_chunks):
    seen = _Count()
    broken = run(_TARGET, Walk(), 5, callbacks=[_At(40, lambda: _raise(KeyboardInterrupt)), seen])
    assert broken.status is Status.INTERRUPTED
    assert seen.log[-1] == "stop"
    _goes_on(broken)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_amid_recording_never_mixes_steps(short_chunks, monkeypatch, when):
    """A signal is delivered while the driver waits for the device, between two of its lines."""
    record = driver._Driver._record
    calls = []

    def interrupted(self, *args):
        calls.append(None)
        if len(calls) == 3 and when == "before":
            raise KeyboardInterrupt
        out = record(self, *args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(driver._Driver, "_record", interrupted)
    broken = run(_TARGET, Walk(), 5)
    assert broken.status is Status.INTERRUPTED
    monkeypatch.undo()
    _goes_on(broken)


def test_an_interrupt_before_the_first_step_is_an_interrupt():
    class Now(Callback):
        def start(self, total, warmup, t):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(_TARGET, Walk(), 5, callbacks=[Now()])


def test_a_callback_that_raises_loses_nothing(short_chunks, tmp_path):
    """The error is the caller's; every callback is stopped and the checkpoint is written."""
    seen = _Count()
    fault = _At(45, lambda: _raise(RuntimeError("disk full")))
    with pytest.raises(RuntimeError, match="disk full"):
        run(_TARGET, Walk(), 5, callbacks=[seen, fault, Checkpoint(tmp_path, every=1e9)])
    assert seen.log == ["start 100 0 0", "stop"]
    rest = run(_TARGET, Walk(), 5, resume=tmp_path, callbacks=[later := _Count()])
    assert later.log[0] == "start 100 0 45"
    np.testing.assert_array_equal(rest.output.unconstrained, whole().output.unconstrained)


def test_a_chain_that_fails_ends_the_run_with_a_status():
    broken = run(_TARGET, Walk(fail_at=70), 5)
    assert broken.status is Status.NONFINITE and broken.steps == 71
    np.testing.assert_array_equal(broken.output.unconstrained, whole().output.unconstrained[:, :71])


def test_no_starting_point_is_an_error_that_names_the_site():
    model = pk.Model(
        rate=pk.dist.Gamma(2, 1), y=pk.rv(lambda rate: pk.dist.Normal(rate, jnp.nan * rate))
    )
    method = pk.HMC(draws=10, warmup=10, leapfrog=1, chains=1, metric="diag")
    with pytest.raises(ValueError, match="no starting point") as caught:
        pk.fit(model, {"y": 1.0}, method=method, progress=False)
    assert "'y' is never finite" in str(caught.value)


def test_callbacks_see_every_step(capsys):
    seen = _Count()
    run(_TARGET, Walk(), 5, callbacks=[seen, Progress(disable=False, describe="walk")])
    np.testing.assert_array_equal(np.concatenate(seen.infos, axis=1)[1], np.arange(100))
    shown = capsys.readouterr().err
    assert "walk" in shown and "100/100" in shown


def test_more_draws_go_on_from_a_finished_run():
    longer = run(_TARGET, Walk(draws=150), 5)
    rest = run(_TARGET, Walk(draws=150), 5, resume=whole().snapshot)
    np.testing.assert_array_equal(rest.output.unconstrained, longer.output.unconstrained)
    with pytest.raises(ValueError, match="ask for more draws"):
        run(_TARGET, Walk(draws=50), 5, resume=whole().snapshot)


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((None, Walk()), TypeError, "target|Target"),
        ((_TARGET, Walk), TypeError, "method"),
        ((_TARGET, Walk(), 0.5), TypeError, "whole number"),
    ],
)
def test_bad_arguments(args, error, words):
    with pytest.raises(error, match=words):
        run(*args)


@pytest.mark.parametrize("chains", [0, -1])
def test_bad_chains(chains):
    with pytest.raises(ValueError, match="chains"):
        run(_TARGET, Walk(), chains=chains)


def test_time_limit_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        TimeLimit(0.0)


# -- mini-batches ---------------------------------------------------------------------------------

_ROWS = pk.Model(
    mu=pk.dist.Normal(0, 1),
    u=pk.rv(lambda mu: pk.dist.Normal(mu, 1.0), dims="col"),
    y=pk.rv(lambda u: pk.dist.Normal(u[:, None], 1.0), dims=("col", "row")),
)


@functools.cache
def _rows_target() -> Target:
    return _ROWS.bind({"y": np.zeros((10, 10))})


def _batches(**options):
    method = Walk(draws=12, chains=2, rows=Batches(**options))
    return run(_rows_target(), method, 5)


def test_each_epoch_takes_each_row_once():
    index = _batches(size=5, dim="row").output.stats["index"]
    assert index.shape == (2, 12, 5)
    np.testing.assert_array_equal(index[0], index[1])
    epochs = index[0].reshape(6, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(e) for e in epochs}) > 1


def test_the_last_incomplete_batch_is_dropped():
    epochs = _batches(size=4, dim="row").output.stats["index"][0].reshape(6, 8)
    assert all(len(set(e)) == 8 for e in epochs.tolist())
    assert len(set(epochs.ravel().tolist())) == 10


def test_a_step_may_take_several_batches():
    several = _batches(size=2, dim="row", per_step=3).output.stats["index"][0]
    one = run(_rows_target(), Walk(draws=36, rows=Batches(2, "row")), 5).output.stats["index"][0]
    np.testing.assert_array_equal(several.reshape(36, 2), one)


def test_batches_do_not_depend_on_chunks_or_resuming(short_chunks):
    expected = _batches(size=5, dim="row").output.stats["index"]
    method = Walk(draws=12, chains=2, rows=Batches(5, "row"))
    short = Walk(draws=7, chains=2, rows=Batches(5, "row"))
    broken = run(_rows_target(), short, 5)
    # The checkpoint's key decides, whatever seed is passed.
    rest = run(_rows_target(), method, 77, resume=broken.snapshot)
    np.testing.assert_array_equal(rest.output.stats["index"], expected)


def test_the_dim_of_the_batches_is_part_of_the_program():
    """Two dims of equal sizes: the second run must not be given the program of the first."""
    method = pk.SGLD(draws=5, warmup=0, chains=1, step_size=1e-3)
    target = _ROWS.bind({"y": np.arange(100.0).reshape(10, 10)})
    draws = {
        dim: run(target, method, 5, batches=Batches(5, dim)).output.unconstrained
        for dim in ("row", "col")
    }
    assert not np.array_equal(draws["row"], draws["col"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 11, "dim": "row"}, "expected 1 to 10"),
        ({"size": 0, "dim": "row"}, "expected 1 to 10"),
        ({"size": 2, "dim": "rows"}, "Did you mean 'row'"),
    ],
)
def test_bad_batches(options, words):
    with pytest.raises(ValueError, match=words):
        _batches(**options)


def test_batches_need_a_named_dim():
    with pytest.raises(ValueError, match="dims="):
        run(_TARGET, Walk(rows=Batches(2)), 5)


# -- the thinning wrapper -------------------------------------------------------------------------


def test_thin_keeps_every_nth_step():
    thin = Thin(Walk(draws=60), every=3)
    assert (thin.num_steps, thin.num_warmup, thin.chains) == (20, 0, 3)
    out = run(_TARGET, thin, 5).output
    assert out.unconstrained.shape == (3, 20, 2)
    np.testing.assert_array_equal(out.stats["t"][0], 3 * np.arange(20) + 2)
    steps = np.diff(out.unconstrained, axis=1)
    # A thinned walk's steps are the sums of three: their sd is sqrt(3) of one's.
    assert 1.2 < steps.std() < 2.4


def test_thin_has_warmup_and_resumes():
    method = Thin(pk.HMC(draws=40, warmup=20, leapfrog=2, metric="diag", chains=2), every=2)
    full = run(_TARGET, method, 1)
    assert full.output.unconstrained.shape == (2, 20, 2) and full.output.warmup.shape[1] == 10
    short = Thin(pk.HMC(draws=20, warmup=20, leapfrog=2, metric="diag", chains=2), every=2)
    rest = run(_TARGET, method, 1, resume=run(_TARGET, short, 1).snapshot)
    np.testing.assert_array_equal(rest.output.unconstrained, full.output.unconstrained)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Thin(Walk(draws=10), every=3), ValueError, "multiples"),
        (lambda: Thin(Walk(), every=0), ValueError, "at least 1"),
        (lambda: Thin(Walk(rows=Batches(2)), every=2), ValueError, "mini-batches"),
        (lambda: Thin(Walk, every=2), TypeError, "method"),
        (lambda: run(_TARGET, Thin(pk.Laplace(), every=2)), ValueError, "no draws"),
    ],
)
def test_bad_thin(make, error, words):
    with pytest.raises(error, match=words):
        make()
