"""Values over draws: the Program's functions mapped over blocks of draws by compiled programs.

Blocks have one fixed length, the last one padded, so that the number of draws is not part of any
compiled program: a refit, or more draws, compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from probkit.core import Target, wrap_key
from probkit.core._programs import compiled
from probkit.core._run import precision

_BLOCK_BYTES = 2**24


def map_draws(
    target: Target,
    name: str,
    fn: Callable,
    rows: Any,
    key: np.ndarray,
    *,
    size: int = 0,
    variant: Hashable = None,
    shared: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """``fn(key, row, arrays)`` for every row of a tree of arrays with a common leading axis.

    Args:
        target: whose arrays are passed, and whose Program keeps the compiled program.
        name: what is computed; the key of the compiled program.
        fn: traceable; returns a dictionary of arrays for one row.
        rows: tree of host arrays, shape ``(n, ...)``.
        key: raw key data; row ``i`` gets ``fold_in(key, i)``.
        size: largest number of array elements of one row's result, where it is known.
        variant: what ``fn`` depends on besides the name.
        shared: entries that all rows have alike, without the leading axis: ``rows`` is a dictionary
            then, ``fn`` is given both in one, and what depends on these alone is computed once a
            block (the factor of a process' covariance, with its hyperparameters at a point).
    """
    if shared is None:
        size = max(size, target.program.workspace(target.arrays))
    leaves = jax.tree.leaves(rows)
    count = int(leaves[0].shape[0])
    if not count:
        # No draws (a run that was stopped in its warm-up): names, shapes and dtypes all the same.
        one = jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), rows)
        some = map_draws(target, name, fn, one, key, size=size, variant=variant, shared=shared)
        return jax.tree.map(lambda x: x[:0], some)
    block = _block(count, max([size, *(int(x[0].size) for x in leaves)]))

    in_turn = target.program.in_turn()

    def over_block(data: Any, start: Any, part: Any, alike: Any, arrays: dict) -> Any:
        base = wrap_key(data)
        index = start + np.arange(block, dtype=np.uint32)

        def one(i: Any, row: Any) -> Any:
            whole = row if alike is None else {**row, **alike}
            return fn(jax.random.fold_in(base, i), whole, arrays)

        if in_turn and alike is None:
            return jax.lax.map(lambda pair: one(*pair), (index, part))
        return jax.vmap(one)(index, part)

    pieces = []
    with precision(target):
        for begin in range(0, count, block):
            part = jax.tree.map(lambda x, b=begin: _padded(x[b : b + block], block), rows)
            args = (key, np.uint32(begin), part, shared, target.arrays)
            program = compiled(target.program, name, (block, variant), over_block, args)
            result = jax.tree.map(np.asarray, program(*args))
            left = min(block, count - begin)
            pieces.append(jax.tree.map(lambda x, n=left: x[:n], result))
    if len(pieces) == 1:
        return pieces[0]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *pieces)


def _block(count: int, size: int) -> int:
    """Rows in a block: a power of two, fewer where a row is large."""
    fit = int(np.clip(_BLOCK_BYTES // (8 * max(size, 1)), 1, 1024))
    return 2 ** (fit.bit_length() - 1)


def _padded(x: np.ndarray, block: int) -> np.ndarray:
    short = block - x.shape[0]
    if short == 0:
        return x
    return np.concatenate([x, np.broadcast_to(x[-1:], (short, *x.shape[1:]))])


def constrained(target: Target, flat: np.ndarray, key: np.ndarray) -> dict[str, np.ndarray]:
    """Values of all sites, shape ``(chain, draw, *shape)``, of unconstrained draws."""
    program = target.program
    lead = flat.shape[:2]
    rows = flat.reshape(-1, flat.shape[-1])
    size = sum(int(np.prod(s.shape)) for s in program.sites.values())

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        return program.constrain(key, program.flat.unravel(row), arrays)

    values = map_draws(target, "constrain", fn, rows, key, size=size)
    return {k: v.reshape(lead + v.shape[1:]) for k, v in values.items()}


def log_densities(target: Target, rows: np.ndarray) -> np.ndarray:
    """Log density at rows of unconstrained points, shape ``(n, d)``."""
    program = target.program

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        return {"lp": Target(program, arrays).flat_log_density(row)}

    rows = np.asarray(rows, program.dtype)
    return map_draws(target, "log_density", fn, rows, np.zeros(2, np.uint32))["lp"]
