"""What the model layer costs: log density and gradient against NumPyro and hand-written JAX.

The same model three times (`_models.py`), compiled with the same options, data as arguments:

* run: compiled leapfrog trajectories of 4 chains, timed 30 times in turns (no dispatch from
  Python in it: that is how a sampler evaluates a density);
* operations: the counts of the optimised HLO's opcodes;
* compile: trace, lower and compile from nothing, in turns, all caches cleared in between.

``python -m benchmarks.overhead [--timings 30] [--compiles 7] [--cases schools,affairs,visits]``
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import potential_energy

import probkit as pk
from benchmarks import _common as c
from benchmarks._models import CASES, Case

_OPCODE = re.compile(r" = (?:\([^=]*?\)|\S+) ([a-z][a-z0-9-]*)\(")
#: How data get in and out, not what is computed: their number is the number of arguments.
_PLUMBING = {"parameter", "get-tuple-element", "tuple"}
STYLES = ("noncentred", "auto")
_LEAPS = 16


def contestants(case: Case) -> dict[str, tuple[Callable, Any, Any]]:
    """By name: log density ``fn(z, data)``, a point and the data."""
    raw = case.numpyro
    out: dict[str, tuple[Callable, Any, Any]] = {}
    for style in STYLES:
        target = case.target(reparam=style)
        program = target.program

        def density(z: Any, arrays: Any, program: Any = program) -> Any:
            return pk.Target(program, arrays).log_density(z)

        z = {k: case.example[case.names.get(k, k)] for k in target.example}
        out[f"probkit {style}"] = (density, z, target.arrays)
    out["numpyro"] = (lambda z, data: -potential_energy(raw, (), data, z), case.example, case.data)
    out["hand"] = (case.hand, case.example, case.data)
    return out


def agreement(entries: dict[str, tuple[Callable, Any, Any]]) -> float:
    """The largest relative difference of the log densities (gradients included) at one point."""
    found = []
    for name, (fn, z, data) in entries.items():
        centred = data.get("centred", {}) if name == "probkit auto" else {}
        if any(np.any(x) for x in centred.values()):
            continue  # the same posterior in other coordinates
        z = {k: v + 0.3 for k, v in z.items()}
        value, slope = jax.jit(jax.value_and_grad(fn))(z, data)
        found.append(np.concatenate([[value], *(np.ravel(slope[k]) for k in sorted(slope))]))
    first = found[-1]  # by hand
    # Names differ, so gradients are compared sorted by size.
    gaps = [np.abs(np.sort(x) - np.sort(first)).max() / np.abs(first).max() for x in found]
    return float(max(gaps))


def trajectories(fn: Callable, count: int) -> Callable:
    """What a sampler does with a density: ``count`` leapfrog trajectories of 4 chains.

    Each takes `_LEAPS` evaluations of value and gradient in an inner loop. (A loop of evaluations
    and nothing else is no substitute: XLA compiles a very small loop into one function.)
    """

    def chain(z: Any, data: Any, seed: Any) -> Any:
        vector, unravel = ravel_pytree(z)
        evaluate = jax.value_and_grad(lambda v: fn(unravel(v), data))

        def leap(carry: tuple) -> tuple:
            i, x, p, g, _ = carry
            x = x + 1e-3 * (p + 5e-4 * g)
            value, new = evaluate(x)
            return i + 1, x, p + 5e-4 * (g + new), new, value

        def trajectory(x: Any, t: Any) -> Any:
            p = jax.random.normal(jax.random.fold_in(seed, t), x.shape, x.dtype)
            first = (0, x, p, jnp.zeros_like(x), jnp.zeros((), x.dtype))
            # The test on the value keeps it from being thrown away.
            end = jax.lax.while_loop(lambda s: (s[0] < _LEAPS) & (s[4] < 1e30), leap, first)
            return 0.5 * end[1], end[4]

        return jax.lax.scan(trajectory, vector, jnp.arange(count))

    def run(z: Any, data: Any) -> Any:
        return jax.vmap(lambda k: chain(z, data, k))(jax.random.split(jax.random.key(0), 4))

    return run


def timings(entries: dict[str, tuple[Callable, Any, Any]], rounds: int) -> dict[str, list]:
    """Wall and CPU seconds for one evaluation (4 chains) of value and gradient, in turns."""
    once = jax.jit(trajectories(entries["hand"][0], 8))
    _, z, data = entries["hand"]
    jax.block_until_ready(once(z, data))
    begin = time.perf_counter()
    jax.block_until_ready(once(z, data))
    count = int(np.clip(8 * 0.1 / (time.perf_counter() - begin), 2, 20_000))

    def timer(fn: Callable, z: Any, data: Any) -> Callable[[], tuple[float, float]]:
        program = jax.jit(trajectories(fn, count)).lower(z, data).compile()
        z, data = jax.device_put((z, data))

        def measure() -> tuple[float, float]:
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(z, data))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            return wall / (count * _LEAPS), cpu / (count * _LEAPS)

        measure()
        return measure

    return c.take_turns({k: timer(*v) for k, v in entries.items()}, rounds)


def operations(fn: Callable, z: Any, data: Any) -> Counter[str]:
    """Opcodes of the optimised program for value and gradient."""
    text = jax.jit(jax.value_and_grad(fn)).lower(z, data).compile().as_text() or ""
    return Counter(x for x in _OPCODE.findall(text) if x not in _PLUMBING)


def compile_seconds(
    entries: dict[str, tuple[Callable, Any, Any]], rounds: int
) -> dict[str, list[float]]:
    """Seconds to trace, lower and compile value and gradient from nothing, in turns."""

    def timer(fn: Callable, z: Any, data: Any) -> Callable[[], float]:
        def measure() -> float:
            jax.clear_caches()
            begin = time.perf_counter()
            # A new function each time: nothing may be remembered about the old one.
            jax.jit(jax.value_and_grad(lambda z, d: fn(z, d))).lower(z, data).compile()
            return time.perf_counter() - begin

        return measure

    makers = {k: timer(*v) for k, v in entries.items()}
    c.take_turns(makers, 1)
    return c.take_turns(makers, rounds)


def judge(name: str, rounds: int, compiles: int) -> dict[str, Any]:
    """All figures of one model."""
    entries = contestants(CASES[name]())
    ours = [k for k in entries if k.startswith("probkit")]
    both = timings(entries, rounds)
    seconds, cpu = ({k: [x[i] for x in v] for k, v in both.items()} for i in (0, 1))
    compiling = compile_seconds(entries, compiles)
    counts = {k: operations(*v) for k, v in entries.items()}
    print(
        f"{name}: densities and gradients agree to {agreement(entries):.1e}; "
        f"{1e6 * c.median(seconds['hand']):.1f} us by hand"
    )
    figures: dict[str, Any] = {"wall": seconds, "cpu": cpu}
    figures.update(compile=compiling, operations=counts)
    for own in ours:
        for peer in ("numpyro", "hand"):
            c.line(f"{own} / {peer}: run", c.ratio(seconds[own], seconds[peer]), 1.05)
            c.line(f"{own} / {peer}: run, CPU seconds", c.ratio(cpu[own], cpu[peer]))
        c.line(f"{own} / numpyro: run, paired", c.paired(seconds[own], seconds["numpyro"]))
        c.line(f"{own} / numpyro: compile", c.ratio(compiling[own], compiling["numpyro"]), 1.0)
        c.line(f"{own} / hand: compile", c.ratio(compiling[own], compiling["hand"]))
        for peer in ("numpyro", "hand"):
            more, fewer = counts[own] - counts[peer], counts[peer] - counts[own]
            print(
                f"  {own}: operations beyond {peer}: {dict(more) or 'none'}; "
                f"of {peer} alone: {dict(fewer) or 'none'}"
            )
    return figures


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timings", type=int, default=30)
    parser.add_argument("--compiles", type=int, default=7)
    parser.add_argument("--cases", default="schools,affairs,visits")
    args = parser.parse_args()
    found = {k: judge(k, args.timings, args.compiles) for k in args.cases.split(",")}
    c.save("overhead", found)


if __name__ == "__main__":
    main()
