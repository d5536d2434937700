"""Estimators: scikit-learn's own conventions and its exact regression; units do not matter."""

from __future__ import annotations

import pickle
import sys
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.estimators._kernels import kernel_plan
from probkit.models.kernels import cross_covariance

pytest.importorskip("sklearn")

RNG = np.random.default_rng(3)
X = RNG.uniform(-3, 3, size=(50, 2))
Y = np.sin(X[:, 0]) + 0.1 * RNG.normal(size=50)
LABELS = np.where(X[:, 0] ** 2 + 0.5 * RNG.normal(size=50) > 2, "far", "near")
NEW = RNG.uniform(-4, 4, size=(7, 2))


def conventions(estimator: Any) -> list[str]:
    """The names of scikit-learn's checks that an estimator fails."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        # (Some of its outcomes are functions of the inputs, or constant: no noise is least.)
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = check_estimator(estimator, on_skip=None, on_fail=None)
    return [f"{r['check_name']}: {r['exception']}" for r in rows if r["status"] == "failed"]


@pytest.fixture(scope="module")
def regressor() -> Any:
    return pk.estimators.GPRegressor("rbf", random_state=0).fit(X, Y)


@pytest.fixture(scope="module")
def classifier() -> Any:
    return pk.estimators.GPClassifier(random_state=0).fit(X, LABELS)


def test_regressor_keeps_the_conventions() -> None:
    assert conventions(pk.estimators.GPRegressor()) == []


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["ep", "laplace"])
def test_classifier_keeps_the_conventions(inference: str) -> None:
    assert conventions(pk.estimators.GPClassifier(inference=inference)) == []


def test_regression_is_scikit_learns(regressor: Any) -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    sd, length, noise = (regressor.hyperparameters_[k] for k in ("sd", "length", "noise"))
    kernel = ConstantKernel(sd**2) * RBF(length) + WhiteKernel(noise**2)
    peer = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(X, Y - Y.mean())
    mean, std = regressor.predict(NEW, return_std=True)
    truth, sd_truth = peer.predict(NEW, return_std=True)
    np.testing.assert_allclose(mean, truth + Y.mean(), atol=1e-8)
    np.testing.assert_allclose(std, sd_truth, atol=1e-8)
    value = regressor.log_marginal_likelihood_value_
    assert abs(value - peer.log_marginal_likelihood_value_) < 1e-7
    _, cov = regressor.predict(NEW, return_cov=True)
    np.testing.assert_allclose(cov, peer.predict(NEW, return_cov=True)[1], atol=1e-8)
    assert regressor.score(X, Y) > 0.97


def test_units_of_inputs_and_outcomes_do_not_matter(regressor: Any) -> None:
    other = pk.estimators.GPRegressor("rbf", random_state=0).fit(1e3 * X, 1e-2 * Y + 5.0)
    mean, std = other.predict(1e3 * NEW, return_std=True)
    truth, sd_truth = regressor.predict(NEW, return_std=True)
    np.testing.assert_allclose(mean, 1e-2 * truth + 5.0, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std, 1e-2 * sd_truth, rtol=1e-3)
    ratio = other.hyperparameters_["length"] / regressor.hyperparameters_["length"]
    assert abs(ratio / 1e3 - 1) < 1e-3


def test_probabilities_are_integrated(classifier: Any) -> None:
    from scipy.special import ndtr

    p = classifier.predict_proba(NEW)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    mean, var = classifier._fits[0].predict(NEW)
    z, w = np.polynomial.hermite_e.hermegauss(80)
    inner = ndtr(mean[0][:, None] + np.sqrt(var[0])[:, None] * z) @ (w / w.sum())
    np.testing.assert_allclose(p[:, 1], inner, atol=1e-4)
    assert classifier.score(X, LABELS) > 0.85 and set(classifier.predict(NEW)) <= {"far", "near"}


def test_a_pickle_predicts_the_same(classifier: Any, regressor: Any) -> None:
    for fitted, method in ((classifier, "predict_proba"), (regressor, "predict")):
        copy = pickle.loads(pickle.dumps(fitted))
        ours, its = getattr(fitted, method)(NEW), getattr(copy, method)(NEW)
        np.testing.assert_array_equal(ours, its)


def test_kernels_as_objects_and_functions() -> None:
    learnt = pk.estimators.GPRegressor(2.0 * pk.kernels.RBF(0.5), random_state=0).fit(X, Y)
    assert len(learnt.hyperparameters_) == 4 and learnt.score(X, Y) > 0.97
    wide = pk.estimators.GPRegressor(ard=True, random_state=0).fit(X, Y)
    assert wide.posterior_.approximation.stats["starts"] == 4
    # The second column says nothing: its length scale is longer.
    assert wide.hyperparameters_["length[1]"] > 2.0 * wide.hyperparameters_["length[0]"]


def test_outcomes_of_any_size_with_a_kernel_of_ones_own() -> None:
    """Kernels whose variance is far from that of the outcomes, GPJax's among them."""
    big, huge = 500.0 * Y, 1e8 * Y
    for kernel in (
        pk.kernels.RBF(0.5) + pk.kernels.Linear(1.0),
        pk.kernels.RationalQuadratic(),
        lambda scale, size: pk.kernels.RBF(scale, size**2),
    ):
        found = pk.estimators.GPRegressor(kernel, random_state=0).fit(X, big)
        assert found.score(X, big) > 0.97
        least = pk.estimators.GPRegressor(kernel, random_state=0).fit(X, huge)
        np.testing.assert_allclose(least.predict(NEW) / 1e8, found.predict(NEW) / 500, atol=1e-4)
    # A default is what a function's number begins around.
    plan = kernel_plan(lambda scale=3.0: pk.kernels.RBF(scale), 1, ard=False)
    made = plan.make(jnp.zeros(1), 1.0, 1.0)
    found = cross_covariance(made, jnp.zeros((1, 1)), jnp.full((1, 1), 3.0))
    np.testing.assert_allclose(found, np.exp(-0.5), rtol=1e-6)
    sizes = pk.estimators.GPRegressor(
        pk.kernels.Linear(2.0) * pk.kernels.PoweredExponential(0.4, 1.5), random_state=0
    )
    assert set(sizes.fit(X, Y).hyperparameters_) == {
        "left.variance",
        "right.lengthscale",
        "right.variance",
        "noise",
    }


