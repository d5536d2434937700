"""The methods on declared models: one token changes the engine, the Posterior is the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Status
from probkit.inference.gaussian import _gp_exact, _learning, _learnt
from probkit.inference.gaussian._gp_methods import exact_engine
from probkit.inference.gaussian._learning import _check_memory
from probkit.inference.gaussian._posterior import log_predictive, predict_latent, summarise
from probkit.inference.gaussian._problem import Problem

RNG = np.random.default_rng(0)
X = RNG.uniform(-3, 3, size=40)
Y = np.sin(2 * X) + 0.3 * RNG.normal(size=40)

regression = pk.Model(
    sd=pk.dist.LogNormal(0, 1),
    length=pk.dist.LogNormal(0, 1),
    noise=pk.dist.LogNormal(-1, 1),
    f=pk.gp(lambda sd, length: sd**2 * pk.kernels.RBF(length), at="x"),
    y=pk.rv(lambda f, noise: pk.dist.Normal(f, noise), dims="row"),
)
classes = pk.Model(
    sd=pk.dist.LogNormal(0, 1),
    length=pk.dist.LogNormal(0, 1),
    f=pk.gp(lambda sd, length: sd**2 * pk.kernels.Matern52(length), at="x"),
    y=pk.rv(lambda f: pk.BernoulliProbit(f), dims="row"),
)


def fit(model, y, method, **more):
    return pk.fit(model, {"x": X, "y": y}, method=method, progress=False, **more)


@pytest.fixture(scope="module")
def exact():
    return fit(regression, Y, pk.GPExact())


def test_exact_against_scikit_learn(exact):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    sd, length, noise = np.exp(exact.approximation.stats["theta"])
    kernel = ConstantKernel(sd**2) * RBF(length) + WhiteKernel(noise**2)
    peer = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(X[:, None], Y)
    assert abs(peer.log_marginal_likelihood_value_ - exact.approximation.log_evidence) < 1e-8
    new = np.linspace(-4, 4, 7)
    target = regression.bind({"x": new, "y": np.zeros(7)})
    mean, var = predict_latent(exact.target, exact.approximation, target)
    peer_mean, peer_sd = peer.predict(new[:, None], return_std=True)
    np.testing.assert_allclose(mean, peer_mean, atol=1e-8)
    np.testing.assert_allclose(var + noise**2, peer_sd**2, atol=1e-8)


def test_exact_leave_one_out(exact):
    sd, length, noise = np.exp(exact.approximation.stats["theta"])
    K = sd**2 * np.exp(-0.5 * ((X[:, None] - X) / length) ** 2) + noise**2 * np.eye(40)
    inverse = np.linalg.inv(K)
    var = 1 / np.diag(inverse)
    gap = (inverse @ Y) * var
    truth = -0.5 * np.log(2 * np.pi * var) - 0.5 * gap**2 / var
    np.testing.assert_allclose(exact.approximation.stats["loo_i"], truth, atol=1e-8)
    found = exact.loo()
    np.testing.assert_allclose(found.pointwise, truth, atol=1e-8)
    assert abs(found.elpd - truth.sum()) < 1e-7 and not found.khat.any()
    assert 2.0 < found.p_loo < 20.0


@pytest.mark.parametrize(
    ("log_length", "log_noise"), [(-0.2, -1.0), (-0.2, -5.0), (-0.2, 3.0), (-4.0, -12.0)]
)
def test_the_search_tells_what_the_summary_would(log_length, log_noise):
    target = regression.bind({"x": X, "y": Y})
    with jax.enable_x64(True):
        problem, theta = Problem.of(target), jnp.asarray([0.1, log_length, log_noise])
        _, sites, told = _gp_exact.evidence(problem, theta, jnp.asarray(-jnp.inf))
        params = {"theta": theta, "l1": sites.l1, "l2": sites.l2, "arrays": target.arrays}
        whole = summarise(target.program, params)
        tight = {"mean": 1e-12, "sd": 1e-9, "loo": 1e-9}
        for name, tolerance in tight.items():
            np.testing.assert_allclose(told[name], whole[name], rtol=tolerance, atol=tolerance)
        sd, length, noise = np.exp(np.asarray(theta))
    K = sd**2 * np.exp(-0.5 * ((X[:, None] - X) / length) ** 2) + noise**2 * np.eye(40)
    inverse = np.linalg.inv(K)
    var = 1 / np.diag(inverse)
    truth = -0.5 * (np.log(2 * np.pi * var) + (inverse @ Y) ** 2 * var)
    np.testing.assert_allclose(told["loo"], truth, rtol=1e-9, atol=1e-9)


def test_an_exact_fit_needs_no_program_after_its_search(monkeypatch):
    def never(*args):
        raise AssertionError("the summary was asked for")

    monkeypatch.setattr(_learnt, "_summary", never)
    found = fit(regression, Y[::-1].copy(), pk.GPExact(starts=1))
    assert found.status is Status.OK and np.all(found.approximation.stats["f_sd"] > 0)


def test_what_a_search_told_is_forgotten_where_it_goes_on():
    """A search that is done takes further trials while others are not; a loose end shows it."""
    target, told = regression.bind({"x": X, "y": Y}), 0
    with jax.enable_x64(True):
        engine = exact_engine()
        step = jax.jit(lambda state: _learning.step(target, state, engine, "map", 0.9)[0])
        for seed in range(6):
            state = _learning.init(np.random.default_rng(seed), target, engine, 4)
            for _ in range(20):
                state = step(state)
                mean = np.asarray(state["told"]["mean"])
                if np.isnan(state["told"]["jitters"]).any():
                    continue
                theta = np.asarray(state["search_x"]) + target.gaussian_latent.centre
                sd, length, noise = np.exp(theta)
                K = sd**2 * np.exp(-0.5 * ((X[:, None] - X) / length) ** 2)
                truth = K @ np.linalg.solve(K + noise**2 * np.eye(40), Y)
                np.testing.assert_allclose(mean, truth, atol=1e-9)
                told += 1
    assert told > 20


def test_sites_without_an_observation_are_predicted():
    """What the search tells has no such rows: the summary's program is asked."""
    model = pk.Model(
        sd=pk.dist.LogNormal(0, 1),
        length=pk.dist.LogNormal(0, 1),
        noise=pk.dist.LogNormal(-1, 1),
        f=pk.gp(lambda sd, length: sd**2 * pk.kernels.RBF(length), at="x"),
        y=pk.rv(lambda f, noise, site: pk.dist.Normal(f[site], noise), dims="row"),
    )
    seen = np.flatnonzero(np.arange(40) % 7 != 3)
    data = {"x": X, "site": seen, "y": Y[seen]}
    dims = {"x": ("place",), "site": ("row",), "y": ("row",)}
    found = pk.fit(model.bind(data, dims=dims), method=pk.GPExact(), progress=False)
    sd, length, noise = np.exp(found.approximation.stats["theta"])
    K = sd**2 * np.exp(-0.5 * ((X[:, None] - X) / length) ** 2)
    precision = np.linalg.inv(K[seen][:, seen] + noise**2 * np.eye(len(seen)))
    mean = K[:, seen] @ precision @ Y[seen]
    var = np.diag(K - K[:, seen] @ precision @ K[seen])
    np.testing.assert_allclose(found.approximation.stats["f_mean"], mean, atol=1e-8)
    np.testing.assert_allclose(found.approximation.stats["f_sd"], np.sqrt(var), rtol=1e-6)


