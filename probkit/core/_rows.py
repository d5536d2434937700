"""Rows of mini-batches: index arrays that the driver makes on the host, epoch by epoch.

Batch ``s`` of a run depends on the run's key and on ``s`` alone, so that neither chunks nor a
resumed run change it. An epoch costs one permutation of the rows.
"""

from __future__ import annotations

import numpy as np

from probkit.core._inference import Batches
from probkit.core._target import Batch, Target


class Rows:
    """Mini-batches without replacement: index arrays from a fresh permutation each epoch."""

    def __init__(self, batches: Batches, target: Target, key: np.ndarray):
        self.dim = batches.dim or _data_dim(target)
        target.batched_dim(self.dim)
        self.total = target.program.sizes[self.dim]
        self.size = batches.size
        if not 1 <= self.size <= self.total:
            raise ValueError(
                f"batch size: expected 1 to {self.total} (rows of dim {self.dim!r}), "
                f"found {self.size}"
            )
        self.per_step, self.per_epoch = batches.per_step, self.total // self.size
        self.entropy = [int(x) for x in np.asarray(key, np.uint32)]
        self._epoch: tuple[int, np.ndarray] | None = None

    def example(self) -> Batch:
        """One step's batch, for shapes."""
        return Batch(self.dim, np.zeros(self.size * self.per_step, np.int32))

    def chunk(self, t: int, capacity: int) -> np.ndarray:
        """The rows of steps ``t`` to ``t + capacity``, shape ``(capacity, per_step * size)``."""
        first, count = t * self.per_step, capacity * self.per_step
        rows = np.stack([self._row(first + i) for i in range(count)])
        return rows.reshape(capacity, self.per_step * self.size)

    def _row(self, number: int) -> np.ndarray:
        epoch, position = divmod(number, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            rng = np.random.default_rng([*self.entropy, epoch])
            self._epoch = (epoch, rng.permutation(self.total).astype(np.int32))
        begin = position * self.size
        return self._epoch[1][begin : begin + self.size]


def _data_dim(target: Target) -> str:
    for site in target.sites.values():
        if site.kind in ("observed", "imputed") and site.dims:
            return site.dims[0]
    raise ValueError(
        "mini-batches: no observed variable has a named dim to take rows of; declare it with dims="
    )
