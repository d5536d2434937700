"""Compile once: backend compilations of a second fit with new data of the same shapes.

Counted with jax.monitoring, the disk cache off. NumPyro's reused MCMC object does the same.

``python -m benchmarks.compile_once``
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ["PROBKIT_CACHE"] = "off"

import jax  # noqa: E402
import numpy as np  # noqa: E402
from numpyro.infer import MCMC  # noqa: E402
from numpyro.infer import NUTS as NumpyroNUTS  # noqa: E402

import probkit as pk  # noqa: E402
from benchmarks import _common as c  # noqa: E402
from benchmarks._models import CASES, Case  # noqa: E402

_EVENT = "/jax/core/compile/backend_compile_duration"
_seconds: list[float] = []


def _listen(event: str, duration_secs: float, **_: Any) -> None:
    if event == _EVENT:
        _seconds.append(duration_secs)


def compiled_by(fn: Callable[[], Any]) -> list:
    """How many programs XLA compiled while ``fn`` ran, and for how many seconds."""
    _seconds.clear()
    try:
        fn()
    except Exception as error:  # what a peer does here is part of the figure
        return [type(error).__name__, 0.0]
    return [len(_seconds), round(sum(_seconds), 2)]


def ours(case: Case, chains: int, progress: bool) -> dict[str, list]:
    """Compilations of the first fit, of a refit, and of ``to_arviz`` after both."""
    method = pk.NUTS(draws=200, warmup=200, chains=chains)
    other = {**case.data, "y": case.data["y"] + np.float32(1.0)}
    kept: list[Any] = []

    def fit(data: dict, seed: int) -> None:
        kept.append(pk.fit(case.model, data, method=method, seed=seed, progress=progress))

    return {
        "first": compiled_by(lambda: fit(case.data, 0)),
        "first to_arviz": compiled_by(lambda: kept[0].to_arviz()),
        "second": compiled_by(lambda: fit(other, 1)),
        "second to_arviz": compiled_by(lambda: kept[1].to_arviz()),
        "second check and summary": compiled_by(lambda: (kept[1].check(), kept[1].summary())),
    }


def theirs(case: Case, chains: int, progress: bool, jit_args: bool) -> dict[str, list]:
    """The same of one MCMC object of NumPyro's."""
    mcmc = MCMC(
        NumpyroNUTS(case.numpyro),
        num_warmup=200,
        num_samples=200,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=progress,
        jit_model_args=jit_args,
    )
    other = {**case.data, "y": case.data["y"] + np.float32(1.0)}
    return {
        "first": compiled_by(lambda: mcmc.run(jax.random.key(0), **case.data)),
        "second": compiled_by(lambda: mcmc.run(jax.random.key(1), **other)),
    }


def main() -> None:
    """Count, print and write."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    jax.monitoring.register_event_duration_secs_listener(_listen)
    figures = {}
    worst = 0
    for chains in (1, 4):
        for progress in (False, True):
            where = f"{chains} chains, progress {'on' if progress else 'off'}"
            # A new Model: nothing is shared with the setting before.
            found = ours(CASES["schools"](), chains, progress)
            worst = max(worst, *(v[0] for k, v in found.items() if k.startswith("second")))
            figures[f"probkit, {where}"] = found
            print(f"probkit, {where}: {found}", flush=True)
            for jit_args in (False, True):
                name = f"numpyro, {where}, jit_model_args={jit_args}"
                figures[name] = theirs(CASES["schools"](), chains, progress, jit_args)
                print(f"  {name}: {figures[name]}", flush=True)
    c.line("most backend compilations of a refit", worst, 0)
    c.save("compile_once", figures)


if __name__ == "__main__":
    main()
