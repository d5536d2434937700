"""A fit in a process of its own, for `test_programs`: ``python -m tests.core.cached``.

Prints the number of backend compilations of the run and a digest of its draws.
"""

from __future__ import annotations

import hashlib

import jax
import numpy as np

import probkit as pk

DATA = {"y": np.arange(6.0)}


def model(scale: float = 1.0) -> pk.Model:
    return pk.Model(
        mu=pk.dist.Normal(0, 2), y=pk.rv(lambda mu: pk.dist.Normal(mu, scale), dims="row")
    )


def method() -> pk.HMC:
    return pk.HMC(draws=20, warmup=20, chains=2, leapfrog=2, metric="diag")


def digest(posterior) -> str:
    return hashlib.sha256(posterior._drawn.unconstrained.tobytes()).hexdigest()[:16]


if __name__ == "__main__":
    compiles = []
    target = model().bind(DATA)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: compiles.append(event.endswith("backend_compile_duration"))
    )
    posterior = pk.fit(target, method=method(), seed=3, progress=False)
    print(sum(compiles), digest(posterior))
