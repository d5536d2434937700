"""Checkpoints: the state of a run as files that survive a kill at any instruction.

A checkpoint is a folder with one ``state.npz`` (replaced atomically) and history pieces
``history-A-B.npz`` that hold the infos of steps A to B. A piece is complete before the state that
refers to it is renamed into place, so whatever a kill leaves behind, ``state.npz`` and the pieces
up to its step are consistent. Pieces past it belong to a write that was cut short; they are
ignored and overwritten.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
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
        fingerprint: what the run was (program, method, data); resuming checks it.
    """

    t: int
    leaves: list[np.ndarray]
    history: dict[str, np.ndarray]
    key: np.ndarray
    fingerprint: str


class CheckpointFile:
    """A folder that holds one run's checkpoint."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._written: list[int] = [0]
        self._fingerprint: str | None = None

    def write(self, snapshot: Snapshot) -> None:
        """Write the snapshot; only the history since the last write is written again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._fingerprint != snapshot.fingerprint:
            self._written, self._fingerprint = [0], snapshot.fingerprint
        begin = self._written[-1]
        if snapshot.t > begin:
            piece = {k: v[:, begin : snapshot.t] for k, v in snapshot.history.items()}
            _save(self.folder / f"history-{begin}-{snapshot.t}.npz", piece)
            self._written.append(snapshot.t)
        state: dict[str, Any] = {f"leaf{i}": x for i, x in enumerate(snapshot.leaves)}
        state["t"] = np.int64(snapshot.t)
        state["key"] = snapshot.key
        state["bounds"] = np.asarray(self._written, np.int64)
        state["fingerprint"] = np.frombuffer(snapshot.fingerprint.encode(), np.uint8)
        _save(self.folder / "state.npz", state)

    def resume_from(self, snapshot: Snapshot) -> None:
        """Go on in this folder after `read`; a folder that holds another run is begun anew."""
        if not (self.folder / "state.npz").exists() or self.read().t != snapshot.t:
            self._written, self._fingerprint = [0], None

    def read(self) -> Snapshot:
        """The last complete snapshot; raises a ValueError that says what is wrong with the folder."""
        path = self.folder / "state.npz"
        if not path.exists():
            raise ValueError(
                f"resume: found no checkpoint in {str(self.folder)!r} (no state.npz); pass the "
                "folder that Checkpoint(path) wrote to, or start afresh without resume="
            )
        try:
            state = _load(path)
            bounds = [int(b) for b in state["bounds"]]
            pieces = [
                _load(self.folder / f"history-{a}-{b}.npz")
                for a, b in zip(bounds[:-1], bounds[1:], strict=True)
            ]
        except (OSError, KeyError, zipfile.BadZipFile, ValueError) as error:
            raise ValueError(
                f"resume: the checkpoint in {str(self.folder)!r} cannot be read ({error}); "
                "delete the folder and start afresh"
            ) from error
        names = pieces[0].keys() if pieces else ()
        history = {k: np.concatenate([p[k] for p in pieces], axis=1) for k in names}
        leaves = [state[f"leaf{i}"] for i in range(sum(k.startswith("leaf") for k in state))]
        self._written = bounds
        self._fingerprint = state["fingerprint"].tobytes().decode()
        return Snapshot(int(state["t"]), leaves, history, state["key"], self._fingerprint)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(handle.name, path)


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {k: file[k] for k in file.files}
