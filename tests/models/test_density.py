"""Densities: every site against scipy or a closed form, Jacobians and mini-batches included."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import transforms
from scipy import special, stats

import probkit as pk
from probkit import dist
from probkit.core import Batch
from probkit.models._inside import log_density

COVARIANCE = np.array([[2.0, 0.6], [0.6, 1.0]])


def _ordered(x: np.ndarray) -> float:
    """Base normals at log gaps, with the Jacobian of the gaps."""
    z = np.concatenate([x[:1], np.log(np.diff(x))])
    return float(stats.norm.logpdf(z).sum() - z[1:].sum())


def _cholesky_2(L: np.ndarray) -> float:
    """The LKJ density of one correlation: a beta on (-1, 1)."""
    return float(stats.beta.logpdf((L[1, 0] + 1) / 2, 1.7, 1.7) - np.log(2))


def _cholesky_3(L: np.ndarray) -> float:
    """Uniform on 3 x 3 correlation matrices (volume pi^2 / 2), times |dR / dL|."""
    return float(-np.log(np.pi**2 / 2) + np.log(L[1, 1]))


def _truncated(x: float, loc: float, scale: float, low: float, high: float) -> float:
    return float(stats.truncnorm.logpdf(x, (low - loc) / scale, (high - loc) / scale, loc, scale))


def latents() -> dict[str, tuple]:
    """Distribution, reference log density of a value, and (if not all) its free coordinates.

    Distributions keep the dtype that they are made in, so this is called under the dtype tested.
    """
    return {
        "normal": (dist.Normal(1.0, 2.0), lambda x: stats.norm.logpdf(x, 1, 2)),
        "student": (dist.StudentT(4.0, 1.0, 2.0), lambda x: stats.t.logpdf(x, 4, 1, 2)),
        "cauchy": (dist.Cauchy(1.0, 2.0), lambda x: stats.cauchy.logpdf(x, 1, 2)),
        "laplace": (dist.Laplace(1.0, 2.0), lambda x: stats.laplace.logpdf(x, 1, 2)),
        "logistic": (dist.Logistic(1.0, 2.0), lambda x: stats.logistic.logpdf(x, 1, 2)),
        "gumbel": (dist.Gumbel(1.0, 2.0), lambda x: stats.gumbel_r.logpdf(x, 1, 2)),
        "half_normal": (dist.HalfNormal(2.0), lambda x: stats.halfnorm.logpdf(x, scale=2)),
        "half_cauchy": (dist.HalfCauchy(2.0), lambda x: stats.halfcauchy.logpdf(x, scale=2)),
        "exponential": (dist.Exponential(2.0), lambda x: stats.expon.logpdf(x, scale=0.5)),
        "gamma": (dist.Gamma(3.0, 2.0), lambda x: stats.gamma.logpdf(x, 3, scale=0.5)),
        "inverse_gamma": (
            dist.InverseGamma(3.0, 2.0),
            lambda x: stats.invgamma.logpdf(x, 3, scale=2),
        ),
        "log_normal": (
            dist.LogNormal(0.5, 0.7),
            lambda x: stats.lognorm.logpdf(x, 0.7, scale=np.e**0.5),
        ),
        "weibull": (dist.Weibull(2.0, 1.5), lambda x: stats.weibull_min.logpdf(x, 1.5, scale=2)),
        "chi2": (dist.Chi2(3.0), lambda x: stats.chi2.logpdf(x, 3)),
        "beta": (dist.Beta(2.0, 3.0), lambda x: stats.beta.logpdf(x, 2, 3)),
        "uniform": (dist.Uniform(2.0, 5.0), lambda x: stats.uniform.logpdf(x, 2, 3)),
        "pareto": (dist.Pareto(2.0, 3.0), lambda x: stats.pareto.logpdf(x, 3, scale=2)),
        "truncated": (
            dist.TruncatedNormal(1.0, 2.0, low=0.5, high=3.0),
            lambda x: _truncated(x, 1, 2, 0.5, 3),
        ),
        "below": (
            dist.TruncatedNormal(0.0, 1.0, high=1.0),
            lambda x: stats.norm.logpdf(x) - stats.norm.logcdf(1),
        ),
        "circular": (dist.VonMises(0.3, 2.0), lambda x: stats.vonmises.logpdf(x, 2, 0.3)),
        "vector": (
            dist.MultivariateNormal(np.array([1.0, -1.0]), covariance_matrix=COVARIANCE),
            lambda x: stats.multivariate_normal.logpdf(x, [1, -1], COVARIANCE),
        ),
        "simplex": (
            dist.Dirichlet(np.array([1.5, 2.0, 3.0])),
            lambda x: stats.dirichlet.logpdf(x / x.sum(), [1.5, 2, 3]),
            lambda x: x[:2],
        ),
        "ordered": (
            dist.TransformedDistribution(
                dist.Normal(0.0, 1.0).expand([3]).to_event(1), transforms.OrderedTransform()
            ),
            _ordered,
        ),
        "cholesky_2": (dist.LKJCholesky(2, 1.7), _cholesky_2, lambda L: L[[1], [0]]),
        "cholesky_3": (dist.LKJCholesky(3, 1.0), _cholesky_3, lambda L: L[[1, 2, 2], [0, 0, 1]]),
        "many": (
            dist.Gamma(np.array([2.0, 3.0, 4.0]), 1.5),
            lambda x: stats.gamma.logpdf(x, [2, 3, 4], scale=1 / 1.5).sum(),
        ),
        "event": (
            dist.Normal(np.array([0.0, 1.0]), 1.0).to_event(1),
            lambda x: stats.norm.logpdf(x, [0, 1]).sum(),
        ),
    }


REFERENCES = {k: v[1:] for k, v in latents().items()}
# Sites whose support depends on the site `low`: reference (x, low).
BOUNDED = {
    "low": (lambda: dist.Normal(0.0, 1.0), lambda x, low: stats.norm.logpdf(x)),
    "above_low": (
        lambda low: dist.TruncatedNormal(0.5, 1.5, low=low),
        lambda x, low: stats.norm.logpdf(x, 0.5, 1.5) - stats.norm.logsf(low, 0.5, 1.5),
    ),
    "up_from_low": (
        lambda low: dist.Uniform(low, low + 3.0),
        lambda x, low: stats.uniform.logpdf(x, low, 3),
    ),
    "pareto_low": (
        lambda low: dist.Pareto(jnp.exp(low), 2.0),
        lambda x, low: stats.pareto.logpdf(x, 2, scale=np.exp(low)),
    ),
}


def _latent_model() -> pk.Model:
    nodes = {k: pk.rv(v[0]) for k, v in latents().items()}
    return pk.Model(**nodes, **{k: pk.rv(v[0]) for k, v in BOUNDED.items()})


def _latents(wide: bool) -> dict[str, dict[str, np.ndarray]]:
    """Values, terms, and (by finite differences) log Jacobians at a point, in one program."""
    with jax.enable_x64(wide):
        target = _latent_model().bind()
        rng = np.random.default_rng(3)
        z = {
            k: rng.uniform(-1, 1, s).astype(target.dtype) for k, s in target.program.shapes.items()
        }

        @jax.jit
        def evaluate(z: dict) -> tuple:
            terms = target.terms(z)
            return target.constrain(z), terms.prior, terms.log_density()

        x, prior, total = jax.tree.map(np.asarray, evaluate(z))
        back = jax.tree.map(np.asarray, jax.jit(lambda x: target.unconstrain(x))(x))
        moved = jax.jit(jax.vmap(lambda z: target.constrain(z)))
        return {"z": z, "x": x, "prior": prior, "total": total, "back": back, "moved": moved}


def _log_jacobians(found: dict, h: float = 1e-5) -> dict[str, float]:
    """log |dx / dz| of each site by central differences (its parents held)."""
    out = {}
    for parents in (False, True):
        names = [k for k in found["z"] if (k == "low") == parents]
        columns: dict[str, list] = {k: [] for k in names}
        for c in range(3):
            step = {k: np.zeros_like(v) for k, v in found["z"].items()}
            for k in names:
                if step[k].size > c:
                    step[k].flat[c] = h
            points = {k: np.stack([v + step[k], v - step[k]]) for k, v in found["z"].items()}
            x = {k: np.asarray(v) for k, v in found["moved"](points).items()}
            for k in names:
                if step[k].size > c:
                    free = REFERENCES[k][1] if len(REFERENCES.get(k, ())) > 1 else np.ravel
                    columns[k].append((free(x[k][0]) - free(x[k][1])) / (2 * h))
        out |= {k: np.linalg.slogdet(np.stack(v, axis=-1))[1] for k, v in columns.items()}
    return out


@pytest.fixture(scope="module")
def wide() -> dict:
    found = _latents(True)
    with jax.enable_x64(True):
        found["jacobian"] = _log_jacobians(found)
    return found


def _reference(name: str, x: dict) -> float:
    if name in REFERENCES:
        return float(np.sum(REFERENCES[name][0](x[name])))
    return float(BOUNDED[name][1](x[name], x["low"]))


@pytest.mark.parametrize("name", [*REFERENCES, *BOUNDED])
def test_prior_terms_in_float64(wide: dict, name: str) -> None:
    expected = _reference(name, wide["x"]) + wide["jacobian"][name]
    assert wide["prior"][name].dtype == np.float64
    np.testing.assert_allclose(wide["prior"][name], expected, rtol=1e-6, atol=1e-6)


def test_float32_agrees_with_float64(wide: dict) -> None:
    narrow = _latents(False)
    for name, value in wide["prior"].items():
        assert narrow["prior"][name].dtype == np.float32
        np.testing.assert_allclose(narrow["prior"][name], value, rtol=2e-4, atol=2e-4, err_msg=name)
    np.testing.assert_allclose(narrow["total"], wide["total"], rtol=1e-4)


def test_constrain_and_unconstrain_are_inverse(wide: dict) -> None:
    for name, value in wide["z"].items():
        np.testing.assert_allclose(wide["back"][name], value, atol=1e-7, err_msg=name)


def test_total_is_the_sum_of_the_terms(wide: dict) -> None:
    np.testing.assert_allclose(wide["total"], sum(map(float, wide["prior"].values())), rtol=1e-12)


COUNTS = np.array([0, 3, 1, 2])
REALS = np.array([0.5, -1.2, 2.0, 0.1])
POSITIVE = np.array([0.5, 1.2, 2.0, 0.1])
UNIT = np.array([0.2, 0.5, 0.9, 0.4])
P = np.array([0.2, 0.5, 0.3])
CUTS = np.array([-0.5, 0.8])


def observed() -> dict[str, tuple[dist.Distribution, np.ndarray, Callable]]:
    """Distribution, data, and reference log density of each of them."""
    return {
        "normal": (dist.Normal(1.0, 2.0), REALS, lambda y: stats.norm.logpdf(y, 1, 2)),
        "student": (dist.StudentT(3.0, 0.0, 2.0), REALS, lambda y: stats.t.logpdf(y, 3, 0, 2)),
        "gamma": (dist.Gamma(2.0, 3.0), POSITIVE, lambda y: stats.gamma.logpdf(y, 2, scale=1 / 3)),
        "beta": (dist.Beta(2.0, 3.0), UNIT, lambda y: stats.beta.logpdf(y, 2, 3)),
        "poisson": (dist.Poisson(1.7), COUNTS, lambda y: stats.poisson.logpmf(y, 1.7)),
        "binomial": (dist.Binomial(5, 0.3), COUNTS, lambda y: stats.binom.logpmf(y, 5, 0.3)),
        "negative_binomial": (
            dist.NegativeBinomial2(2.0, 3.0),
            COUNTS,
            lambda y: stats.nbinom.logpmf(y, 3, 3 / 5),
        ),
        "geometric": (dist.Geometric(0.3), COUNTS, lambda y: stats.geom.logpmf(y + 1, 0.3)),
        "bernoulli": (
            dist.Bernoulli(logits=0.4),
            COUNTS > 1,
            lambda y: stats.bernoulli.logpmf(y, special.expit(0.4)),
        ),
        "categorical": (dist.Categorical(P), np.array([0, 2, 1, 1]), lambda y: np.log(P[y])),
        "ordinal": (
            dist.OrderedLogistic(0.3, CUTS),
            np.array([0, 2, 1, 1]),
            lambda y: np.log(np.diff(special.expit(np.array([-np.inf, *CUTS, np.inf]) - 0.3))[y]),
        ),
        "beta_binomial": (
            dist.BetaBinomial(2.0, 3.0, 5),
            COUNTS,
            lambda y: stats.betabinom.logpmf(y, 5, 2, 3),
        ),
        "inflated": (
            dist.ZeroInflatedPoisson(0.25, 1.5),
            COUNTS,
            lambda y: np.log(0.25 * (y == 0) + 0.75 * stats.poisson.pmf(y, 1.5)),
        ),
        "multinomial": (
            dist.Multinomial(4, P),
            np.array([[1, 2, 1], [0, 4, 0]]),
            lambda y: stats.multinomial.logpmf(y, 4, P),
        ),
        "vector": (
            dist.MultivariateNormal(np.zeros(2), covariance_matrix=COVARIANCE),
            np.array([[1.0, 0.5], [-1.0, 2.0], [0.0, 0.3]]),
            lambda y: stats.multivariate_normal.logpdf(y, np.zeros(2), COVARIANCE),
        ),
    }


@pytest.mark.parametrize("wide_floats", [False, True], ids=["float32", "float64"])
def test_per_example_log_likelihoods(wide_floats: bool) -> None:
    """One model with every family: its pointwise terms, and their sum apart from the prior."""
    with jax.enable_x64(wide_floats):
        table = observed()
        model = pk.Model(mu=dist.Normal(0.0, 1.0), **{k: pk.rv(v[0]) for k, v in table.items()})
        target = model.bind({k: v[1] for k, v in table.items()})

        @jax.jit
        def evaluate(z: dict) -> tuple:
            return target.per_example(z), target.log_likelihood(z), target.log_prior(z)

        terms, likelihood, prior = evaluate({"mu": jnp.asarray(0.3, target.dtype)})
        tolerance = 1e-10 if wide_floats else 2e-5
        for name, (_, y, reference) in table.items():
            assert terms[name].dtype == target.dtype
            # NumPyro guards its beta-binomial coefficients with a small constant of its own.
            slack = max(tolerance, 5e-6) if name == "beta_binomial" else tolerance
            np.testing.assert_allclose(
                terms[name], reference(y), rtol=slack, atol=slack, err_msg=name
            )
        total = sum(float(np.sum(v)) for v in terms.values())
        np.testing.assert_allclose(likelihood, total, rtol=10 * tolerance)
        np.testing.assert_allclose(prior, stats.norm.logpdf(0.3), rtol=1e-5)


def test_only_likelihood_factors_are_likelihood() -> None:
    model = pk.Model(
        mu=dist.Normal(0.0, 1.0),
        penalty=pk.factor(lambda mu: -3.0 * mu**2),
        score=pk.factor(lambda mu, x: -((x - mu) ** 2), dims="obs", likelihood=True),
    )
    x = np.array([1.0, 2.0, 4.0])
    target = model.bind({"x": x})
    z = {"mu": jnp.asarray(0.5)}
    np.testing.assert_allclose(target.per_example(z)["score"], -((x - 0.5) ** 2), rtol=1e-6)
    np.testing.assert_allclose(target.log_likelihood(z), -np.sum((x - 0.5) ** 2), rtol=1e-6)
    np.testing.assert_allclose(target.log_prior(z), stats.norm.logpdf(0.5) - 0.75, rtol=1e-6)


def _batched_model() -> tuple[pk.Model, dict]:
    """Global, local and group latents, a prior factor along the rows, and a derived column."""
    model = pk.Model(
        beta=dist.Normal(0.0, 2.0),
        tau=dist.HalfNormal(1.0),
        a=pk.rv(lambda tau: dist.Normal(0.0, tau), dims="g"),
        local=pk.rv(lambda tau: dist.Gamma(2.0, tau), dims="obs"),
        eta=pk.deterministic(lambda beta, a, x, g: beta * x + a[g]),
        shrink=pk.factor(lambda local: -0.1 * local, dims="obs"),
        y=pk.rv(lambda eta, local: dist.Normal(eta, local), dims="obs"),
    )
    rng = np.random.default_rng(0)
    n = 12
    return model, {"x": rng.normal(size=n), "g": np.arange(n) % 3, "y": rng.normal(size=n)}


def test_mini_batches_are_unbiased() -> None:
    """Over one epoch the estimates average to the log density, and their gradients to its own."""
    model, data = _batched_model()
    with jax.enable_x64(True):
        target = model.bind(data, reparam="off")
        rng = np.random.default_rng(1)
        z = {k: jnp.asarray(rng.normal(size=s)) for k, s in target.program.shapes.items()}
        fn = jax.jit(jax.value_and_grad(lambda z, rows: target.log_density(z, Batch("obs", rows))))
        rows = rng.permutation(12).reshape(4, 3)
        parts = [fn(z, jnp.asarray(r)) for r in rows]
        whole = jax.jit(jax.value_and_grad(target.log_density))(z)
        mean = jax.tree.map(lambda *x: np.mean(x, axis=0), *parts)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), mean, whole)
        spread = np.std([float(p[0]) for p in parts])
        assert spread > 1.0, "the batches must differ, or nothing was tested"


def test_mini_batches_of_a_centred_local_latent() -> None:
    """The rows of a centring choice follow the batch."""
    model = pk.Model(
        tau=dist.HalfNormal(1.0),
        u=pk.rv(lambda tau: dist.Normal(0.0, tau), dims="obs"),
        y=pk.rv(lambda u: dist.Normal(u, 0.5), dims="obs"),
    )
    with jax.enable_x64(True):
        target = model.bind({"y": np.linspace(-1, 2, 6)})
        choice = {"u": np.arange(6) % 2 == 0}
        target = pk.Target(target.program, {**target.arrays, "centred": choice}, target.labels)
        z = {"tau": jnp.asarray(0.2), "u": jnp.linspace(-1.0, 1.0, 6)}
        fn = jax.jit(lambda rows: target.log_density(z, Batch("obs", rows)))
        parts = [float(fn(jnp.asarray(r))) for r in np.arange(6).reshape(3, 2)]
        np.testing.assert_allclose(np.mean(parts), target.log_density(z), rtol=1e-12)


def test_rows_that_are_needed_at_once_are_refused() -> None:
    model = pk.Model(
        b=dist.Normal(0.0, 1.0),
        pull=pk.factor(lambda b, x: -((b - x.mean()) ** 2), likelihood=True),
        y=pk.rv(lambda b, x: dist.Normal(b * x, 1.0), dims="obs"),
    )
    target = model.bind({"x": np.arange(4.0), "y": np.arange(4.0)})
    with pytest.raises(ValueError, match=r"site 'pull' has no dim 'obs'.*through 'x'"):
        target.log_density({"b": jnp.zeros(())}, Batch("obs", jnp.arange(2)))


def test_check_reports_every_term() -> None:
    model, data = _batched_model()
    report = model.bind(data).check()
    assert report.ok and report.finite == report.points
    assert set(report.terms) == {"beta", "tau", "a", "local", "shrink", "y"}
    assert report.observed == 12


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e6, 1e12])
def test_a_scale_that_rows_share_is_right_at_any_size(size: float) -> None:
    """Values and gradient in single precision against the formula in double."""
    x = np.linspace(-2.0, 3.0, 7) * size

    def ours(loc: jax.Array, log_scale: jax.Array) -> jax.Array:
        terms = log_density(dist.Normal(loc, jnp.exp(log_scale)), jnp.asarray(x, jnp.float32))
        return terms.sum()

    loc, log_scale = 0.5 * size, np.log(1.5 * size)
    value, slope = jax.value_and_grad(jax.jit(ours), (0, 1))(np.float32(loc), np.float32(log_scale))
    r = (x - loc) / (1.5 * size)
    assert value == pytest.approx(stats.norm.logpdf(x, loc, 1.5 * size).sum(), rel=1e-5, abs=1e-4)
    assert slope[0] * size == pytest.approx(r.sum() / 1.5, rel=1e-4, abs=1e-4)
    assert slope[1] == pytest.approx((r**2 - 1.0).sum(), rel=1e-4, abs=1e-4)
