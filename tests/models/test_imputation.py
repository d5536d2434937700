"""Missing entries of observed variables become latent, and stay out of what is scored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import probkit as pk
from probkit import dist


def _precision(target: pk.Target) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of a Gaussian log density."""
    zero = jnp.zeros(target.program.flat.size)

    @jax.jit
    def at_zero(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.grad(target.flat_log_density)(v), jax.hessian(target.flat_log_density)(v)

    slope, bend = map(np.asarray, at_zero(zero))
    return np.linalg.solve(-bend, slope), -bend


def test_the_posterior_of_missing_entries_is_the_conditional() -> None:
    """An autoregression by hand: y_missing given the rest, in closed form."""
    cov = np.array([[2.0, 0.9, 0.4], [0.9, 1.5, 0.5], [0.4, 0.5, 1.0]])
    with jax.enable_x64(True):
        model = pk.Model(
            y=pk.rv(dist.MultivariateNormal(np.ones(3), covariance_matrix=cov), dims="row")
        )
        y = np.array([[0.5, np.nan, 2.0], [np.nan, 1.0, np.nan], [1.0, 0.0, 1.0]])
        target = model.bind({"y": y})
        assert target.sites["y_missing"].shape == (3,)
        mean, precision = _precision(target)
    expected = np.zeros(3)
    covariance = np.zeros((3, 3))
    for rows, places in ((0, [1]), (1, [0, 2])):
        seen = [i for i in range(3) if i not in places]
        gain = cov[np.ix_(places, seen)] @ np.linalg.inv(cov[np.ix_(seen, seen)])
        index = [0] if rows == 0 else [1, 2]
        expected[index] = 1 + gain @ (y[rows, seen] - 1)
        rest = cov[np.ix_(places, places)] - gain @ cov[np.ix_(seen, places)]
        covariance[np.ix_(index, index)] = rest
    np.testing.assert_allclose(mean, expected, rtol=1e-9)
    np.testing.assert_allclose(np.linalg.inv(precision), covariance, rtol=1e-9, atol=1e-12)


def test_missing_entries_leave_the_other_parameters_alone() -> None:
    """Integrated over, an imputed outcome changes nothing but itself."""
    with jax.enable_x64(True):
        model = pk.Model(
            b=dist.Normal(0.0, 2.0), y=pk.rv(lambda b, x: dist.Normal(b * x, 0.5), dims="o")
        )
        x, y = np.array([0.5, 1.0, -1.0, 2.0]), np.array([0.4, np.nan, -0.7, np.nan])
        mean, precision = _precision(model.bind({"x": x, "y": y}))
        have = ~np.isnan(y)
        alone, own = _precision(model.bind({"x": x[have], "y": y[have]}))
    covariance = np.linalg.inv(precision)
    np.testing.assert_allclose(mean[0], alone[0], rtol=1e-9)
    np.testing.assert_allclose(covariance[0, 0], 1 / own[0, 0], rtol=1e-9)
    np.testing.assert_allclose(mean[1:], alone[0] * x[~have], rtol=1e-9)
    np.testing.assert_allclose(np.diag(covariance)[1:], 0.25 + x[~have] ** 2 / own[0, 0], rtol=1e-9)


def test_bounded_entries_have_their_jacobian() -> None:
    """Bounds that vary from row to row go with the missing entries' own rows."""
    model = pk.Model(
        top=dist.LogNormal(0.0, 0.3),
        y=pk.rv(lambda top, c: dist.Uniform(0.0, top * c), dims="o"),
    )
    c = np.array([1.0, 2.0, 3.0])
    target = model.bind({"y": np.array([0.1, np.nan, np.nan]), "c": c})
    z = {"top": jnp.asarray(0.2), "y_missing": jnp.array([0.3, -1.0])}
    values = target.constrain(z)
    top, y = float(values["top"]), np.asarray(values["y_missing"])
    bound = top * c[1:]
    share = 1 / (1 + np.exp(-np.array([0.3, -1.0])))
    np.testing.assert_allclose(y, bound * share, rtol=1e-5)
    terms = target.terms(z)
    np.testing.assert_allclose(
        terms.prior["y_missing"], np.log(share * (1 - share)).sum(), rtol=1e-4
    )
    back = target.unconstrain(values)
    np.testing.assert_allclose(back["y_missing"], z["y_missing"], rtol=1e-4)


def test_labels_of_missing_entries() -> None:
    model = pk.Model(
        m=dist.Normal(0.0, 1.0), y=pk.rv(lambda m: dist.Normal(m, 1.0), dims=("g", "t"))
    )
    y = np.array([[1.0, np.nan], [np.nan, 2.0]])
    target = model.bind({"y": y}, coords={"g": ["a", "b"], "t": [1990, 1991]})
    assert target.coords["y_missing_g_t"].tolist() == ["a, 1991", "b, 1990"]
    assert target.num_data == 2


@pytest.fixture(scope="module")
def imputed() -> pk.Posterior:
    model = pk.Model(
        b=dist.Normal(0.0, 2.0), y=pk.rv(lambda b, x: dist.Normal(b * x, 0.5), dims="o")
    )
    data = {"x": np.linspace(-1, 1, 6), "y": np.array([-0.9, np.nan, -0.2, 0.3, np.nan, 1.1])}
    return pk.fit(
        model,
        data,
        method=pk.ExactGaussian(draws=500),
        coords={"o": list("uvwxyz")},
        progress=False,
    )


def test_missing_rows_keep_their_labels_everywhere(imputed: pk.Posterior) -> None:
    assert imputed.draws["y_missing"].coords["y_missing_o"].values.tolist() == ["v", "y"]
    observed = imputed.groups("observed_data")["observed_data"]["y"]
    assert np.isnan(observed.values).tolist() == [False, True, False, False, True, False]
    predictive = imputed.groups("posterior_predictive")["posterior_predictive"]["y"]
    assert predictive.shape[-1] == 6 and not np.isnan(predictive).any()


def test_loo_leaves_imputed_entries_out(imputed: pk.Posterior) -> None:
    terms = imputed.log_likelihood()["y"]
    assert np.isnan(terms).all(("chain", "draw")).values.tolist() == [
        *(False, True, False, False, True, False),
    ]
    assert imputed.target.num_data == 4
    assert imputed.loo().khat.shape == (4,)


# -- discrete outcomes --------------------------------------------------------------------------


def test_missing_discrete_outcomes_are_masked_and_predicted() -> None:
    model = pk.Model(rate=dist.Gamma(2.0, 1.0), n=pk.rv(lambda rate: dist.Poisson(rate), dims="o"))
    target = model.bind({"n": np.array([3.0, np.nan, 0.0])})
    assert "n_missing" not in target.program.shapes
    z = {"rate": jnp.log(1.4)}
    expected = stats.poisson.logpmf([3, 0], 1.4).sum()
    assert float(target.log_likelihood(z)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(np.isnan(target.per_example(z)["n"]), [False, True, False])
    assert target.predict(jax.random.key(0), z)["n"].shape == (3,)


# -- covariates with holes: declared, they are imputed ------------------------------------------


def test_a_declared_covariate_is_imputed() -> None:
    """x ~ Normal makes its holes latent; the outcome in the same row informs them."""
    with jax.enable_x64(True):
        model = pk.Model(
            x=pk.rv(dist.Normal(1.0, 2.0), dims="o"),
            y=pk.rv(lambda x: dist.Normal(3.0 * x, 0.5), dims="o"),
        )
        target = model.bind({"x": np.array([0.5, np.nan]), "y": np.array([1.0, 4.0])})
        mean, precision = _precision(target)
    np.testing.assert_allclose(precision, [[1 / 4 + 9 / 0.25]], rtol=1e-9)
    np.testing.assert_allclose(mean, (1 / 4 + 3 * 4 / 0.25) / precision[0], rtol=1e-9)


def test_entries_constrained_together_are_refused() -> None:
    model = pk.Model(p=pk.rv(dist.Dirichlet(np.ones(3)), dims="o"))
    with pytest.raises(ValueError, match=r"site 'p'.*missing.*simplex"):
        model.bind({"p": np.array([[0.2, 0.3, 0.5], [0.4, np.nan, np.nan]])})
