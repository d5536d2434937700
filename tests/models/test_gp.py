"""Gaussian processes in the graph: densities against dense linear algebra in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import probkit as pk
from probkit import dist

X = np.array([0.0, 0.4, 1.1, 2.5, 2.6])
Y = np.array([0.3, 0.5, -0.2, 0.9, 1.0])


def squared(scale):
    return lambda a, b: jnp.exp(-0.5 * jnp.sum(((a - b) / scale) ** 2))


def model(**more) -> pk.Model:
    return pk.Model(
        scale=dist.LogNormal(0, 1),
        f=pk.gp(squared, at="x", jitter=1e-4, **more),
        y=pk.rv(lambda f: dist.Normal(f, 0.3), dims="row"),
    )


def dense(scale: float, mean=0.0) -> np.ndarray:
    gram = np.exp(-0.5 * ((X[:, None] - X[None]) / scale) ** 2) + 1e-4 * np.eye(5)
    f = np.linspace(-0.5, 1.0, 5)
    return f, stats.multivariate_normal.logpdf(f, np.broadcast_to(mean, 5), gram)


@pytest.mark.parametrize("style", ["centred", "auto"])
def test_the_density_is_that_of_the_process(style):
    reparam = "auto" if style == "auto" else {"f": "centred"}
    target = model().bind({"x": X, "y": Y}, reparam=reparam)
    assert target.sites["f"].dims == ("row",)
    f, want = dense(0.8)
    z = target.unconstrain({"scale": jnp.asarray(0.8), "f": jnp.asarray(f)})
    got = float(target.terms(z).prior["f"])
    if style == "auto":
        # Whitened coordinates: the density of f is that of z over the determinant of L.
        gram = np.exp(-0.5 * ((X[:, None] - X[None]) / 0.8) ** 2) + 1e-4 * np.eye(5)
        got -= 0.5 * np.linalg.slogdet(gram)[1]
    assert got == pytest.approx(want, rel=2e-3)
    np.testing.assert_allclose(target.constrain(z)["f"], f, atol=2e-4)


def test_a_mean_may_depend_on_parents_and_columns():
    made = pk.Model(
        scale=dist.LogNormal(0, 1),
        b=dist.Normal(0, 1),
        f=pk.gp(squared, at="x", mean=lambda b, x: b * x, jitter=1e-4),
        y=pk.rv(lambda f: dist.Normal(f, 0.3), dims="row"),
    )
    target = made.bind({"x": X, "y": Y}, reparam={"f": "centred"})
    f, want = dense(0.8, 0.7 * X)
    values = {"scale": jnp.asarray(0.8), "b": jnp.asarray(0.7), "f": jnp.asarray(f)}
    got = float(target.terms(target.unconstrain(values)).prior["f"])
    assert got == pytest.approx(want, rel=2e-3)


def test_points_of_several_columns():
    made = pk.Model(
        f=pk.gp(lambda: squared(1.0), at=["x", "t"], jitter=0.1),
        y=pk.rv(lambda f: dist.Normal(f, 0.3), dims="row"),
    )
    t = np.array([0.0, 1.0, 0.0, 1.0, 0.5])
    target = made.bind({"x": X, "t": t, "y": Y}, reparam={"f": "centred"})
    points = np.stack([X, t], -1)
    gap = ((points[:, None] - points[None]) ** 2).sum(-1)
    want = stats.multivariate_normal.logpdf(Y, np.zeros(5), np.exp(-0.5 * gap) + 0.1 * np.eye(5))
    got = target.terms({"f": jnp.asarray(Y, jnp.float32)}).prior["f"]
    assert float(got) == pytest.approx(want, rel=1e-4)


def test_a_gpjax_kernel_is_taken():
    gpjax = pytest.importorskip("gpjax")
    made = pk.Model(
        scale=dist.LogNormal(0, 1),
        f=pk.gp(lambda scale: gpjax.kernels.RBF(lengthscale=scale), at="x", jitter=1e-4),
        y=pk.rv(lambda f: dist.Normal(f, 0.3), dims="row"),
    )
    theirs, ours = made.bind({"x": X, "y": Y}), model().bind({"x": X, "y": Y})
    z = {"scale": jnp.asarray(-0.3), "f": jnp.linspace(-1.0, 1.0, 5)}
    want = float(ours.log_density(z))
    assert float(theirs.log_density(z)) == pytest.approx(want, rel=1e-4)


def test_a_mean_of_gpjax_is_taken():
    gpjax = pytest.importorskip("gpjax")

    def bound(mean):
        data = {"x": X, "y": Y}
        return model(mean=mean).bind(data, reparam={"f": "centred"})

    z = {"scale": jnp.asarray(-0.3), "f": jnp.linspace(-1.0, 1.0, 5)}
    want = float(bound(0.7).log_density(z))
    fixed = gpjax.mean_functions.Constant(0.7)
    for mean in (fixed, lambda: fixed):
        assert float(bound(mean).log_density(z)) == pytest.approx(want, rel=1e-6)


def test_the_default_jitter_carries_a_smooth_kernel_in_single_precision():
    x = np.linspace(0, 1, 200)
    made = pk.Model(
        f=pk.gp(lambda: squared(0.5), at="x", precision="single"),
        y=pk.rv(lambda f: dist.Normal(f, 0.1), dims="row"),
    )
    target = made.bind({"x": x, "y": np.sin(6 * x)})
    z = {"f": jnp.ones(200, jnp.float32)}
    slope = jax.grad(target.log_density)(z)["f"]
    assert np.isfinite(slope).all()


def test_missing_outcomes_are_how_a_process_predicts():
    y = np.array([0.3, 0.5, np.nan, 0.9, 1.0])
    made = pk.Model(
        f=pk.gp(lambda: squared(0.8), at="x"), y=pk.rv(lambda f: dist.Normal(f, 0.3), dims="row")
    )
    posterior = pk.fit(
        made, {"x": X, "y": y}, method=pk.NUTS(draws=500, warmup=300, chains=2), progress=False
    )
    gram = np.exp(-0.5 * ((X[:, None] - X[None]) / 0.8) ** 2)
    seen = [0, 1, 3, 4]
    noisy = gram[np.ix_(seen, seen)] + 0.09 * np.eye(4)
    mean = gram[2, seen] @ np.linalg.solve(noisy, y[seen])
    var = gram[2, 2] - gram[2, seen] @ np.linalg.solve(noisy, gram[seen, 2])
    draws = posterior.values["f"][..., 2]
    # At least 200 effective draws: five standard errors.
    assert abs(draws.mean() - mean) < 5 * np.sqrt(var / 200)


MISTAKES = {
    "no column": (lambda: pk.gp(squared), "at='x'"),
    "misspelt": (lambda: pk.gp(squared, att="x"), "Did you mean 'at'"),
    "no function": (lambda: pk.gp(3.0, at="x"), "kernel_fn"),
    "two dims": (lambda: pk.gp(squared, at="x", dims=("a", "b")), "one dim"),
    "jitter": (lambda: pk.gp(squared, at="x", jitter=-1.0), "jitter"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_of_declaration(name):
    make, words = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=words):
        make()


def test_a_kernel_that_is_none_is_named_at_bind():
    made = pk.Model(
        scale=dist.LogNormal(0, 1),
        f=pk.gp(lambda scale: scale, at="x"),
        y=pk.rv(lambda f: dist.Normal(f, 0.3), dims="row"),
    )
    with pytest.raises(TypeError, match="site 'f'.*two points"):
        made.bind({"x": X, "y": Y})


def test_inputs_may_be_whole_numbers():
    years = np.array([1990, 1991, 1994, 1995, 1999])
    bound = model().bind({"x": years, "y": Y})
    same = model().bind({"x": years.astype(float), "y": Y})
    z = jax.tree.map(lambda v: v + 0.1, bound.example)
    assert float(bound.log_density(z)) == pytest.approx(float(same.log_density(z)))


OUTPUTS = {
    "ICM": lambda: pk.kernels.ICM(pk.kernels.RBF(), np.ones((2, 1))),
    "LCM": lambda: pk.kernels.LCM([OUTPUTS["ICM"](), OUTPUTS["ICM"]()]),
    "Derivative": lambda: 2.0 * pk.kernels.Derivative(pk.kernels.RBF()) + 1.0,
    "Columns": lambda: pk.kernels.Columns(OUTPUTS["ICM"](), [0, 1]),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("kinds", [[0, 1, 0, 1, 2], [0, 1, 0, 1, -1], [0.0, 0.5, 1.0, 0.0, 1.0]])
def test_outputs_that_there_are_not_are_refused(name, kinds):
    made = pk.Model(
        f=pk.gp(OUTPUTS[name], at=["x", "kind"]),
        y=pk.rv(lambda f: dist.Normal(f, 0.3), dims="row"),
    )
    right = made.bind({"x": X, "kind": [0, 1, 0, 1, 1], "y": Y})
    with pytest.raises(ValueError, match=r"site 'f'.*expected (outputs|kinds).* among 0 to 1"):
        made.bind({"x": X, "kind": kinds, "y": Y})
    with pytest.raises(ValueError, match="count each"):
        right.labels.rebind({"x": X, "kind": kinds}, like=right)
