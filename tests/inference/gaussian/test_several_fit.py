"""Models with several processes through pk.fit: softmax classes, a noise that varies."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit import dist
from probkit.core import Status
from probkit.inference.gaussian._several_posterior import predict_rows


def softmax_model(**more) -> pk.Model:
    return pk.Model(
        length=dist.LogNormal(0.5, 0.7),
        sd=dist.LogNormal(0.5, 0.7),
        **{
            f"f{c}": pk.gp(lambda length, sd: sd**2 * pk.kernels.Matern52(length), at=list("abcd"))
            for c in range(3)
        },
        y=pk.rv(
            lambda f0, f1, f2: dist.Categorical(logits=jnp.stack([f0, f1, f2], -1)), dims="row"
        ),
        **more,
    )


def iris() -> tuple[dict, dict]:
    """45 rows to fit, 60 others to predict."""
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(150)
    X = (X - X[order[:45]].mean(0)) / X[order[:45]].std(0)

    def rows(index):
        return {**{k: X[index, j] for j, k in enumerate("abcd")}, "y": y[index]}

    return rows(order[:45]), rows(order[45:105])


def log_losses(posterior: pk.Posterior, new: dict) -> tuple[float, np.ndarray]:
    """The log loss by quadrature, and the class probabilities ``(rows, 3)``."""
    logs = []
    for c in range(3):
        rebind = posterior.target.labels.rebind
        assert rebind is not None
        other = rebind({**new, "y": np.full(len(new["y"]), c)})
        found = predict_rows(posterior.target, posterior.approximation, other)
        logs.append(found["log_density"])
    p = np.exp(np.stack(logs, -1))
    rows = np.arange(len(p))
    return -float(np.mean(np.log(p[rows, new["y"]]))), p


SLOW = [pytest.param(m, marks=pytest.mark.slow) for m in (pk.CVI, pk.HybridEP)]


@pytest.mark.parametrize("method", [pk.GPLaplace, pk.EP, *SLOW])
def test_softmax_classes(method):
    old, new = iris()
    posterior = pk.fit(softmax_model(), old, method=method(draws=200, starts=1), progress=False)
    assert posterior.status is Status.OK and posterior.check().ok
    integrated, p = log_losses(posterior, new)
    np.testing.assert_allclose(p.sum(1), 1.0, atol=1e-4)
    assert np.mean(p.argmax(1) == new["y"]) > 0.93
    predicted = posterior.predict({k: v for k, v in new.items() if k != "y"}).predictions
    share = np.stack([(predicted["y"].values == c).mean((0, 1)) for c in range(3)], -1)
    # 200 draws of a label: five standard errors (and a little for the seldom classes).
    assert np.all(np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / 200) + 0.02)
    if method in (pk.GPLaplace, pk.EP):
        return
    drawn = -float(np.mean(np.asarray(posterior.log_predictive(new))))
    assert abs(drawn - integrated) < 0.03
    # One against the rest, by Laplace's method.
    peer = pk.estimators.GPClassifier("matern52", inference="laplace")
    peer.fit(np.stack([old[k] for k in "abcd"], -1), old["y"])
    other = peer.predict_proba(np.stack([new[k] for k in "abcd"], -1))
    assert integrated < -np.mean(np.log(other[np.arange(len(p)), new["y"]]))


def heteroscedastic() -> tuple[pk.Model, dict]:
    rng = np.random.default_rng(1)
    x = np.sort(rng.uniform(-3, 3, 60))
    y = np.sin(2 * x) + (0.1 + 0.4 / (1 + np.exp(-2 * x))) * rng.normal(size=60)
    model = pk.Model(
        length=dist.LogNormal(0, 0.5),
        sd=dist.LogNormal(0, 0.5),
        level=dist.Normal(-1, 1),
        f=pk.gp(lambda length, sd: sd**2 * pk.kernels.RBF(length), at="x"),
        g=pk.gp(pk.kernels.RBF(2.0, 0.5), at="x", mean=lambda level: level),
        y=pk.rv(lambda f, g: dist.Normal(f, jnp.exp(g)), dims="row"),
    )
    return model, {"x": x, "y": y}


SLOWER = [pytest.param(m, marks=pytest.mark.slow) for m in (pk.GPLaplace, pk.EP, pk.HybridEP)]


@pytest.mark.parametrize("method", [pk.CVI, *SLOWER])
def test_a_noise_that_varies_is_found(method):
    model, data = heteroscedastic()
    posterior = pk.fit(model, data, method=method(draws=200, starts=1), progress=False)
    assert posterior.status is Status.OK
    new = np.array([-2.5, -1.5, 1.5, 2.5])
    predicted = posterior.predict({"x": new}).predictions
    noise = np.exp(predicted["g"].values).mean((0, 1))
    truth = 0.1 + 0.4 / (1 + np.exp(-2 * new))
    assert np.all((noise / truth > 0.5) & (noise / truth < 1.7))
    assert noise[2:].mean() > 2.5 * noise[:2].mean()
    assert predicted["f"].dims == ("chain", "draw", "row")
    tree = posterior.to_arviz()
    assert {"f", "g"} <= set(tree.posterior.data_vars)
    stats = posterior.approximation.stats
    assert stats["f_mean"].shape == (2, 60) and stats["loo_i"].shape == (60,)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "room"), [("laplace", 0.5), ("ep", 0.25)])
def test_hyperparameters_drawn_with_the_processes_integrated_out(engine, room):
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(-3, 3, size=30))
    y = np.digitize(np.sin(x) + 0.2 * rng.normal(size=30), [-0.4, 0.4])
    kernel = lambda length: 6.0 * pk.kernels.Matern52(length)  # noqa: E731
    model = pk.Model(
        length=dist.LogNormal(0, 0.7),
        f0=pk.gp(kernel, at="x"),
        f1=pk.gp(kernel, at="x"),
        f2=pk.gp(kernel, at="x"),
        y=pk.rv(
            lambda f0, f1, f2: dist.Categorical(logits=jnp.stack([f0, f1, f2], -1)), dims="row"
        ),
    )
    fits = [
        pk.fit(model, {"x": x, "y": y}, method=method, progress=False)
        for method in (
            pk.Marginal(pk.NUTS(draws=200, warmup=100, chains=2), engine=engine),
            pk.NUTS(draws=300, warmup=300, chains=2),
        )
    ]
    a, b = (fit.values["length"] for fit in fits)
    # Laplace's evidence is good to a few tenths of a nat here, EP's to hundredths.
    assert abs(a.mean() - b.mean()) < room * b.std() and 0.6 < a.std() / b.std() < 1.6


# -- the capability of a declared model ----------------------------------------------------------

X = np.array([0.0, 0.4, 1.1, 2.5, 2.6])
LABELS = np.array([0, 1, 2, 1, 0])


def three(value, **more) -> pk.Model:
    return pk.Model(
        scale=dist.LogNormal(0, 1),
        f0=pk.gp(lambda scale: pk.kernels.Matern32(scale), at="x", mean=lambda scale: scale),
        f1=pk.gp(lambda scale: 2.0 * pk.kernels.RBF(scale), at="x"),
        f2=pk.gp(pk.kernels.RBF(0.5), at="x"),
        y=pk.rv(value, dims="row"),
        **more,
    )


def stacked(scale=1.0, offset=0.0):
    return lambda f0, f1, f2: dist.Categorical(logits=jnp.stack([f0 + offset, f1, f2], -1) * scale)


def test_its_parts_are_those_of_the_model():
    target = three(stacked()).bind({"x": X, "y": LABELS})
    latents, arrays = target.gaussian_latents, target.arrays
    assert (latents.names, latents.dim, latents.size) == (("f0", "f1", "f2"), "row", 5)
    assert list(latents.theta.shapes) == ["scale"] and latents.softmax(arrays)
    with pk.core._trees.in_precision(target.dtype):
        theta = jnp.asarray([0.3])
        f = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
        K, m = latents.covariance(theta, arrays), latents.mean(theta, arrays)
        terms = latents.log_likelihood(theta, f, arrays)
        z = latents.point(theta, f, arrays)
        log_prior = latents.log_prior(theta, arrays)
    np.testing.assert_allclose(m[:, 0], [np.exp(0.3), 0, 0])
    d2 = (X[:, None] - X) ** 2
    np.testing.assert_allclose(K[1], 2 * np.exp(-0.5 * d2 / np.exp(0.6)), rtol=1e-12)
    np.testing.assert_allclose(K[2], np.exp(-0.5 * d2 / 0.25), atol=1e-12)
    f = np.asarray(f)
    want = f[LABELS, np.arange(5)] - np.log(np.exp(f).sum(0))
    np.testing.assert_allclose(terms, want, rtol=1e-10)
    # The whole log density is the sum of the parts, in whitened coordinates.
    white = np.concatenate([np.asarray(z[k]) for k in latents.names])
    total = float(log_prior) + want.sum() - 0.5 * white @ white - 7.5 * np.log(2 * np.pi)
    assert float(target.log_density(z)) == pytest.approx(total, rel=1e-10)
    np.testing.assert_allclose(target.constrain(z)["f1"], f[1], atol=1e-10)


def test_softmax_terms_are_told_from_others():
    def is_softmax(value, y=LABELS):
        target = three(value).bind({"x": X, "y": y})
        return target.gaussian_latents.softmax(target.arrays)

    assert is_softmax(stacked(offset=0.7))
    assert is_softmax(stacked(), np.array([0.0, np.nan, 2.0, 1.0, 0.0]))
    assert not is_softmax(stacked(scale=2.0))
    assert not is_softmax(lambda f0, f1, f2: dist.Poisson(jnp.exp(f0 + f1 - f2)))


METHODS = [pk.GPExact, pk.SVGP, pk.SparseHybridEP, functools.partial(pk.Marginal, engine="exact")]


@pytest.mark.parametrize("method", METHODS)
def test_methods_for_one_process_name_those_for_several(method):
    with pytest.raises(ValueError, match=r"pk\.EP\(\), pk\.CVI\(\), pk\.HybridEP\(\)"):
        pk.fit(three(stacked()), {"x": X, "y": LABELS}, method=method(), progress=False)


MISTAKES = {
    "rows": (
        three(lambda f0, f1, f2: dist.Normal(f0 + jnp.cumsum(f1) + f2, 1.0)),
        {"x": X, "y": X},
        "several rows",
    ),
    "dims": (
        three(
            lambda f0, f1, f2, other: dist.Normal(f0 + f1 + f2 + other[0], 1.0),
            other=pk.gp(pk.kernels.RBF(), at="t", dims="time"),
        ),
        {"x": X, "y": X, "t": X[:3]},
        "expected the same rows",
    ),
    "dependent": (
        three(
            lambda f0, f1, f2, g: dist.Normal(f0 + f1 + f2 + g, 1.0),
            g=pk.gp(pk.kernels.RBF(), at="x", mean=lambda f0: f0),
        ),
        {"x": X, "y": X},
        "'g'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_where_it_is_absent_the_reason_is_told(name):
    model, data, words = MISTAKES[name]
    target = model.bind(data)
    with pytest.raises(ValueError, match=words):
        _ = target.gaussian_latents


def test_too_many_rows_say_what_to_do():
    from probkit.inference.gaussian._several_problem import check_rows, posed

    target = three(stacked()).bind({"x": X, "y": LABELS})
    check_rows(posed(target.program, target.arrays, True), 100.0, 1e6)
    with pytest.raises(ValueError, match=r"at most 3 rows.*GPLaplace"):
        check_rows(posed(target.program, target.arrays, False), 100.0, 1e4)


def test_what_no_engine_takes_is_refused():
    """EP and the hybrid as the others: several rows of several processes in one observation."""
    model, data, _ = MISTAKES["rows"]
    for method in (pk.EP(), pk.HybridEP()):
        with pytest.raises(ValueError, match="several rows"):
            pk.fit(model, data, method=method, progress=False)


# -- joint modes that run away ---------------------------------------------------------------------


def noisy(kernel, **more) -> pk.Model:
    return pk.Model(
        f=pk.gp(lambda length, sd: sd**2 * kernel(length), at="x"),
        g=pk.gp(lambda length_g, sd_g: sd_g**2 * kernel(length_g), at="x", mean=-1.0),
        y=pk.rv(lambda f, g: dist.Normal(f, jnp.exp(g)), dims="row"),
        **more,
    )


def test_a_joint_mode_far_from_the_posterior_is_flagged():
    """A rough mean follows the data, its scale falls: the sites settle, and the bound tells."""
    _, data = heteroscedastic()
    model = noisy(pk.kernels.Matern12, level=dist.Normal(0.0, 1.0))
    fits = [
        pk.fit(
            model,
            {**data, "length": length, "sd": 1.0, "length_g": length, "sd_g": 0.5},
            method=pk.GPLaplace(draws=10),
            progress=False,
        )
        for length in (0.5, 20.0)
    ]
    bad, good = (f.check() for f in fits)
    assert not bad.ok and good.ok
    assert "pk.CVI()" in str(bad)
    assert all(f.approximation.stats["site_residual"] < 1e-4 for f in fits)


@pytest.mark.slow
def test_starts_without_a_mode_are_replaced():
    """Under wide priors most points have no joint mode to speak of: others are looked at."""
    _, data = heteroscedastic()
    names = ("length", "sd", "length_g", "sd_g")
    model = noisy(pk.kernels.Matern12, **{k: dist.LogNormal(0.0, 1.0) for k in names})
    data = {k: v[::2] for k, v in data.items()}
    for seed in range(2):
        found = pk.fit(model, data, method=pk.GPLaplace(draws=10), progress=False, seed=seed)
        stats = found.approximation.stats
        assert found.status is Status.OK and found.check().ok
        assert abs(stats["log_evidence"] - stats["lower_bound"]) < 1.0