def test_leave_one_out_of_seen_rows_alone():
    """Rows without a label have no density to leave out."""
    gone = np.arange(40) % 7 == 3
    y = np.ma.masked_array((Y > 0).astype(int), gone)
    found = fit(classes, y, pk.EP(draws=20))
    rows = found.approximation.stats["loo_i"]
    np.testing.assert_array_equal(found.loo().pointwise, rows[~gone])


def test_draws_have_the_moments(exact):
    stats = exact.approximation.stats
    f = exact.values["f"][0]
    # 40 means of 500 draws: each within 5 standard errors (false alarms below 1e-4).
    assert np.all(np.abs(f.mean(0) - stats["f_mean"]) < 5 * stats["f_sd"] / np.sqrt(500))
    assert np.all(np.abs(f.std(0) / stats["f_sd"] - 1) < 5 / np.sqrt(1000))
    assert exact.status is Status.OK and exact.check().ok
    assert "f" in exact.to_arviz().posterior


@pytest.mark.slow
@pytest.mark.parametrize("method", [pk.EP, pk.CVI, pk.HybridEP, pk.GPLaplace])
def test_all_engines_agree_on_gaussian_terms(exact, method):
    found = fit(regression, Y, method())
    assert abs(found.approximation.log_evidence - exact.approximation.log_evidence) < 1e-7
    np.testing.assert_allclose(
        found.approximation.stats["theta"], exact.approximation.stats["theta"], atol=1e-3
    )


def test_classification_and_held_out_density():
    y = (np.sin(2 * X) + 0.3 * RNG.normal(size=40) > 0).astype(int)
    found = fit(classes, y, pk.EP(draws=50))
    assert found.status is Status.OK
    assert found.approximation.stats["elpd_loo"] > 40 * np.log(0.5)
    new = classes.bind({"x": X, "y": y})
    assert np.mean(log_predictive(found.target, found.approximation, new)) > np.log(0.6)


