"""Checkpoints: the state of a run as files that survive a kill at any instruction.

A checkpoint is a folder with one ``state.npz`` (replaced atomically) and history pieces
``history-TAG-A-B.npz`` that hold the infos of steps A to B; every run that begins in the folder has
a tag of its own, so that it never writes over pieces that the last complete state still needs. A
piece is complete before the state that refers to it is renamed into place, so whatever a kill
leaves behind, ``state.npz`` and its pieces are consistent. Other pieces belong to a write that was
cut short or to an older run; the next complete write removes them.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything that a run needs to go on: host arrays only.

    Attributes:
        t: steps done.
        leaves: leaves of the state of all chains.
        history: infos by name, shape ``(chain, t, ...)``.
        key: raw key data of the run.
        told: gives the fingerprint. It takes tracing the density, which most runs never need.
    """

    t: int
    leaves: list[np.ndarray]
    history: dict[str, np.ndarray]
    key: np.ndarray
    told: Callable[[], str]

    @property
    def fingerprint(self) -> str:
        """What the run was (program, method, data); resuming checks it."""
        return self.told()


class CheckpointFile:
    """A folder that holds one run's checkpoint."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._forget()

    def write(self, snapshot: Snapshot) -> None:
        """Write the snapshot; only the history since the last write is written again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self._run != _identity(snapshot)
        if new:
            self._forget()
            self._run = _identity(snapshot)
        begin = self._written[-1]
        if snapshot.t > begin:
            piece = {k: v[:, begin : snapshot.t] for k, v in snapshot.history.items()}
            _save(self._piece(begin, snapshot.t), piece)
            self._written.append(snapshot.t)
        state: dict[str, Any] = {f"leaf{i}": x for i, x in enumerate(snapshot.leaves)}
        state["t"] = np.int64(snapshot.t)
        state["key"] = snapshot.key
        state["bounds"] = np.asarray(self._written, np.int64)
        state["fingerprint"] = np.frombuffer(snapshot.fingerprint.encode(), np.uint8)
        state["tag"] = np.frombuffer(self._tag.encode(), np.uint8)
        _save(self.folder / "state.npz", state)
        if new:
            self._tidy()

    def resume_from(self, snapshot: Snapshot) -> None:
        """Go on in this folder after `read`; a folder that holds another run is begun anew."""
        try:
            same = self.read().t == snapshot.t and self._run == _identity(snapshot)
        except ValueError:
            same = False
        if not same:
            self._forget()

    def _forget(self) -> None:
        self._written: list[int] = [0]
        self._run: tuple[str, bytes] | None = None
        self._tag = secrets.token_hex(4)

    def _piece(self, begin: int, end: int) -> Path:
        return self.folder / f"history-{self._tag}-{begin}-{end}.npz"

    def _tidy(self) -> None:
        bounds = zip(self._written[:-1], self._written[1:], strict=True)
        needed = {self._piece(a, b) for a, b in bounds}
        for path in [*self.folder.glob("history-*.npz"), *self.folder.glob("*.tmp")]:
            if path not in needed:
                path.unlink(missing_ok=True)

    def read(self) -> Snapshot:
        """The last complete snapshot; a ValueError says what is wrong with the folder."""
        path = self.folder / "state.npz"
        if not path.exists():
            raise ValueError(
                f"resume: found no checkpoint in {str(self.folder)!r} (no state.npz); pass the "
                "folder that Checkpoint(path) wrote to, or start afresh without resume="
            )
        try:
            state = _load(path)
            bounds = [int(b) for b in state["bounds"]]
            self._tag = state["tag"].tobytes().decode()
            pieces = [
                _load(self._piece(a, b)) for a, b in zip(bounds[:-1], bounds[1:], strict=True)
            ]
        except (OSError, KeyError, zipfile.BadZipFile, ValueError) as error:
            raise ValueError(
                f"resume: the checkpoint in {str(self.folder)!r} cannot be read ({error}); "
                "delete the folder and start afresh"
            ) from error
        names = pieces[0].keys() if pieces else ()
        history = {k: np.concatenate([p[k] for p in pieces], axis=1) for k in names}
        leaves = [state[f"leaf{i}"] for i in range(sum(k.startswith("leaf") for k in state))]
        fingerprint = state["fingerprint"].tobytes().decode()
        snapshot = Snapshot(int(state["t"]), leaves, history, state["key"], lambda: fingerprint)
        self._written, self._run = bounds, _identity(snapshot)
        return snapshot


def _identity(snapshot: Snapshot) -> tuple[str, bytes]:
    return snapshot.fingerprint, snapshot.key.tobytes()


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(handle.name, path)


def _load(path: Path) -> dict[str, np.ndarray]:
    # Opened here, for NumPy does not close what it cannot read.
    with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
        return {k: file[k] for k in file.files}
