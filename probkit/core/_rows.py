"""Rows of mini-batches: index arrays that the driver makes on the host, epoch by epoch.

Batch ``s`` of a run depends on the run's key and on ``s`` alone, so that neither chunks nor a
resumed run change it. An epoch costs one permutation of the rows: microseconds for small data.
"""

from __future__ import annotations

import numpy as np

from probkit.core._inference import Batches
from probkit.core._target import Batch, Target

#: Permutations are made for several epochs at once, up to about this many row numbers.
_BLOCK = 2**16


class Rows:
    """Mini-batches without replacement: index arrays from a fresh permutation each epoch."""

    def __init__(self, batches: Batches, target: Target, key: np.ndarray):
        self.dim = batches.dim or data_dim(target)
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
        self._epochs = int(np.clip(_BLOCK // self.total, 1, 256))
        self._block: tuple[int, np.ndarray] | None = None

    def example(self) -> Batch:
        """One step's batch, for shapes."""
        return Batch(self.dim, np.zeros(self.size * self.per_step, np.int32))

    def chunk(self, t: int, capacity: int, n: int | None = None) -> np.ndarray:
        """Rows of steps ``t`` to ``t + n``, shape ``(capacity, per_step * size)``, zeros beyond."""
        n = capacity if n is None else n
        out = np.zeros((capacity, self.per_step * self.size), np.int32)
        number, end = t * self.per_step, (t + n) * self.per_step
        flat = out.reshape(capacity * self.per_step, self.size)
        filled = 0
        while number < end:
            part = self._from(number)[: end - number]
            flat[filled : filled + len(part)] = part
            filled, number = filled + len(part), number + len(part)
        return out

    def _from(self, number: int) -> np.ndarray:
        """Batch ``number`` and those after it in its block of epochs, shape ``(k, size)``."""
        block, position = divmod(number, self._epochs * self.per_epoch)
        if self._block is None or self._block[0] != block:
            rng = np.random.default_rng([*self.entropy, block])
            rows = np.tile(np.arange(self.total, dtype=np.int32), (self._epochs, 1))
            used = rng.permuted(rows, axis=1)[:, : self.per_epoch * self.size]
            self._block = (block, used.reshape(-1, self.size))
        return self._block[1][position:]


def data_dim(target: Target) -> str:
    """The dim that mini-batches are drawn along unless another is named: the observed variable's.

    Raises:
        ValueError: there is none.
    """
    for site in target.sites.values():
        if site.kind in ("observed", "imputed") and site.dims:
            return site.dims[0]
    raise ValueError(
        "mini-batches: no observed variable has a named dim to take rows of; declare it with dims="
    )
