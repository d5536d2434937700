"""The run that `test_checkpoint` kills: ``python -m tests.core.killed FOLDER`` begins it.

It writes a checkpoint after every chunk and prints the step that it has reached.
"""

from __future__ import annotations

import sys
import time

import jax.numpy as jnp
import numpy as np

from probkit import HMC
from probkit.core import Callback, Checkpoint, Target, run
from probkit.core import _run as driver

DIMENSION = 3


def target() -> Target:
    scales = jnp.array([0.5, 1.0, 2.0])
    return Target.from_log_density(
        lambda z: -0.5 * jnp.sum((z["x"] / scales) ** 2), {"x": np.zeros(DIMENSION)}
    )


def method() -> HMC:
    return HMC(draws=150, warmup=50, chains=2, leapfrog=3, metric="diag")


class Tell(Callback):
    """Prints the step, and gives the killer time to act at any point of a chunk or a write."""

    def __call__(self, progressed):
        print(progressed.t, flush=True)
        time.sleep(0.004)
        return None


if __name__ == "__main__":
    driver._CHUNK_SECONDS = 1e-9
    run(target(), method(), 11, callbacks=[Checkpoint(sys.argv[1], every=0.0), Tell()])
