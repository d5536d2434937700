"""Speed against NumPyro's SVI: the same mean-field guide, draws a step and number of steps.

Logistic regression on the breast cancer data, 3,000 steps of Adam with 16 draws. NumPyro's ``run``
with its progress bar is a Python loop around a compiled step; without it a loop on the device; both
are measured. Processor seconds of the steps alone, and of the first call less those: from the model
to the first result, tracing and compiling. No compiled program is read from a disk.
Ours has its stop held off until the last step. Turns are taken in one process each.

``python -m benchmarks.vi_speed [--rounds 3]``
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks import _common as c

STEPS, DRAWS = 3000, 16


#: No compiled programs of earlier processes, of JAX's or of ours.
FRESH = {
    "PROBKIT_CACHE": "off",
    "JAX_COMPILATION_CACHE_DIR": None,
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}


def ready() -> None:
    """Start JAX and load the data's reader, which neither is charged for."""
    import jax

    from benchmarks.vi_stop import _cancer

    _cancer()
    jax.block_until_ready(jax.jit(lambda x: x + 1.0)(np.ones(3)))


def _ours() -> dict[str, float]:
    import probkit as pk
    from benchmarks.vi_stop import TARGETS

    ready()
    # While the tempering lasts the stop does not judge: every fit does all of the steps.
    method = pk.VI(
        family="meanfield",
        gradient="reparam",
        scale="exp",
        particles=DRAWS,
        max_steps=STEPS,
        tempering=STEPS,
    )

    begin = time.process_time()
    target = TARGETS["logistic, cancer data"]()
    bound = time.process_time() - begin

    def once(seed: int) -> float:
        begin = time.process_time()
        pk.run(target, method, seed)
        return time.process_time() - begin

    first, again = bound + once(0), once(1)
    return {"compile": first - again, "run": again}


def _theirs(progress: bool) -> dict[str, float]:
    import jax
    import numpyro
    from numpyro import distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoNormal

    from benchmarks.vi_stop import _cancer

    ready()
    X, y = _cancer()
    X = np.asarray(X, np.float32)

    def model(X: Any, y: Any) -> None:
        with numpyro.plate("k", X.shape[1]):
            b = numpyro.sample("b", dist.Normal(0, 2))
        with numpyro.plate("row", X.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=X @ b), obs=y)

    svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.01), Trace_ELBO(DRAWS))

    def once(seed: int) -> float:
        begin = time.process_time()
        out = svi.run(jax.random.key(seed), STEPS, X, y, progress_bar=progress)
        jax.block_until_ready(out.params)
        return time.process_time() - begin

    first = once(0)
    # `run` compiles its loop anew at each call: time the steps with a compiled loop of our own.
    state = svi.init(jax.random.key(1), X, y)
    step = jax.jit(lambda s: svi.update(s, X, y))
    if progress:
        state, _ = step(state)
        begin = time.process_time()
        for _ in range(STEPS):
            state, _ = step(state)
        jax.block_until_ready(state)
    else:
        loop = jax.jit(lambda s: jax.lax.scan(lambda q, _: svi.update(q, X, y), s, None, STEPS))
        jax.block_until_ready(loop(state))
        begin = time.process_time()
        jax.block_until_ready(loop(state))
    ran = time.process_time() - begin
    return {"compile": first - ran, "run": ran}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        made = _ours() if args.child == "ours" else _theirs(args.child == "loop")
        print(json.dumps(made))
        return

    def child(name: str) -> Any:
        command = c.python("-m", "benchmarks.vi_speed", "--child", name)
        return lambda: c.process(command, FRESH).last_json()

    names = ("ours", "device", "loop")
    rows = c.take_turns({n: child(n) for n in names}, args.rounds)
    figures = {n: {k: [r[k] for r in rows[n]] for k in ("compile", "run")} for n in names}
    for name in names:
        run, made = c.median(figures[name]["run"]), c.median(figures[name]["compile"])
        print(f"  {name:<8} run {run:6.2f} s, compile {made:6.2f} s", flush=True)
    for name, words in (("loop", "Python loop"), ("device", "device loop")):
        ratio = c.paired(figures["ours"]["run"], figures[name]["run"])
        c.line(f"run time over NumPyro's, {words}", ratio, 0.8 if name == "loop" else None)
    ratio = c.paired(figures["ours"]["compile"], figures["device"]["compile"])
    c.line("compile time over NumPyro's, device loop", ratio, 1.1)
    c.save("vi_speed", figures)


if __name__ == "__main__":
    main()
