"""Several classes under one softmax: against the model layer, and what must not matter."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import probkit as pk
from probkit import dist
from probkit.inference.gaussian._several_posterior import predict_rows

pytest.importorskip("sklearn")

RNG = np.random.default_rng(5)
X = RNG.normal(size=(37, 2))
CODES = np.argmax(X @ np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.2]]) + RNG.normal(size=(37, 3)), 1)
NAMES = np.array(["elm", "ash", "oak"])[CODES]
NEW = 1.5 * RNG.normal(size=(9, 2))


def fitted(y: np.ndarray, inference: str = "laplace", x: np.ndarray = X) -> Any:
    model = pk.estimators.GPClassifier(
        inference=inference, multi_class="softmax", options={"starts": 1}, random_state=0
    )
    return model.fit(x, y)


@pytest.fixture(scope="module")
def trees() -> Any:
    return fitted(NAMES)


def by_model(method: Any, y: np.ndarray) -> tuple[Any, np.ndarray]:
    """The same model declared by hand, not padded, and its integrated probabilities."""
    unit = float(np.sqrt(np.sum(np.var(X, axis=0))))

    def kernel(h):
        return pk.kernels.Matern52(unit * jnp.exp(h[1]), jnp.exp(2.0 * h[0]))

    model = pk.Model(
        h=dist.Normal(jnp.zeros(2), 1.5),
        **{f"f{c}": pk.gp(kernel, at=["a", "b"]) for c in range(3)},
        y=pk.rv(
            lambda f0, f1, f2: dist.Categorical(logits=jnp.stack([f0, f1, f2], -1)), dims="row"
        ),
    )
    data = {"a": X[:, 0], "b": X[:, 1], "y": y}
    fit = pk.fit(model, data, method=method, reparam="off", progress=False)
    rebind, logs = fit.target.labels.rebind, []
    for c in range(3):
        new = rebind({"a": NEW[:, 0], "b": NEW[:, 1], "y": np.full(len(NEW), c)})
        logs.append(predict_rows(fit.target, fit.approximation, new)["log_density"])
    return fit, np.exp(np.stack(logs, -1))


@pytest.mark.parametrize("inference", ["laplace", pytest.param("cvi", marks=pytest.mark.slow)])
def test_it_is_the_model_layers(inference: str, trees: Any) -> None:
    method = {"laplace": pk.GPLaplace, "cvi": pk.CVI}[inference](starts=1)
    ours = trees if inference == "laplace" else fitted(NAMES, inference)
    fit, p = by_model(method, np.unique(NAMES, return_inverse=True)[1])
    assert abs(ours.log_marginal_likelihood_value_ - fit.approximation.log_evidence) < 5e-3
    h = fit.approximation.stats["theta"]
    assert abs(np.log(ours.hyperparameters_["sd"]) - h[0]) < 1e-2
    np.testing.assert_allclose(ours.predict_proba(NEW), p, atol=2e-3)
    assert set(ours.hyperparameters_) == {"sd", "length"} and len(ours.posteriors_) == 1


def test_labels_are_names(trees: Any) -> None:
    assert list(trees.classes_) == ["ash", "elm", "oak"]
    p = trees.predict_proba(NEW)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    assert set(trees.predict(NEW)) <= set(NAMES) and trees.score(X, NAMES) > 0.6
    # Beyond the data there is nothing to tell the classes by.
    np.testing.assert_allclose(trees.predict_proba([[500.0, 0.0]]), 1 / 3, atol=1e-3)


def test_which_class_is_first_does_not_matter(trees: Any) -> None:
    other = fitted(np.array([2, 0, 1])[np.unique(NAMES, return_inverse=True)[1]])
    np.testing.assert_allclose(
        other.predict_proba(NEW)[:, [2, 0, 1]], trees.predict_proba(NEW), atol=1e-5
    )


def test_rows_in_another_order_and_in_many_blocks(trees: Any) -> None:
    some = trees.predict_proba(NEW)
    many = trees.predict_proba(np.tile(NEW, (150, 1)))  # more than a block
    np.testing.assert_allclose(many, np.tile(some, (150, 1)), atol=1e-12)


def test_a_pickle_predicts_the_same(trees: Any) -> None:
    copy = pickle.loads(pickle.dumps(trees))
    np.testing.assert_array_equal(copy.predict_proba(NEW), trees.predict_proba(NEW))


def test_two_classes_leave_nothing_to_choose() -> None:
    both = [
        pk.estimators.GPClassifier(multi_class=kind, random_state=0)
        .fit(X, NAMES == "oak")
        .predict_proba(NEW)
        for kind in ("softmax", "one_vs_rest")
    ]
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"multi_class": "softmx"}, ValueError, "Did you mean 'softmax'"),
        ({"multi_class": "softmax", "inference": "svgp"}, ValueError, "3 Gaussian processes"),
        ({"multi_class": "softmax", "inference": "exact"}, ValueError, "3 Gaussian processes"),
    ],
)
def test_mistakes(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pk.estimators.GPClassifier(**options).fit(X, NAMES)


@pytest.mark.parametrize(("count", "sd", "room"), [(3, 2.0, 1e-6), (5, 2.0, 2e-3)])
def test_probabilities_are_integrated(count: int, sd: float, room: float) -> None:
    from probkit.estimators._softmax import shares

    rng = np.random.default_rng(count)
    root = sd * rng.normal(size=(count, count)) / np.sqrt(count)
    mean = rng.normal(size=count)
    if count == 3:  # the differences of two and the third are all that counts
        z, w = np.polynomial.hermite_e.hermegauss(150)
        grid = np.stack(np.meshgrid(z, z, indexing="ij"), -1).reshape(-1, 2)
        down = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
        tril = np.linalg.cholesky(down @ root @ root.T @ down.T)
        f = np.pad(down @ mean + grid @ tril.T, ((0, 0), (0, 1)))
        weights = np.outer(w, w).ravel() / w.sum() ** 2
    else:
        f, weights = mean + rng.normal(size=(1_000_000, count)) @ root.T, np.full(1_000_000, 1e-6)
    truth = weights @ softmax(f, axis=1)
    with jax.enable_x64(True):
        found = shares(jnp.asarray(mean)[:, None], jnp.asarray(root @ root.T)[:, :, None])
    # (The reference by random numbers is good to five standard errors.)
    limit = room if count == 3 else room + 5 * np.sqrt(np.max(truth * (1 - truth)) / 1e6)
    np.testing.assert_allclose(np.asarray(found)[0], truth, atol=limit)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GPClassifier.*(r_hat|ess_)")  # 200 draws are not many
def test_hyperparameters_are_drawn(trees: Any) -> None:
    model = pk.estimators.GPClassifier(
        inference="nuts",
        multi_class="softmax",
        options={"draws": 100, "warmup": 100, "chains": 2},
        random_state=0,
    ).fit(X, NAMES)
    p = model.predict_proba(NEW)
    np.testing.assert_allclose(p.sum(axis=1), 1.0)
    np.testing.assert_allclose(p, trees.predict_proba(NEW), atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("inference", ["laplace", "cvi"])
def test_the_conventions_are_kept(inference: str) -> None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.estimator_checks import check_estimator

    model = pk.estimators.GPClassifier(inference=inference, multi_class="softmax")
    with warnings.catch_warnings():
        # (Some of its classes are separable.)
        warnings.simplefilter("ignore", ConvergenceWarning)
        rows = check_estimator(model, on_skip=None, on_fail=None)
    assert [r["check_name"] for r in rows if r["status"] == "failed"] == []
