"""Target: densities and their parts, capabilities, precision, and the debug report."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import probkit as pk
from probkit.core import Batch, Target
from probkit.core._target import requires
from tests.core.walk import normal_target

_Y = np.array([0.3, -1.0, 2.0, 0.7])
_MODEL = pk.Model(
    mu=pk.dist.Normal(1, 2),
    sigma=pk.dist.HalfNormal(3),
    y=pk.rv(lambda mu, sigma: pk.dist.Normal(mu, sigma), dims="row"),
)


@pytest.fixture(scope="module")
def target() -> Target:
    return _MODEL.bind({"y": _Y})


def _wide() -> Target:
    with jax.enable_x64(True):
        return _MODEL.bind({"y": _Y})


def _by_scipy(mu: float, log_sigma: float) -> tuple[float, np.ndarray]:
    sigma = np.exp(log_sigma)
    prior = stats.norm(1, 2).logpdf(mu) + stats.halfnorm(scale=3).logpdf(sigma) + log_sigma
    return prior, stats.norm(mu, sigma).logpdf(_Y)


def test_terms_equal_scipy(target):
    z = {"mu": jnp.asarray(0.4), "sigma": jnp.asarray(-0.3)}
    prior, terms = _by_scipy(0.4, -0.3)
    assert float(target.log_prior(z)) == pytest.approx(prior, rel=1e-5)
    assert float(target.log_likelihood(z)) == pytest.approx(terms.sum(), rel=1e-5)
    assert float(target.log_density(z)) == pytest.approx(prior + terms.sum(), rel=1e-5)
    flat = target.program.flat.ravel(z)
    assert float(target.flat_log_density(flat)) == pytest.approx(prior + terms.sum(), rel=1e-5)
    np.testing.assert_allclose(target.per_example(z)["y"], terms, rtol=1e-5)


def test_mini_batches_average_to_the_whole(target):
    z = {"mu": jnp.asarray(0.4), "sigma": jnp.asarray(-0.3)}
    halves = [target.log_likelihood(z, Batch("row", np.array(i))) for i in ([0, 2], [1, 3])]
    assert float(sum(halves)) / 2 == pytest.approx(float(target.log_likelihood(z)), rel=1e-5)


def test_constrain_and_back(target):
    z = {"mu": jnp.asarray(0.4), "sigma": jnp.asarray(-0.3)}
    values = target.constrain(z)
    assert float(values["sigma"]) == pytest.approx(np.exp(-0.3), rel=1e-6)
    back = target.unconstrain({k: values[k] for k in ("mu", "sigma")})
    assert float(back["sigma"]) == pytest.approx(-0.3, rel=1e-5)
    with pytest.raises(ValueError, match=r"missing 'sigma'.*Did you mean 'sgima'"):
        target.unconstrain({"mu": 0.0, "sgima": 1.0})


def test_predict_uses_its_key(target):
    z = target.example
    a, b, c = (target.predict(jax.random.key(i), z)["y"] for i in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c) and a.shape == (4,)


def test_facts(target):
    assert target.num_data == 4
    assert target.dtype == np.float32
    assert {k: s.kind for k, s in target.sites.items()} == {
        "mu": "latent",
        "sigma": "latent",
        "y": "observed",
    }
    assert {k: v.shape for k, v in target.example.items()} == {"mu": (), "sigma": ()}
    assert target.program.flat.labels() == ["mu", "sigma"]
    bare = target.without_labels()
    assert bare.num_data == 0 and bare.program is target.program


def test_deterministics_are_no_latents():
    model = pk.Model(
        mu=pk.dist.Normal(0, 1),
        twice=pk.deterministic(lambda mu: 2 * mu),
        penalty=pk.factor(lambda mu: -abs(mu)),
        y=pk.rv(lambda twice: pk.dist.Normal(twice, 1.0)),
    )
    assert set(model.bind({"y": 0.0}).program.shapes) == {"mu"}


# -- precision ------------------------------------------------------------------------------------


def test_a_float64_target_computes_in_float64_anywhere():
    wide = _wide()
    assert not jax.config.jax_enable_x64
    z = {"mu": np.float64(0.4), "sigma": np.float64(-0.3)}
    prior, terms = _by_scipy(0.4, -0.3)
    for value, expected in (
        (wide.log_prior(z), prior),
        (wide.log_likelihood(z), terms.sum()),
        (wide.log_density(z), prior + terms.sum()),
        (wide.constrain(z)["sigma"], np.exp(-0.3)),
        (wide.unconstrain({"mu": 0.4, "sigma": 0.5})["sigma"], np.log(0.5)),
    ):
        assert value.dtype == np.float64
        assert float(value) == pytest.approx(expected, rel=1e-13)
    assert wide.per_example(z)["y"].dtype == np.float64
    assert wide.predict(jax.random.key(0), z)["y"].dtype == np.float64
    assert wide.check().dtype == "float64" and wide.check().ok
    assert not jax.config.jax_enable_x64


# -- the debug report -----------------------------------------------------------------------------


def test_the_report_of_a_good_target(target):
    report = target.check()
    assert report.ok and report.finite == report.points
    assert set(report.terms) == {"mu", "sigma", "y"}
    assert all(n == 0 for n in report.nonfinite.values())
    assert all(np.isfinite(v) for v in report.gradient.values())
    assert "2 unconstrained dimensions, 4 observed values, float32" in str(report)


def test_the_report_blames_a_site():
    model = pk.Model(
        mu=pk.dist.Normal(0, 1),
        scale=pk.deterministic(lambda mu: -jnp.exp(mu)),
        y=pk.rv(lambda mu, scale: pk.dist.Normal(mu, jnp.log(scale)), dims="row"),
    )
    report = model.bind({"y": _Y}).check(1)
    assert not report.ok and report.finite == 0
    assert report.nonfinite["y"] == report.points
    assert "site 'y' is never finite" in str(report) and "NOT FINITE" in str(report)


# -- targets made from functions ------------------------------------------------------------------


def test_a_function_with_data():
    target = Target.from_log_density(
        lambda z, d: -0.5 * jnp.sum((z["a"] - d["m"]) ** 2) + z["b"],
        {"a": np.zeros((2, 2)), "b": np.zeros(())},
        data={"m": np.ones((2, 2))},
    )
    assert target.program.shapes == {"a": (2, 2), "b": ()}
    assert target.sites["a"].dims == ("a_dim_0", "a_dim_1")
    assert float(target.log_density({"a": jnp.zeros((2, 2)), "b": jnp.asarray(3.0)})) == 1.0
    assert target.check().ok


def test_a_function_target_all_the_way():
    posterior = pk.fit(
        normal_target(),
        method=pk.HMC(draws=50, warmup=50, chains=2, metric="diag"),
        progress=False,
    )
    assert posterior.draws["x"].dims == ("chain", "draw", "x_dim_0")
    assert set(posterior.groups()) >= {"posterior", "sample_stats", "log_prior"}
    with pytest.raises(ValueError, match="no observed variable"):
        posterior.loo()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Target.from_log_density(lambda z: 0.0, {}), TypeError, "non-empty dictionary"),
        (
            lambda: Target.from_log_density(lambda z: z["x"], {"x": np.ones(2)}),
            ValueError,
            "expected fn to return a scalar",
        ),
        (lambda: pk.fit(normal_target(), {"y": 1.0}), ValueError, "holds its data already"),
        (
            lambda: normal_target().log_density({"x": jnp.ones(2)}, Batch("x_dim_0", np.arange(1))),
            ValueError,
            "mini-batches",
        ),
        (
            lambda: requires(normal_target(), "Some", ("likelihood",)),
            ValueError,
            "Some.*'likelihood'",
        ),
    ],
)
def test_bad_function_targets(make, error, words):
    with pytest.raises(error, match=words):
        make()
