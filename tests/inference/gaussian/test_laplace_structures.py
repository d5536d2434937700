"""Laplace's approximation by structure, against its dense twin."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Status, run
from probkit.inference.gaussian._blocks import Blocks

GROUPS = 6


@functools.cache
def hierarchy(coupled: bool = False) -> pk.Target:
    """Random intercepts and slopes of groups, counts in rows; seven global entries and more."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(GROUPS), 5)
    x = rng.normal(size=30)
    y = rng.poisson(np.exp(0.5 + 0.3 * rng.normal(size=GROUPS)[group] + 0.4 * x))
    extra = {}
    if coupled:
        extra["chain"] = pk.factor(lambda a: -2.0 * jnp.sum((a[1:] - a[:-1]) ** 2))
    model = pk.Model(
        mu=pk.dist.Normal(0, 1),
        sd=pk.dist.LogNormal(-1, 0.3),
        a=pk.rv(lambda mu, sd: pk.dist.Normal(mu, sd), dims="group"),
        b=pk.rv(lambda: pk.dist.Normal(0, 0.5), dims="group"),
        y=pk.rv(
            lambda a, b, group_of, x: pk.dist.Poisson(jnp.exp(a[group_of] + b[group_of] * x)),
            dims="row",
        ),
        **extra,
    )
    data = {"y": y, "group_of": group, "x": x}
    return model.bind(data, coords={"group": np.arange(GROUPS)}, reparam="off")


@functools.cache
def wide() -> pk.Target:
    """Logistic regression with more weights than rows: the data inform 8 directions of 40."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(8, 40))
    model = pk.Model(
        w=pk.rv(lambda: pk.dist.Normal(0, 0.7), dims="k"),
        y=pk.rv(lambda X, w: pk.dist.Bernoulli(logits=X @ w), dims="row"),
    )
    data = {"X": X, "y": (X[:, 0] > 0).astype(int)}
    return model.bind(data, dims={"X": ("row", "k")}, coords={"k": np.arange(40)})


def _dense_precision(fit) -> np.ndarray:
    tril = np.asarray(fit.output.params["tril"], float)
    return tril @ tril.T


def _agree(target: pk.Target, one, dense):
    """Mode, evidence, density, and the covariance of 40,000 draws in the dense one's units."""
    assert one.status is Status.OK and dense.status is Status.OK
    precision = _dense_precision(dense)
    root = np.linalg.cholesky(precision)
    gap = root.T @ (np.asarray(one.output.params["mean"]) - dense.output.params["mean"])
    assert np.max(np.abs(gap)) < 0.01
    assert one.output.log_evidence == pytest.approx(dense.output.log_evidence, abs=2e-3)
    one_params, dense_params = (jax.tree.map(jnp.asarray, f.output.params) for f in (one, dense))
    points = dense.output.sample(dense_params, jax.random.key(1), 20)
    got = jax.vmap(lambda z: one.output.log_density(one_params, z))(points)
    expected = jax.vmap(lambda z: dense.output.log_density(dense_params, z))(points)
    np.testing.assert_allclose(got, expected, atol=0.05)
    draws = np.asarray(one.output.sample(one_params, jax.random.key(2), 40_000), float)
    white = (draws - dense.output.params["mean"]) @ root
    d = target.program.flat.size
    # The largest of d (d + 1) / 2 entries, each with a standard error of 0.005 to 0.007.
    assert np.max(np.abs(white.T @ white / 40_000 - np.eye(d))) < 0.035


@functools.cache
def _dense(name: str):
    return run({"hierarchy": hierarchy, "wide": wide}[name](), pk.Laplace(starts=1), 0)


def test_blocks_equal_the_dense_twin():
    fit = run(hierarchy(), pk.Laplace(structure="blocks", starts=1), 0)
    _agree(hierarchy(), fit, _dense("hierarchy"))
    assert fit.output.stats["groups"] == GROUPS
    (check,) = [c for c in fit.output.checks if c.name == "structure"]
    assert check.ok and check.value < 1e-4


def test_entries_outside_the_blocks_are_told():
    fit = run(hierarchy(True), pk.Laplace(structure="blocks", starts=1, max_steps=30), 0)
    (check,) = [c for c in fit.output.checks if c.name == "structure"]
    assert not check.ok and "dense" in check.advice


def test_a_step_solves_with_the_damped_matrix():
    """Where all blocks are positive the arrow's factors multiply to ``P + l I``."""
    target, dense = hierarchy(), _dense("hierarchy")
    z = jnp.asarray(dense.output.params["mean"])
    slope = np.random.default_rng(0).normal(size=z.shape[0])
    blocks = Blocks()

    @jax.jit
    def look(z, g, damping):
        parts = blocks.measure(target.without_labels(), z, None)
        return blocks.solve(parts, g, damping)

    precision = _dense_precision(dense)
    for damping in (0.0, 3.0):
        got, decrement = look(z, jnp.asarray(slope, z.dtype), jnp.float32(damping))
        expected = np.linalg.solve(precision + damping * np.eye(len(slope)), slope)
        np.testing.assert_allclose(got, expected, rtol=5e-3, atol=1e-3)
    exact = 0.5 * slope @ np.linalg.solve(precision, slope)
    assert float(decrement) == pytest.approx(float(exact), rel=5e-3)


def test_low_rank_equals_the_dense_twin():
    fit = run(wide(), pk.Laplace(structure="lowrank", rank=10, starts=1), 0)
    _agree(wide(), fit, _dense("wide"))
    assert fit.output.stats["rank"] == 10 and fit.output.stats["left_out"] < 1e-3


def test_directions_left_out_are_told():
    fit = run(wide(), pk.Laplace(structure="lowrank", rank=1, starts=1), 0)
    (check,) = [c for c in fit.output.checks if c.name == "structure"]
    assert not check.ok and "rank=2" in check.advice


def test_no_dim_to_divide_along():
    target = pk.Target.from_log_density(lambda z: -jnp.sum(z["x"] ** 2), {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="lowrank"):
        run(target, pk.Laplace(structure="blocks"), 0)
    with pytest.raises(ValueError, match="group"):
        run(hierarchy(), pk.Laplace(structure="blocks", dim="grup"), 0)
    with pytest.raises(ValueError, match="blocks"):
        pk.Laplace(dim="group")
    with pytest.raises(ValueError, match="structure"):
        pk.Laplace(structure="sparse")
