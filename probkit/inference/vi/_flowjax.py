r"""The only file that touches flowjax: its coupling and autoregressive flows as families.

The flow is flowjax's own (``coupling_flow`` and ``masked_autoregressive_flow`` with affine
transformers), pushed from a standard normal; the score is the gradient of its density. An
autoregressive flow is fast one way only: built "inverted", draws and their densities cost one pass
and densities elsewhere d of them.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from probkit.inference.vi._family import (
    Family,
    Params,
    Pushed,
    draw_by_push,
    pushed_by_density,
)


@dataclass(frozen=True)
class FlowJax(Family):
    """A flow of flowjax's; see its documentation for what each builder makes.

    Attributes:
        kind: "coupling" or "autoregressive".
        layers: layers of the flow.
        width: hidden units of each layer's net.
    """

    kind: str
    layers: int = 4
    width: int = 32
    dense: bool = True

    def check_size(self, size: int) -> None:
        if size < 2:
            raise ValueError(
                f"VI(family={self.kind!r}): its layers move some entries given others, and this "
                f"model has {size} unconstrained entry; use family='flow' or 'fullrank'"
            )

    def build(self, key: Array, size: int) -> Any:
        """flowjax's own object."""
        try:
            from flowjax import bijections, distributions, flows
        except ImportError as error:
            raise ImportError(
                f"VI(family={self.kind!r}) needs flowjax: pip install 'probkit[flows]'; "
                "family='flow' needs nothing more"
            ) from error
        base = distributions.Normal(jnp.zeros(size))
        shape = {"flow_layers": self.layers, "nn_width": self.width, "invert": False}
        if self.kind == "coupling":
            return flows.coupling_flow(
                key, base_dist=base, transformer=bijections.Affine(), **shape
            )
        return flows.masked_autoregressive_flow(
            key, base_dist=base, transformer=bijections.Affine(), **shape
        )

    def _split(self, size: int) -> tuple[Any, Any]:
        """Shapes of the parameters, and the rest of the flow (functions, fixed arrays)."""
        return _split(self, size)

    def _flow(self, params: Params) -> Any:
        import equinox as eqx
        import paramax

        shapes, rest = self._split(params["loc"].shape[0])
        structure = jax.tree.structure(shapes)
        made = jax.tree.unflatten(structure, [params[k] for k in sorted(params) if k != "loc"])
        return paramax.unwrap(eqx.combine(made, rest))

    def init(self, key: Array, start: Params) -> Params:
        w = start["w"]
        leaves = jax.tree.leaves(self._split(w.shape[0])[0])
        named = {f"p{i:03d}": jnp.asarray(x, w.dtype) for i, x in enumerate(leaves)}
        return {**named, "loc": w}

    def noise(self, key: Array, n: int, size: int, dtype: Any) -> Array:
        return jax.random.normal(key, (n, size), dtype)

    def push(self, params: Params, noise: Array) -> Pushed:
        flow = self._flow(params)
        w, log_det = flow.bijection.transform_and_log_det(noise)
        w = w + params["loc"]
        seen = pushed_by_density(self, params, w)
        return seen._replace(log_q=flow.base_dist.log_prob(noise) - log_det)

    def log_density(self, params: Params, w: Array) -> Array:
        return self._flow(params).log_prob(w - params["loc"])

    def draw(self, params: Params, key: Array, n: int, size: int) -> Array:
        return draw_by_push(self, params, key, n, size)

    def settle(self, new: Params, old: Params, step: Params, prox: bool) -> Params:
        return new


@functools.cache
def _split(family: FlowJax, size: int) -> tuple[Any, Any]:
    import equinox as eqx
    import paramax

    def build() -> Any:
        return family.build(jax.random.key(0), size)

    # Traces are a thread's own: in another thread the flow is built of numbers, not of tracers.
    with ThreadPoolExecutor(1) as pool:
        flow = pool.submit(build).result()
    fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
    return eqx.partition(flow, eqx.is_inexact_array, is_leaf=fixed)
