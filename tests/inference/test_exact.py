"""The exact posterior of linear Gaussian models, against linear algebra in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit.core import Status, Target, run
from tests.registry import COORDS, DIMS, problem, regression

_MODEL = pk.Model(
    a=pk.dist.Normal(0, 10),
    b=pk.rv(pk.dist.Normal(0, 5), dims="feature"),
    y=pk.rv(lambda a, b, X: pk.dist.Normal(a + X @ b, 0.5), dims="row"),
)


def _closed_form(X, y):
    """Posterior of (a, b) and evidence by numpy."""
    Z = np.column_stack([np.ones(len(y)), X])
    prior = np.diag([10.0, 5.0, 5.0]) ** 2
    precision = Z.T @ Z / 0.25 + np.linalg.inv(prior)
    mean = np.linalg.solve(precision, Z.T @ y / 0.25)
    marginal = 0.25 * np.eye(len(y)) + Z @ prior @ Z.T
    log_det = np.linalg.slogdet(marginal)[1]
    evidence = -0.5 * (y @ np.linalg.solve(marginal, y) + log_det + len(y) * np.log(2 * np.pi))
    return mean, np.linalg.inv(precision), float(evidence)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_linear_regression(offset, wide):
    """Far from the origin (60 noise sds) too, where the log density at the origin is -60,000."""
    rng = np.random.default_rng(3)
    X = rng.normal(size=(30, 2))
    y = offset + X @ np.array([1.0, -2.0]) + 0.5 * rng.normal(size=30)
    with jax.enable_x64(wide):
        target = _MODEL.bind({"X": X, "y": y}, dims={"X": ("row", "feature")})
    found = run(target, pk.ExactGaussian(), 0)
    assert found.status is Status.OK
    mean, covariance, evidence = _closed_form(X, y)
    near = 1e-9 if wide else 1e-4
    np.testing.assert_allclose(found.output.params["mean"], mean, rtol=near, atol=near)
    tril = found.output.params["tril"].astype(np.float64)
    np.testing.assert_allclose(np.linalg.inv(tril @ tril.T), covariance, rtol=10 * near, atol=near)
    assert found.output.log_evidence == pytest.approx(evidence, abs=1e-7 if wide else 2e-3)


def test_the_batterys_problem():
    p = problem()
    posterior = pk.fit(
        regression, p.data, coords=COORDS, dims=DIMS, method=pk.ExactGaussian(), progress=False
    )
    assert posterior.approximation.log_evidence == pytest.approx(p.log_evidence, abs=1e-3)
    assert posterior.log_evidence.value == pytest.approx(p.log_evidence, abs=1e-3)
    verdict = posterior.check()
    assert verdict.ok and verdict["k_hat"].value < 0.5


@pytest.mark.parametrize(
    "fn",
    [
        lambda z: -0.5 * jnp.sum(z["x"] ** 2) - 0.05 * jnp.sum(z["x"] ** 4),
        lambda z: -1e4 * jnp.sum((z["x"] - 3) ** 2) - 1e3 * jnp.sum(jnp.cosh(z["x"])),
        lambda z: jnp.sum(50 * z["x"] - 80 * jax.nn.softplus(z["x"])) - 0.5 * jnp.sum(z["x"] ** 2),
    ],
    ids=["quartic", "stiff", "logistic"],
)
def test_what_is_not_quadratic_is_said(fn):
    found = run(Target.from_log_density(fn, {"x": np.zeros(2)}), pk.ExactGaussian(), 0)
    assert found.status is Status.NOT_QUADRATIC
    assert "pk.Laplace()" in found.status.message


def test_an_unknown_scale_is_not_quadratic():
    model = pk.Model(
        mu=pk.dist.Normal(0, 1),
        sigma=pk.dist.HalfNormal(1),
        y=pk.rv(lambda mu, sigma: pk.dist.Normal(mu, sigma), dims="row"),
    )
    posterior = pk.fit(model, {"y": np.arange(5.0)}, method=pk.ExactGaussian(), progress=False)
    assert posterior.status is Status.NOT_QUADRATIC
    assert not posterior.check().ok


@pytest.mark.parametrize(
    "fn",
    [lambda z: -0.5 * z["x"][0] ** 2, lambda z: 0.5 * z["x"][0] ** 2 - 0.5 * z["x"][1] ** 2],
    ids=["flat", "saddle"],
)
def test_an_improper_posterior_is_said(fn):
    found = run(Target.from_log_density(fn, {"x": np.zeros(2)}), pk.ExactGaussian(), 0)
    assert found.status is Status.NOT_POSITIVE_DEFINITE
    assert np.all(np.isfinite(found.output.params["tril"]))