def test_laplace_finds_the_mode_of_large_counts():
    """From a mean of zero Newton's first step is ten thousand times too long."""
    x = np.linspace(0.0, 5.0, 30)
    counts = np.random.default_rng(0).poisson(1e5 * np.exp(np.sin(x)))
    model = pk.Model(
        f=pk.gp(pk.kernels.Matern52(2.0, 100.0), at="x"),
        y=pk.rv(lambda f: pk.dist.Poisson(jnp.exp(f)), dims="row"),
    )
    found = pk.fit(model, {"x": x, "y": counts}, method=pk.GPLaplace(draws=10), progress=False)
    assert found.check().ok
    np.testing.assert_allclose(found.approximation.stats["f_mean"], np.log(counts), atol=0.01)


def test_exact_refuses_other_terms():
    with pytest.raises(ValueError, match=r"pk\.EP\(\)"):
        fit(classes, (Y > 0).astype(int), pk.GPExact())


def test_bad_options():
    with pytest.raises(TypeError, match="damping"):
        pk.EP(dampin=0.5)
    with pytest.raises(ValueError, match="objective"):
        pk.CVI(objective="mle")
    with pytest.raises(ValueError, match="starts"):
        pk.HybridEP(starts=0)
    with pytest.raises(ValueError, match="step"):
        pk.CVI(step=1.5)


def test_models_without_a_process_are_refused():
    model = pk.Model(a=pk.dist.Normal(0, 1), y=pk.rv(lambda a: pk.dist.Normal(a, 1), dims="row"))
    with pytest.raises(ValueError, match="gaussian_latent"):
        pk.fit(model, {"y": Y}, method=pk.EP(), progress=False)


def test_too_many_rows_say_what_to_do():
    with pytest.raises(ValueError, match="at most 1020 rows"):
        _check_memory("f", 100_000, 1e8)


def at_scale(size: float) -> tuple[pk.Model, dict]:
    """The regression with inputs in other units, and a prior that knows them."""
    length = pk.dist.LogNormal(float(np.log(size)), 1)
    return regression.replace(length=length), {"x": X * size, "y": Y}


METHODS = {
    "exact": pk.GPExact(),
    "laplace": pk.GPLaplace(),
    "sparse": pk.SVGP(inducing=12),
    "marginal": pk.Marginal(pk.Laplace()),  # (Whose k-hat is high.)
}


@pytest.mark.parametrize(
    "name", ["exact", *(pytest.param(k, marks=pytest.mark.slow) for k in METHODS if k != "exact")]
)
def test_units_of_the_inputs_do_not_matter(name):
    ends = []
    for size in (1.0, 1e7, 1e-7):
        model, data = at_scale(size)
        found = pk.fit(model, data, method=METHODS[name], progress=False)
        assert found.status is Status.OK and found.check().ok == (name != "marginal")
        length = np.median(found.values["length"]) / size
        ends.append([found.approximation.log_evidence, 10 * np.log(length)])
    tolerance = 1e-6 if name == "exact" else 0.2
    np.testing.assert_allclose(ends[1:], [ends[0]] * 2, atol=tolerance)


@pytest.mark.parametrize(
    "name", ["exact", *(pytest.param(k, marks=pytest.mark.slow) for k in METHODS if k != "exact")]
)
def test_a_mean_in_units_of_the_data_is_found(name):
    """Its prior is wide: no wall stands before 60, and a search gets there."""
    model = regression.extend(mu=pk.dist.Normal(0.0, 100.0)).replace(
        f=pk.gp(lambda sd, length: sd**2 * pk.kernels.RBF(length), at="x", mean=lambda mu: mu)
    )
    ends = []
    for far in (0.0, 60.0):
        found = pk.fit(model, {"x": X, "y": Y + far}, method=METHODS[name], progress=False)
        assert found.status is Status.OK and found.check().ok == (name != "marginal")
        length, mu = (np.median(found.values[k]) for k in ("length", "mu"))
        ends.append([found.approximation.log_evidence, 10 * np.log(length), mu - far])
    np.testing.assert_allclose(ends[1], ends[0], atol=5e-2 if name == "exact" else 0.3)


def test_an_optimum_found_once_is_noted():
    ends = np.array([3.0, -np.inf, 2.0])
    once, twice = _learnt._starts_check(ends), _learnt._starts_check(ends.clip(2.95))
    assert once.ok is None and once.value == 1.0 and "only one of 3" in once.advice
    assert twice.ok and twice.advice == ""
    lost = _learnt._starts_check(np.array([3.0, np.nan]))
    assert lost.ok is None and np.isinf(lost.value)


def test_searches_are_told_of_where_there_are_several(exact):
    assert "starts" in exact.check()
    assert "starts" not in fit(regression, Y, pk.GPExact(starts=1)).check()
