"""Scale maps: steps to a gap of 1e-3 on a 100-dimensional Gaussian, and the noise of gradients.

Target N(m, diag(s^2)) from q = N(0, I); stochastic gradient descent with 10 draws a step, the first
step size the best of a grid for each map (the fewest median steps over 3 seeds until the KL
divergence, in closed form, is below 1e-3). Reparameterised gradients are noisy at the optimum, so
that their step size falls as 1 / (1 + t / 200); there the linear map takes the proximal step of the
entropy. Path gradients have no noise at the optimum and a constant step size. The last table
tells the gradient's noise, tr Var(g), its size, E|g|^2, and the ratio |E g|^2 / tr Var(g), half
way (KL 1 nat a dimension) and near the optimum.

``python -m benchmarks.vi_scales``
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _common as c
from probkit.inference.vi._engine import Recipe, gradient_of
from probkit.inference.vi._gaussian import Affine
from probkit.inference.vi._scale_maps import SCALE_MAPS, free_of, scale_of

SIZE, DRAWS = 100, 10
_RATES, _FALL = np.logspace(-2.5, 0.0, 11), 200.0


def target(dense: bool, spread: float) -> tuple[jax.Array, jax.Array]:
    """Mean and triangular factor of the target's covariance."""
    rng = np.random.default_rng(0)
    sds = np.logspace(-spread, spread, SIZE)
    root = np.diag(sds)
    if dense:
        root = sds[:, None] * (np.eye(SIZE) + 0.05 * np.tril(rng.normal(size=(SIZE, SIZE)), -1))
    return jnp.asarray(rng.normal(size=SIZE) * 0.5, jnp.float32), jnp.asarray(root, jnp.float32)


def divergence(
    family: Affine, params: dict, mean: jax.Array, white: jax.Array, root: jax.Array
) -> jax.Array:
    """KL(q || p) in closed form."""
    s = scale_of(family.scale, params["scale"])
    gap = params["loc"] - mean
    if family.dense:
        square = jnp.sum((white @ (jnp.diag(s) + jnp.tril(params["lower"], -1))) ** 2)
        gap = white @ gap
    else:
        square, gap = jnp.sum((jnp.diag(white) * s) ** 2), jnp.diag(white) * gap
    log_ratio = jnp.sum(jnp.log(jnp.diag(root))) - jnp.sum(jnp.log(s))
    return 0.5 * (square + jnp.sum(gap**2) - SIZE) + log_ratio


def steps(kind: str, dense: bool, gradient: str, spread: float) -> tuple[float, float]:
    """Fewest median steps over the grid of step sizes, and the step size."""
    family = Affine(dense, kind)
    mean, root = target(dense, spread)
    white = jnp.asarray(np.linalg.inv(np.asarray(root, float)), jnp.float32)
    # (A diagonal target needs no product with a matrix, which would be most of the time.)
    thin = lambda gap: white @ gap if dense else jnp.diag(white) * gap  # noqa: E731
    log_p = lambda w: -0.5 * jnp.sum(thin(w - mean) ** 2)  # noqa: E731
    prox = kind == "linear" and gradient == "reparam"
    recipe = Recipe(family, "elbo", gradient, DRAWS, 1, prox)
    start = family.init(jax.random.key(0), {"w": jnp.zeros(SIZE)})
    most = 30_000 if gradient == "reparam" else 3000

    def one(rate: jax.Array, key: jax.Array) -> jax.Array:
        def go(carry: tuple) -> tuple:
            i, params, gap = carry
            noise = family.noise(jax.random.fold_in(key, i), DRAWS, SIZE, jnp.float32)
            grad, _, _ = gradient_of(recipe, noise, params, log_p, jnp.float32(0), jnp.float32(1))
            now = rate / (1.0 + i / _FALL) if gradient == "reparam" else rate
            moved = jax.tree.map(lambda p, g: p - now * g, params, grad)
            new = family.settle(moved, params, jax.tree.map(lambda g: now, grad), prox)
            gap = divergence(family, new, mean, white, root)
            return i + 1, new, jnp.where(jnp.isfinite(gap), gap, jnp.inf)

        def on(carry: tuple) -> jax.Array:
            return (carry[0] < most) & (carry[2] > 1e-3) & (carry[2] < 1e8)

        i, _, gap = jax.lax.while_loop(on, go, (jnp.int32(0), start, jnp.float32(1e3)))
        return jnp.where(gap <= 1e-3, i, most)

    keys = jax.random.split(jax.random.key(1), 3)
    rates = jnp.asarray(_RATES, jnp.float32)
    over = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    taken = np.median(np.asarray(over(rates, keys)), axis=1)
    best = int(np.argmin(taken))
    return float(taken[best]), float(_RATES[best])


def noise_table(kind: str, gradient: str, near: bool) -> dict[str, float]:
    """tr Var(g), E|g|^2 and |E g|^2 / tr Var(g) of one gradient of a diagonal Gaussian."""
    family = Affine(False, kind)
    mean, root = target(False, 0.5)
    log_p = lambda w: -0.5 * jnp.sum(((w - mean) / jnp.diag(root)) ** 2)  # noqa: E731
    factor, shift = (1.02, 0.02) if near else (2.0, 0.7)
    s = jnp.diag(root) * factor
    params = {"loc": mean + shift * jnp.diag(root), "scale": free_of(kind, s)}
    recipe = Recipe(family, "elbo", gradient, DRAWS, 1, False)

    def one(key: jax.Array) -> Any:
        noise = family.noise(key, DRAWS, SIZE, jnp.float32)
        return gradient_of(recipe, noise, params, log_p, jnp.float32(0), jnp.float32(1))[0]

    found = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), 2000))
    g = np.concatenate([np.asarray(x, float) for x in jax.tree.leaves(found)], axis=1)
    spread = float(np.sum(g.var(axis=0)))
    mean_square = float(np.sum(g.mean(axis=0) ** 2)) - spread / len(g)
    return {
        "tr_var": spread,
        "mean_square": float(np.mean(np.sum(g**2, axis=1))),
        "snr": mean_square / spread,
    }


def main() -> None:
    """Measure, print and write."""
    out: dict[str, Any] = {}
    cases = [("reparam", False, 0.0), ("reparam", False, 0.2), ("stl", False, 0.2)]
    for gradient, dense, spread in [*cases, ("stl", False, 0.5), ("stl", True, 0.2)]:
        name = f"{gradient}, {'Cholesky' if dense else 'diagonal'}, sds 10^+-{spread:g}"
        rows = {k: steps(k, dense, gradient, spread) for k in SCALE_MAPS}
        out[name] = rows
        others = min(rows["softplus"][0], rows["exp"][0])
        words = ", ".join(f"{k} {v[0]:.0f} (rate {v[1]:.3g})" for k, v in rows.items())
        print(f"  {name}: {words}", flush=True)
        c.line(f"{name}: linear over best other", rows["linear"][0] / others, 1.0)
    for near in (False, True):
        for gradient in ("reparam", "stl"):
            for kind in SCALE_MAPS:
                row = noise_table(kind, gradient, near)
                out[f"noise, {'near' if near else 'far'}, {gradient}, {kind}"] = row
                print(
                    f"  {'near' if near else 'far '} {gradient:<8}{kind:<9} "
                    f"tr Var {row['tr_var']:10.4g}  E|g|^2 {row['mean_square']:10.4g}  "
                    f"SNR {row['snr']:8.3g}",
                    flush=True,
                )
    c.save("vi_scales", out)


if __name__ == "__main__":
    main()
