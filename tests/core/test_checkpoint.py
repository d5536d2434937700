"""Checkpoints: whatever instruction a run is killed at, it goes on bit for bit."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import probkit as pk
from probkit.core import Callback, Checkpoint, Status, run
from probkit.core import _checkpoint as files
from probkit.core import _run as driver
from probkit.core._callbacks import Progressed
from probkit.core._checkpoint import CheckpointFile, Snapshot
from tests.core import killed
from tests.core.walk import Walk, normal_target

_ROOT = Path(__file__).resolve().parents[2]
_TARGET = normal_target()


# -- kill -9 --------------------------------------------------------------------------------------


@functools.cache
def unbroken():
    return run(killed.target(), killed.method(), 11).output


def _kill_and_resume(folder: Path, rng: np.random.Generator) -> int:
    """Kills a run at a random step and instant; returns the step its checkpoint is at."""
    command = [sys.executable, "-m", "tests.core.killed", str(folder)]
    child = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
    last = int(rng.integers(33, 190))
    try:
        for line in child.stdout:
            if int(line) >= last:
                break
        time.sleep(rng.uniform(0.0, 0.015))
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    reached = CheckpointFile(folder).read().t
    rest = run(killed.target(), killed.method(), 11, resume=folder)
    assert rest.status is Status.OK
    np.testing.assert_array_equal(rest.output.warmup, unbroken().warmup)
    np.testing.assert_array_equal(rest.output.unconstrained, unbroken().unconstrained)
    for name, value in unbroken().stats.items():
        np.testing.assert_array_equal(rest.output.stats[name], value)
    return reached


def test_killed_runs_go_on_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    reached = [_kill_and_resume(tmp_path / str(i), rng) for i in range(2)]
    assert all(32 <= t < 200 for t in reached)


@pytest.mark.slow
def test_twenty_killed_runs_go_on_bit_for_bit(tmp_path):
    rng = np.random.default_rng(1)
    reached = [_kill_and_resume(tmp_path / str(i), rng) for i in range(20)]
    assert len(set(reached)) > 10


# -- every instruction of a write -----------------------------------------------------------------


class _Kill(Exception):
    pass


@pytest.mark.parametrize("survive", range(6))
def test_a_write_cut_short_leaves_the_last_complete_state(tmp_path, monkeypatch, survive):
    """Each rename is the last thing done before the process dies; the folder stays readable."""
    monkeypatch.setattr(driver, "_CHUNK_SECONDS", 1e-9)
    whole = run(_TARGET, Walk(), 5).output.unconstrained
    renames = []
    replace = os.replace

    def counted(source, destination):
        if len(renames) > survive + 2:
            raise _Kill
        renames.append(Path(destination).name)
        replace(source, destination)

    monkeypatch.setattr(files.os, "replace", counted)
    with pytest.raises(_Kill):
        run(_TARGET, Walk(), 5, callbacks=[Checkpoint(tmp_path, every=0.0)])
    monkeypatch.undo()
    assert "state.npz" in renames
    rest = run(_TARGET, Walk(), 5, resume=tmp_path, callbacks=[Checkpoint(tmp_path, every=0.0)])
    np.testing.assert_array_equal(rest.output.unconstrained, whole)
    again = CheckpointFile(tmp_path).read()
    assert again.t == 100
    np.testing.assert_array_equal(again.history["position"], whole)


def test_a_new_run_does_not_spoil_the_old_checkpoint_until_it_has_one(tmp_path, monkeypatch):
    old = run(_TARGET, Walk(), 5, callbacks=[Checkpoint(tmp_path)]).output.unconstrained
    save, calls = files._save, []

    def cut_short(path, arrays):
        calls.append(path.name)
        if path.name == "state.npz":
            raise _Kill
        save(path, arrays)

    monkeypatch.setattr(files, "_save", cut_short)
    with pytest.raises(_Kill):
        run(_TARGET, Walk(), 6, callbacks=[Checkpoint(tmp_path)])
    monkeypatch.undo()
    assert len(calls) >= 2
    np.testing.assert_array_equal(CheckpointFile(tmp_path).read().history["position"], old)
    new = run(_TARGET, Walk(), 6, callbacks=[Checkpoint(tmp_path)]).output.unconstrained
    np.testing.assert_array_equal(CheckpointFile(tmp_path).read().history["position"], new)
    assert len(list(tmp_path.glob("history-*"))) == 1  # the old run's pieces are gone
    assert not list(tmp_path.glob("*.tmp"))


# -- what is written ------------------------------------------------------------------------------


def test_history_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_CHUNK_SECONDS", 1e-9)
    run(_TARGET, Walk(), 5, callbacks=[Checkpoint(tmp_path, every=0.0)])
    pieces = sorted(tmp_path.glob("history-*.npz"))
    spans = sorted(tuple(map(int, p.stem.split("-")[-2:])) for p in pieces)
    assert spans[0][0] == 0 and spans[-1][1] == 100
    assert all(a[1] == b[0] for a, b in zip(spans[:-1], spans[1:], strict=True))


def test_a_rare_checkpoint_is_still_written_at_the_end(tmp_path):
    done = run(_TARGET, Walk(), 5, callbacks=[Checkpoint(tmp_path, every=1e9)])
    assert CheckpointFile(tmp_path).read().t == 100
    rest = run(_TARGET, Walk(), 5, resume=tmp_path)
    np.testing.assert_array_equal(rest.output.unconstrained, done.output.unconstrained)


@pytest.mark.parametrize("end", ["time limit", "interrupt"])
def test_a_run_that_ends_early_is_written_whole(tmp_path, monkeypatch, end):
    monkeypatch.setattr(driver, "_CHUNK_SECONDS", 1e-9)

    class Interrupt(Callback):
        def __call__(self, progressed):
            if progressed.t > 40:
                raise KeyboardInterrupt

    early = pk.TimeLimit(1e-9) if end == "time limit" else Interrupt()
    # After the checkpoint in the list: the checkpoint has been asked before the end is known.
    broken = run(_TARGET, Walk(), 5, callbacks=[Checkpoint(tmp_path, every=1e9), early])
    assert not broken.status.ok
    assert CheckpointFile(tmp_path).read().t == broken.steps < 100


def test_resuming_in_the_same_folder_or_another(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_CHUNK_SECONDS", 1e-9)
    whole = run(_TARGET, Walk(), 5).output.unconstrained
    broken = run(_TARGET, Walk(), 5, callbacks=[Checkpoint(tmp_path / "a"), pk.TimeLimit(1e-9)])
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "state.npz").write_bytes(b"not a checkpoint")
    for folder in ("a", "b", "damaged"):
        hooks = [Checkpoint(tmp_path / folder, every=0.0)]
        resume = tmp_path / "a" if folder == "a" else broken.snapshot
        run(_TARGET, Walk(), 5, resume=resume, callbacks=hooks)
        found = CheckpointFile(tmp_path / folder).read()
        np.testing.assert_array_equal(found.history["position"], whole)


def test_a_snapshot_at_the_step_of_another_seed_begins_anew(tmp_path):
    """The folder is at the same step of the same method, but of another seed."""
    run(_TARGET, Walk(draws=60), 6, callbacks=[Checkpoint(tmp_path)])
    snapshot = run(_TARGET, Walk(draws=60), 5).snapshot
    rest = run(_TARGET, Walk(), 5, resume=snapshot, callbacks=[Checkpoint(tmp_path)])
    found = CheckpointFile(tmp_path).read()
    np.testing.assert_array_equal(found.history["position"], rest.output.unconstrained)


# -- another run's checkpoint ---------------------------------------------------------------------


def _line(scale: float = 1.0, draws: int = 40, **options):
    model = pk.Model(
        mu=pk.dist.Normal(0, scale), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1.0), dims="row")
    )
    data = options.pop("y", np.arange(4.0))
    method = pk.HMC(
        **{"draws": draws, "warmup": 20, "chains": 2, "leapfrog": 2, "metric": "diag", **options}
    )
    return model.bind({"y": data}), method


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    return run(*_line(), 5).snapshot


@pytest.mark.parametrize(
    "other",
    [
        {"scale": 2.0},
        {"y": np.array([0.0, 1.0, 2.0, 3.5])},
        {"y": np.arange(5.0)},
        {"target_accept": 0.9},
        {"warmup": 21},
        {"leapfrog": 3},
        {"metric": "dense"},
        {"chains": 3},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_checkpoint_of_another_run_is_refused(snapshot, other):
    with pytest.raises(ValueError, match="belongs to another run"):
        run(*_line(**other), 5, resume=snapshot)


def test_only_draws_may_differ(snapshot):
    longer = run(*_line(draws=60), 5)
    rest = run(*_line(draws=60), 5, resume=snapshot)
    np.testing.assert_array_equal(rest.output.unconstrained, longer.output.unconstrained)


def test_thin_may_go_on_with_more_draws():
    short, long = (pk.Thin(Walk(draws=n), every=2) for n in (20, 40))
    rest = run(_TARGET, long, 5, resume=run(_TARGET, short, 5).snapshot)
    whole = run(_TARGET, long, 5)
    np.testing.assert_array_equal(rest.output.unconstrained, whole.output.unconstrained)


# -- faults ---------------------------------------------------------------------------------------


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="found no checkpoint"):
        run(_TARGET, Walk(), 5, resume=tmp_path)


@pytest.mark.parametrize("damage", ["state", "piece", "missing piece"])
def test_a_damaged_folder_is_an_error(tmp_path, damage):
    run(_TARGET, Walk(), 5, callbacks=[Checkpoint(tmp_path)])
    piece = next(tmp_path.glob("history-*"))
    if damage == "missing piece":
        piece.unlink()
    else:
        path = tmp_path / "state.npz" if damage == "state" else piece
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        run(_TARGET, Walk(), 5, resume=tmp_path)


def test_bad_interval(tmp_path):
    with pytest.raises(ValueError, match="at least 0"):
        Checkpoint(tmp_path, every=-1.0)


def test_a_checkpoint_that_saw_nothing_writes_nothing(tmp_path):
    hook = Checkpoint(tmp_path / "run")
    hook.start(10, 0, 0)
    hook.stop()
    assert not (tmp_path / "run").exists()
    told = Progressed(3, 10, 0, 0.1, {}, lambda: pytest.fail("not due yet"))
    Checkpoint(tmp_path / "run", every=1e9)(told)
