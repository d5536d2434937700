"""Scale maps: steps to a gap of 1e-3 on a 100-dimensional Gaussian, and the noise of gradients.

Target N(m, diag(s^2)) from q = N(0, I), with sds around 0.1, 1 (whitened coordinates) and 10;
stochastic gradient descent with steps of size rate / (1 + t / fall). Each map has its own best rate
and fall: from a coarse grid with one seed, then a fine one around the best rate with three, by the
median steps until the KL divergence, in closed form, is below 1e-3. Reparameterised gradients
(40 draws a step) are noisy at the optimum; there the linear map takes the proximal step of the
entropy. Path gradients (10 draws) have no noise at the optimum and a constant step size.

One step size serves means and scales alike. Means want one of about s^2, and so do linear scales;
with exp the scale's curvature is 2 whatever s is, and softplus is like exp below 1 and like the
identity above. So exp and softplus are slow where s is far below 1, and exp where it is above.

The last table tells the gradient's noise, tr Var(g), its size, E|g|^2, and the ratio
|E g|^2 / tr Var(g), half way (KL 1 nat a dimension) and near the optimum.

``python -m benchmarks.vi_scales [--cases 0,1]``
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _common as c
from probkit.inference.vi._engine import Recipe, gradient_of
from probkit.inference.vi._gaussian import Affine
from probkit.inference.vi._scale_maps import SCALE_MAPS, free_of, scale_of

SIZE, DRAWS = 100, 10
#: In units of the square of the middle sd, which the means want.
_RATES, _NEAR = 10.0 ** (np.arange(-9, 3) / 3.0), 10.0 ** np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
_FALLS = {"reparam": (30.0, 100.0, 300.0), "stl": (1e30,)}
_MOST, _BATCH = {"reparam": 6000, "stl": 5000}, {"reparam": 40, "stl": DRAWS}


def target(dense: bool, middle: float, spread: float) -> tuple[jax.Array, jax.Array]:
    """Mean and triangular factor of the target's covariance."""
    rng = np.random.default_rng(0)
    sds = middle * np.logspace(-spread, spread, SIZE)
    root = np.diag(sds)
    if dense:
        root = sds[:, None] * (np.eye(SIZE) + 0.05 * np.tril(rng.normal(size=(SIZE, SIZE)), -1))
    mean = 0.5 * middle * rng.normal(size=SIZE)
    return jnp.asarray(mean, jnp.float32), jnp.asarray(root, jnp.float32)


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


def steps(kind: str, dense: bool, gradient: str, middle: float, spread: float) -> dict[str, float]:
    """Fewest median steps over the grid of step sizes and falls, and which they are."""
    family = Affine(dense, kind)
    mean, root = target(dense, middle, spread)
    white = jnp.asarray(np.linalg.inv(np.asarray(root, float)), jnp.float32)
    # (A diagonal target needs no product with a matrix, which would be most of the time.)
    thin = lambda gap: white @ gap if dense else jnp.diag(white) * gap  # noqa: E731
    log_p = lambda w: -0.5 * jnp.sum(thin(w - mean) ** 2)  # noqa: E731
    prox = kind == "linear" and gradient == "reparam"
    draws = _BATCH[gradient]
    recipe = Recipe(family, "elbo", gradient, draws, 1, prox)
    start = family.init(jax.random.key(0), {"w": jnp.zeros(SIZE)})
    most = _MOST[gradient]

    def one(rate: jax.Array, fall: jax.Array, key: jax.Array) -> jax.Array:
        def go(carry: tuple) -> tuple:
            i, params, gap = carry
            noise = family.noise(jax.random.fold_in(key, i), draws, SIZE, jnp.float32)
            grad, _, _ = gradient_of(recipe, noise, params, log_p, jnp.float32(0), jnp.float32(1))
            now = rate / (1.0 + i / fall)
            moved = jax.tree.map(lambda p, g: p - now * g, params, grad)
            new = family.settle(moved, params, jax.tree.map(lambda g: now, grad), prox)
            gap = divergence(family, new, mean, white, root)
            return i + 1, new, jnp.where(jnp.isfinite(gap), gap, jnp.inf)

        def on(carry: tuple) -> jax.Array:
            return (carry[0] < most) & (carry[2] > 1e-3) & (carry[2] < 1e12)

        i, _, gap = jax.lax.while_loop(on, go, (jnp.int32(0), start, jnp.float32(1e3)))
        return jnp.where(gap <= 1e-3, i, most)

    over = jax.jit(jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None)))

    def best_of(rates: np.ndarray, falls: tuple, seeds: int) -> tuple[float, float, float]:
        pairs = np.array([(r, f) for r in rates for f in falls], np.float32)
        keys = jax.random.split(jax.random.key(1), seeds)
        taken = np.median(np.asarray(over(pairs[:, 0], pairs[:, 1], keys)), axis=1)
        i = int(np.argmin(taken))
        return float(taken[i]), float(pairs[i, 0]), float(pairs[i, 1])

    _, rate, fall = best_of(middle**2 * _RATES, _FALLS[gradient], 1)
    taken, rate, fall = best_of(rate * _NEAR, (fall,), 3)
    return {"steps": taken, "rate": rate, "fall": fall}


def noise_table(kind: str, gradient: str, near: bool) -> dict[str, float]:
    """tr Var(g), E|g|^2 and |E g|^2 / tr Var(g) of one gradient of a diagonal Gaussian."""
    family = Affine(False, kind)
    mean, root = target(False, 1.0, 0.5)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default="", help="a part of the cases, by number: 0,1,12")
    args = parser.parse_args()
    out: dict[str, Any] = {}
    diagonal = [(0.1, 0.0), (1.0, 0.0), (10.0, 0.0), (1.0, 0.2)]
    cases = [(g, False, *at) for g in ("reparam", "stl") for at in diagonal]
    cases.append(("stl", True, 1.0, 0.2))
    picked = [int(k) for k in args.cases.split(",")] if args.cases else range(len(cases))
    for gradient, dense, middle, spread in (cases[k] for k in picked):
        shape = "Cholesky" if dense else "diagonal"
        name = f"{gradient}, {shape}, sds {middle:g} x 10^+-{spread:g}"
        rows = {k: steps(k, dense, gradient, middle, spread) for k in SCALE_MAPS}
        out[name] = rows
        others = min(rows["softplus"]["steps"], rows["exp"]["steps"])
        words = ", ".join(
            f"{k} {v['steps']:.0f} (rate {v['rate']:.2g}, fall {v['fall']:.3g})"
            for k, v in rows.items()
        )
        print(f"  {name}: {words}", flush=True)
        limit = 1.0 if gradient == "reparam" else None
        c.line(f"{name}: linear over best other", rows["linear"]["steps"] / others, limit)
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