def test_draws_have_the_predicted_moments(regressor: Any) -> None:
    """20,000 draws: means within 5 of their standard errors, covariances within 5 %."""
    near = np.concatenate([NEW[:3], NEW[:1]])  # one row twice: it shares the function
    mean, cov = regressor.predict(near, return_cov=True)
    drawn = regressor.sample_y(near, 20_000, random_state=1)
    sd = np.sqrt(np.diag(cov))
    assert np.all(np.abs(drawn.mean(axis=1) - mean) < 5 * sd / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(drawn), cov, atol=0.05 * sd.max() ** 2)
    with pytest.raises(ValueError, match="return_std and return_cov"):
        regressor.predict(near, return_std=True, return_cov=True)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"kernel": "matern53"}, ValueError, "Did you mean 'matern52'"),
        ({"kernel": pk.kernels.RBF}, TypeError, "pk.kernels.RBF"),
        ({"kernel": pk.kernels.RBF(), "ard": True}, ValueError, "kernel by name"),
        ({"inference": "exactly"}, ValueError, "Did you mean 'exact'"),
        ({"options": {"start": 2}}, TypeError, "Did you mean 'starts'"),
        ({"inference": pk.GPExact(), "options": {"starts": 2}}, TypeError, "leave them out"),
        ({"inference": pk.EP}, TypeError, "such as pk.EP"),
    ],
)
def test_mistakes(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pk.estimators.GPRegressor(**options).fit(X, Y)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "probkit.estimators._sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"probkit\[sklearn\]"):
        import probkit.estimators._sklearn  # noqa: F401


def test_fits_that_are_not_right_warn() -> None:
    from sklearn.exceptions import ConvergenceWarning

    GPRegressor, GPClassifier = pk.estimators.GPRegressor, pk.estimators.GPClassifier
    with pytest.warns(ConvergenceWarning, match=r"hyperparameters .* max_steps.*posterior_\.check"):
        GPRegressor(options={"max_steps": 2}, random_state=0).fit(X, Y)
    with pytest.warns(ConvergenceWarning, match="range .* a constant outcome"):
        GPRegressor(random_state=0).fit(X, np.ones(50))
    three = np.arange(50) % 3
    with pytest.warns(ConvergenceWarning, match=r"class 0 .*3 fits.*posteriors_\[0\]\.check"):
        GPClassifier(options={"max_steps": 1}, random_state=0).fit(X, three)


@pytest.mark.slow
def test_few_draws_warn() -> None:
    from sklearn.exceptions import ConvergenceWarning

    few = {"draws": 20, "warmup": 10, "chains": 2}
    with pytest.warns(ConvergenceWarning, match="GPRegressor: .*r_hat "):
        pk.estimators.GPRegressor(inference="nuts", options=few, random_state=0).fit(X, Y)


def test_what_is_no_kernel_or_engine_is_told_at_once() -> None:
    from sklearn.gaussian_process.kernels import Matern

    with pytest.raises(TypeError, match="kernels of other libraries are not taken"):
        pk.estimators.GPRegressor(Matern()).fit(X, Y)
    with pytest.raises(TypeError, match=r"take pk\.Marginal\(pk\.NUTS\(\)\)"):
        pk.estimators.GPRegressor(inference=pk.NUTS()).fit(X, Y)
