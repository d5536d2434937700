"""The only loop in the package: a chunked, resumable loop over the steps of any method.

One compiled program does up to ``capacity`` steps of all chains; how many it does in one call is an
argument, so that a call takes about half a second whatever the model, and progress, checkpoints
and time limits cost no compilation. Step ``t`` of chain ``c`` uses the key
``fold_in(fold_in(key, t), c)``: draws depend neither on the chunks (bit for bit) nor on the number
of chains (but for rounding: the compiler orders sums differently for other numbers of chains).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from probkit.core._abreast import devices_for, each_chain, in_turns, spread
from probkit.core._callbacks import Callback, Progressed
from probkit.core._checkpoint import CheckpointFile, Snapshot
from probkit.core._chunk import chunk_function
from probkit.core._errors import check_count
from probkit.core._inference import Approximation, Batches, Draws, Inference
from probkit.core._keys import key_data, step_key, wrap_key
from probkit.core._programs import (
    NO_LIBRARY,
    compiled,
    density_fingerprint,
    density_is_small,
    describe,
    latent_fingerprint,
    source_digest,
)
from probkit.core._rows import Rows
from probkit.core._status import Status
from probkit.core._target import Target, requires
from probkit.core._trees import in_precision, strong

_CHUNK_SECONDS = 0.5
_CHUNK_BYTES = 64 * 2**20
#: Callbacks of the run whose method is finishing: they judge runs that it starts.
_OUTER: ContextVar[tuple[Callback, ...]] = ContextVar("_OUTER", default=())
_INIT_STEP = 2**32 - 1  # the step number whose keys `init` uses; no run gets there


@dataclass(frozen=True, eq=False)
class Run:
    """What `run` returns: the method's result and how the run went.

    Attributes:
        output: `Draws` or `Approximation`.
        status: how the run ended.
        steps: steps done.
        seconds: wall-clock seconds by part (``compile``, ``run``).
        snapshot: the state to resume from.
    """

    output: Draws | Approximation
    status: Status
    steps: int
    seconds: dict[str, float]
    snapshot: Snapshot


def run(
    target: Target,
    method: Inference,
    key: Any = 0,
    *,
    chains: int | None = None,
    batches: Batches | None = None,
    callbacks: Sequence[Callback] = (),
    resume: str | Path | Snapshot | None = None,
    devices: int | None = None,
) -> Run:
    """Run a method on a target.

    Args:
        target: what to infer.
        method: the configured method.
        key: a typed key or a whole-number seed.
        chains: copies of the state; the method's own number by default.
        batches: mini-batches; the method's own by default.
        callbacks: called after each chunk, in order; any of them may end the run.
        resume: a checkpoint folder or a `Snapshot` to go on from.
        devices: devices that the chains are spread over, a divisor of their number; None takes as
            many of the local ones as divide it. Chains that share a device are vectorised.

    Returns:
        A `Run`. An interrupt (Ctrl-C) ends the run early and keeps what was computed.

    Raises:
        ValueError: the target lacks what the method requires; the checkpoint belongs to another
            run; no chain found a starting point (with the report of ``target.check()``).

    Example:
        >>> import probkit as pk
        >>> model = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1)))
        >>> pk.run(model.bind({"y": 0.5}), pk.ExactGaussian()).status.ok
        True
    """
    if not isinstance(target, Target):
        raise TypeError(
            f"run: expected a Target (model.bind(data)) first, found {type(target).__name__}"
        )
    if not isinstance(method, Inference):
        raise TypeError(f"method: expected an inference method such as pk.NUTS(), found {method!r}")
    requires(target, type(method).__name__, method.requires)
    hooks = (*callbacks, *_OUTER.get())
    with precision(target), _one_thread():
        driver = _Driver(target, method, key_data(key), chains, batches, hooks, devices)
        return driver.drive(resume)


def precision(target: Target) -> contextlib.AbstractContextManager[None]:
    """The target's own floating precision, whatever the caller's setting."""
    return in_precision(target.dtype)


def _one_thread():
    # XLA's CPU linear algebra calls a threaded BLAS; on small matrices its threads cost far more
    # than they give (an SVD took 1.2 s instead of 4 ms).
    import threadpoolctl

    return threadpoolctl.threadpool_limits(1, user_api="blas")


class _Driver:
    """One call of `run`: builds the two programs and steps through them."""

    def __init__(
        self,
        target: Target,
        method: Inference,
        key: np.ndarray,
        chains: int | None,
        batches: Batches | None,
        callbacks: tuple[Callback, ...],
        devices: int | None = None,
    ):
        self.target, self.method, self.key, self.callbacks = target, method, key, callbacks
        self.chains = method.chains if chains is None else check_count("run(chains)", chains)
        self.batches = batches if batches is not None else method.batches
        self.devices = devices_for(self.chains, devices)
        self.seconds = {"compile": 0.0, "run": 0.0}
        leaves, self.treedef = jax.tree.flatten(method)
        self.leaves = [_leaf(x, target.dtype) for x in leaves]
        self.rows = Rows(self.batches, target, key) if self.batches is not None else None
        self.history: dict[str, np.ndarray] = {}
        self.status = Status.OK
        self.began = time.perf_counter()
        # Steps done and the state after them, in one tuple that is replaced in one assignment: an
        # interrupt may fall between any two instructions, and a snapshot must never mix the two.
        self._at: tuple[int, PyTree] = (0, None)

    @property
    def t(self) -> int:
        return self._at[0]

    @property
    def state(self) -> PyTree:
        return self._at[1]

    # -- the two programs -------------------------------------------------------------------

    def _program(self, name: str, fn: Any, args: tuple, one_kernel: bool = False) -> Any:
        begin = time.perf_counter()
        static = describe(self.method)
        parts = None
        if static is not None and self.method.density_only:
            batch = self.rows.example() if self.rows is not None else None
            own = source_digest(type(self.method))
            density = density_fingerprint(self.target, batch)
            parts = None if own is None else (static, own, density, self.devices, one_kernel)
        # The method's structure (its static fields) keys the memory cache; on disk it is `parts`.
        dim = None if self.rows is None else self.rows.dim
        variant = (self.treedef, dim, self.devices, one_kernel)
        options = NO_LIBRARY if one_kernel else None
        made = compiled(self.target.program, name, variant, fn, args, parts, options)
        self.seconds["compile"] += time.perf_counter() - begin
        return made

    def _traced(self, leaves: list, arrays: dict) -> tuple[Inference, Target]:
        return jax.tree.unflatten(self.treedef, leaves), Target(self.target.program, arrays)

    def _chunk(self, args: tuple) -> Any:
        """The program of several steps, with its steps in one kernel where that can be."""
        alike = self.method.elementary and self.rows is None and in_turns(self.chains)
        if alike and density_is_small(self.target):
            # What XLA cannot compile that way, it says.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                fused = spread(self._chunk_function(True), self.devices)
                return self._program("chunk", fused, args, one_kernel=True)
        return self._program("chunk", spread(self._chunk_function(False), self.devices), args)

    def _chunk_function(self, one_kernel: bool) -> Any:
        dim = None if self.rows is None else self.rows.dim
        return chunk_function(self._traced, self.capacity, self.devices, dim, one_kernel)

    def _init(self, key, chains, leaves, arrays):
        method, target = self._traced(leaves, arrays)
        keys = jax.vmap(lambda c: step_key(wrap_key(key), jnp.uint32(_INIT_STEP), c))(chains)
        if len(chains) == 1:
            return strong(jax.vmap(method.init, in_axes=(0, None))(keys, target))
        # (In turns on a CPU: a vectorised density takes longer to compile there.)
        return strong(each_chain(lambda key, _: method.init(key, target), keys, chains))

    def _init_on_host(self, ids: np.ndarray) -> PyTree:
        states = [self.method.init(np.random.default_rng([*self.key, c]), self.target) for c in ids]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *states)

    def _starting(self, ids: np.ndarray, fixed: tuple) -> Callable[[], PyTree]:
        """What makes the first state of all chains."""
        if self.method.init_on_host:
            return functools.partial(self._init_on_host, ids)
        args = (self.key, ids, *fixed)
        return functools.partial(self._program("init", self._init, args), *args)

    # -- driving ----------------------------------------------------------------------------

    def drive(self, resume: str | Path | Snapshot | None) -> Run:
        ids = np.arange(self.chains, dtype=np.uint32)
        fixed = (self.leaves, self.target.arrays)
        init = self._starting(ids, fixed)
        snapshot = self._resume(resume)
        begin = time.perf_counter()
        self._at = (0, init())
        if snapshot is not None:
            self._adopt(snapshot)
        self.seconds["run"] += time.perf_counter() - begin
        if self.t < self.method.num_steps:
            self._loop(ids, fixed)
        history = {k: v[:, : self.t] for k, v in self.history.items()}
        state = jax.tree.map(np.asarray, self.state)
        with self._outer():
            output = self.method.finish(self.key, self.target, state, history)
        status = self.status if not self.status.ok else output.status
        return Run(output, status, self.t, self.seconds, self._snapshot())

    @contextlib.contextmanager
    def _outer(self) -> Iterator[None]:
        """Hands limits on to runs that the method starts as it finishes."""
        inner = (c.within(time.perf_counter() - self.began) for c in self.callbacks)
        token = _OUTER.set(tuple(c for c in inner if c is not None))
        try:
            yield
        finally:
            _OUTER.reset(token)

    def _loop(self, ids: np.ndarray, fixed: tuple) -> None:
        total = self.method.num_steps
        self.capacity = self._capacity()
        rows = None if self.rows is None else self.rows.chunk(0, self.capacity)
        args = (self.key, np.int32(0), np.int32(0), ids, self.state, *fixed, rows)
        chunk = self._chunk(args)
        begin = self.began = time.perf_counter()
        # Devices do not stop in mid-chunk: one step shows whether there was a start at all.
        n = min(self.capacity, 32) if self.devices == 1 else 1
        try:
            for callback in self.callbacks:
                callback.start(total, self.method.num_warmup, self.t)
            while self.t < total and self.status.ok:
                n = min(n, total - self.t)
                rows = None if self.rows is None else self.rows.chunk(self.t, self.capacity, n)
                args = (self.key, np.int32(self.t), np.int32(n), ids, self.state, *fixed, rows)
                before = time.perf_counter()
                taken, state, infos, done, codes = chunk(*args)
                codes = np.asarray(codes)
                done = bool(np.all(np.asarray(done)) or np.any(codes))
                fresh = self._record(infos, int(np.max(np.asarray(taken))), state)
                elapsed = max(time.perf_counter() - before, 1e-6)
                n = int(np.clip(n * _CHUNK_SECONDS / elapsed, 1, min(4 * n, self.capacity)))
                self._judge(done, codes)
                self._call(fresh, time.perf_counter() - begin, total)
                if done:
                    break
        except KeyboardInterrupt:
            if not self.t:
                raise  # nothing was computed that could be kept
            self.status = Status.INTERRUPTED
        finally:
            self.seconds["run"] += time.perf_counter() - begin
            # (A checkpoint writes what is unwritten in its `stop`, however the run ended.)
            for callback in self.callbacks:
                callback.stop()

    def _judge(self, done: bool, codes: np.ndarray) -> None:
        bad = codes[codes != 0]
        if not done or bad.size == 0:
            return
        self.status = Status(int(bad[0]))
        if self.status is Status.NONFINITE and self.t <= 1 and self.method.num_steps > 1:
            report = self.target.check(self.key)
            raise ValueError(
                f"{type(self.method).__name__}: no starting point with a finite log density and "
                f"gradient was found.\n{report}"
            )

    def _record(self, infos: dict, taken: int, state: PyTree) -> dict[str, np.ndarray]:
        total = self.method.num_steps
        fresh = {}
        for name, value in infos.items():
            host = np.moveaxis(np.asarray(value)[:taken], 0, 1)
            store = self.history.get(name)
            if store is None or store.shape[1] < total:
                grown = np.zeros((self.chains, total, *host.shape[2:]), host.dtype)
                if store is not None:
                    grown[:, : store.shape[1]] = store
                store = self.history[name] = grown
            store[:, self.t : self.t + taken] = host
            fresh[name] = host
        self._at = (self.t + taken, state)
        return fresh

    def _call(self, fresh: dict[str, np.ndarray], seconds: float, total: int) -> None:
        told = Progressed(
            self.t,
            total,
            self.method.num_warmup,
            seconds,
            fresh,
            self._snapshot,
            done=self.t >= total or not self.status.ok,
        )
        for callback in self.callbacks:
            verdict = callback(told)
            if verdict is not None and self.status.ok and self.t < total:
                self.status = verdict
                told.done = True

    def _capacity(self) -> int:
        """Steps that one call can hold: 256, fewer where the infos are large."""
        per_step = max(8 * self.chains * self.target.program.flat.size, 1)
        fit = max(8, min(256, _CHUNK_BYTES // per_step))
        return 2 ** (fit.bit_length() - 1)

    # -- resuming ---------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        t, state = self._at
        leaves = [np.asarray(x) for x in jax.tree.leaves(state)]
        history = {k: v[:, :t] for k, v in self.history.items()}
        return Snapshot(t, leaves, history, self.key, lambda: self._fingerprint)

    @functools.cached_property
    def _fingerprint(self) -> str:
        """What a checkpoint must agree with: density, data, and every setting but ``draws``."""
        settings = [
            (jax.tree_util.keystr(path), np.asarray(leaf).tolist())
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.method)
        ]
        # Addresses of objects differ from process to process.
        static = re.sub(r" at 0x[0-9a-f]+", "", repr(self.treedef))
        rows = None if self.rows is None else (self.rows.dim, self.rows.size)
        kept = [s for s in settings if not s[0].endswith(".draws")]
        whole = "gaussian_latent" not in self.method.requires
        with precision(self.target):  # it may be asked for after the run
            density = (density_fingerprint if whole else latent_fingerprint)(self.target)
        digest = hashlib.sha256(repr((static, kept, self.chains, rows, density)).encode())
        for leaf in jax.tree.leaves(self.target.arrays):
            digest.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
        return digest.hexdigest()

    def _resume(self, resume: str | Path | Snapshot | None) -> Snapshot | None:
        if resume is None:
            return None
        if isinstance(resume, Snapshot):
            snapshot = resume
        else:
            snapshot = CheckpointFile(Path(resume)).read()
        if snapshot.fingerprint != self._fingerprint:
            raise ValueError(
                "resume: the checkpoint belongs to another run (another model, other data, other "
                "settings of the method, or another version of JAX; only `draws` may differ); "
                "start afresh without resume=, or pass what the checkpointed run was given"
            )
        if snapshot.t > self.method.num_steps:
            raise ValueError(
                f"resume: the checkpoint is at step {snapshot.t}, past the {self.method.num_steps} "
                "steps asked for; ask for more draws"
            )
        return snapshot

    def _adopt(self, snapshot: Snapshot) -> None:
        leaves, treedef = jax.tree.flatten(self.state)
        pairs = zip(leaves, snapshot.leaves, strict=True)
        state = jax.tree.unflatten(treedef, [np.asarray(b, a.dtype) for a, b in pairs])
        self.history = {k: np.array(v) for k, v in snapshot.history.items()}
        self.key = snapshot.key
        if self.batches is not None:
            self.rows = Rows(self.batches, self.target, self.key)
        self._at = (snapshot.t, state)
        for callback in self.callbacks:
            adopt = getattr(callback, "file", None)
            if isinstance(adopt, CheckpointFile):
                adopt.resume_from(snapshot)


def _leaf(value: Any, dtype: np.dtype) -> np.ndarray:
    """A method's number as an array of the run's dtypes."""
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return array.astype(dtype)
    return array.astype(np.int32) if array.dtype.kind in "iu" else array
