"""A function as one compiled kernel on a CPU.

XLA's CPU runtime executes a program operation by operation, at some fifty to a hundred nanoseconds
each. A leapfrog step of a small model has a hundred operations on ten numbers, and the runtime is
all that its user waits for. A call that carries the attribute ``xla_cpu_small_call`` is compiled
into a single function instead, loops and branches included (it is what XLA does by itself with
loops that touch less than a kilobyte). Measured on eight schools: NUTS from 1.5 processor seconds
to 0.2 (`benchmarks.ess_per_second`).

What may stand inside is bounded: XLA compiles neither library calls (Cholesky, eigenvalues), nor
sorts, nor scatters there, and products of matrices become plain loops. `fits_one_kernel` tells from
the lowered program whether it is worth it and possible; other platforms ignore the attribute.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from probkit.core._scatter_loops import with_scatters_as_loops

#: Operations that XLA's one-function compiler knows, as they appear in lowered programs.
_KNOWN = frozenset(
    """abs add and atan2 bitcast_convert broadcast_in_dim case cbrt ceil clamp compare
    concatenate constant convert cosine count_leading_zeros divide dot_general dynamic_slice
    dynamic_update_slice exponential exponential_minus_one floor gather if iota is_finite log
    log_plus_one logistic maximum minimum multiply negate not or pad popcnt power reduce
    reduce_window remainder reshape return reverse round_nearest_afz round_nearest_even rsqrt
    scatter select shift_left shift_right_arithmetic shift_right_logical sign sine slice sqrt
    subtract tan tanh transpose while xor""".split()
)
_KNOWN_CHLO = frozenset(
    """acos acosh asin asinh atan atanh bessel_i1e broadcast_add broadcast_and broadcast_compare
    broadcast_divide broadcast_maximum broadcast_minimum broadcast_multiply broadcast_power
    broadcast_select broadcast_subtract conj constant constant_like cosh digamma erf erf_inv erfc
    is_inf lgamma next_after polygamma sinh square zeta""".split()
)
#: Above it, the work outweighs what the runtime adds (bytes read and written by one evaluation).
_MOST_BYTES = 1 << 23


def fits_one_kernel(lowered: Any, text: str) -> bool:
    """Whether a lowered function (and its text) is small, and made of what may stand there."""
    if jax.default_backend() != "cpu":
        return False
    if not set(re.findall(r"\bstablehlo\.(\w+)", text)) <= _KNOWN:
        return False
    if not set(re.findall(r"\bchlo\.(\w+)", text)) <= _KNOWN_CHLO:
        return False
    costs = lowered.cost_analysis()
    return bool(costs) and costs.get("bytes accessed", float("inf")) <= _MOST_BYTES


def as_one_kernel(fn: Callable) -> Callable:
    """``fn`` of pytrees of arrays, compiled as one kernel where it is called from a CPU program."""

    def call(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        raw = [_unwrapped(x) for x in leaves]
        like = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in raw]
        shape: list[Any] = []

        def flat(*raw: Any) -> list[Any]:
            own = [_wrapped(x, old) for x, old in zip(raw, leaves, strict=True)]
            with set_xla_metadata(**_UNMARKED):
                found, treedef = jax.tree.flatten(fn(*jax.tree.unflatten(tree, own)))
            shape.append(treedef)
            return found

        closed = with_scatters_as_loops(jax.make_jaxpr(flat)(*like))
        # Values of an enclosing trace become operands like the others.
        outer = [i for i, x in enumerate(closed.consts) if isinstance(x, Tracer)]

        def kernel(*operands: Any) -> tuple[list[Any], Any]:
            consts = list(closed.consts)
            for i, x in zip(outer, operands[len(raw) :], strict=True):
                consts[i] = x
            with set_xla_metadata(**_UNMARKED):
                run = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))
                return run(*operands[: len(raw)]), _touched(operands)

        with set_xla_metadata(**_MARKED):
            found, _ = jax.jit(kernel)(*raw, *(closed.consts[i] for i in outer))
        return jax.tree.unflatten(shape[0], found)

    return call


#: The attribute, which is how a lowered program tells that it holds such a call.
ONE_KERNEL = "xla_cpu_small_call"
_MARKED: dict[str, Any] = {ONE_KERNEL: "true", "inlineable": "false"}
_UNMARKED: dict[str, Any] = dict.fromkeys(_MARKED)


def _touched(operands: tuple) -> Any:
    """A bit of every operand: XLA aborts the process at a kernel with an unread operand."""
    first = [jnp.ravel(x)[0] != 0 for x in operands if jnp.size(x)]
    return jnp.stack(first) if first else ()


def _unwrapped(x: Any) -> Any:
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key):
        return jax.random.key_data(x)
    return x


def _wrapped(x: Any, old: Any) -> Any:
    if jnp.issubdtype(jnp.result_type(old), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old))
    return x
