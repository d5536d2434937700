"""What the model layer costs: log density and gradient against NumPyro and hand-written JAX.

The same model three times (`_models.py`), compiled with the same options, data as arguments:

* run: a compiled loop of evaluations at moving points, timed 30 times in turns (no dispatch from
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
from numpyro.infer.util import potential_energy

import probkit as pk
from benchmarks import _common as c
from benchmarks._models import CASES, Case

_OPCODE = re.compile(r" = (?:\([^=]*?\)|\S+) ([a-z][a-z0-9-]*)\(")
#: How data get in and out, not what is computed: their number is the number of arguments.
_PLUMBING = {"parameter", "get-tuple-element", "tuple"}
STYLES = ("noncentred", "auto")


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
    out["numpyro"] = (
        lambda z, data: -potential_energy(raw, (), data, z), case.example, case.data
    )
    out["hand"] = (case.hand, case.example, case.data)
    return out


def agreement(entries: dict[str, tuple[Callable, Any, Any]]) -> float:
    """The largest relative difference of the log densities (gradients included) at one point."""
    found = []
    for fn, z, data in entries.values():
        z = {k: v + 0.3 for k, v in z.items()}
        value, slope = jax.jit(jax.value_and_grad(fn))(z, data)
        found.append(np.concatenate([[value], *(np.ravel(slope[k]) for k in sorted(slope))]))
    first = found[-1]
    # Names differ, so gradients are compared sorted by size.
    gaps = [np.abs(np.sort(x) - np.sort(first)).max() / np.abs(first).max() for x in found]
    return float(max(gaps))


def looped(fn: Callable, steps: int) -> Callable:
    """``steps`` evaluations of value and gradient, each at the point that the last led to."""

    def run(z: Any, data: Any) -> Any:
        def body(_: Any, z: Any) -> Any:
            value, slope = jax.value_and_grad(fn)(z, data)
            scale = 1e-6 / (1.0 + jnp.abs(value))
            return jax.tree.map(lambda x, g: x + scale * g / (1.0 + jnp.abs(g)), z, slope)

        return jax.lax.fori_loop(0, steps, body, z)

    return run


def timings(entries: dict[str, tuple[Callable, Any, Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds for one evaluation of value and gradient, ``rounds`` times each, in turns."""
    once = jax.jit(looped(entries["hand"][0], 64))
    _, z, data = entries["hand"]
    jax.block_until_ready(once(z, data))
    begin = time.perf_counter()
    jax.block_until_ready(once(z, data))
    steps = int(np.clip(64 * 0.05 / (time.perf_counter() - begin), 16, 100_000))

    def timer(fn: Callable, z: Any, data: Any) -> Callable[[], float]:
        program = jax.jit(looped(fn, steps)).lower(z, data).compile()
        z, data = jax.device_put((z, data))

        def measure() -> float:
            begin = time.perf_counter()
            jax.block_until_ready(program(z, data))
            return (time.perf_counter() - begin) / steps

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
    seconds = timings(entries, rounds)
    compiling = compile_seconds(entries, compiles)
    counts = {k: operations(*v) for k, v in entries.items()}
    print(f"{name}: densities and gradients agree to {agreement(entries):.1e}; "
          f"{1e6 * c.median(seconds['hand']):.1f} us by hand")
    figures: dict[str, Any] = {"seconds": seconds, "compile": compiling, "operations": counts}
    for own in ours:
        for peer in ("numpyro", "hand"):
            c.line(f"{own} / {peer}: run", c.ratio(seconds[own], seconds[peer]), 1.05)
        c.line(f"{own} / numpyro: run (paired)", c.paired(seconds[own], seconds["numpyro"]))
        c.line(f"{own} / numpyro: compile", c.ratio(compiling[own], compiling["numpyro"]), 1.0)
        c.line(f"{own} / hand: compile", c.ratio(compiling[own], compiling["hand"]))
        for peer in ("numpyro", "hand"):
            more, fewer = counts[own] - counts[peer], counts[peer] - counts[own]
            print(f"  {own}: operations beyond {peer}: {dict(more) or 'none'}; "
                  f"of {peer} alone: {dict(fewer) or 'none'}")
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
