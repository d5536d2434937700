"""Mistakes with Gaussian processes: an error says where, what, and what to do about it."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit import dist
from tests.mistakes.table import Corpus, Mistake

CORPUS = Corpus()
X = np.array([0.0, 0.4, 1.1, 1.9, 2.5, 2.7])
Y = np.array([0.3, 0.5, 1.4, 0.9, 1.0, 1.6])
DATA = {"x": X, "y": Y}


def model(process: Any = None, value: Any = None) -> pk.Model:
    process = (
        pk.gp(lambda scale: pk.kernels.Matern52(scale), at="x") if process is None else process
    )
    value = (lambda f: dist.Normal(f, 0.3)) if value is None else value
    return pk.Model(scale=dist.LogNormal(0, 1), f=process, y=pk.rv(value, dims="row"))


@functools.cache
def fitted() -> pk.Posterior:
    fixed = model(pk.gp(pk.kernels.Matern52(), at="x"))
    return pk.fit(fixed.do(scale=1.0), DATA, method=pk.ExactGaussian(draws=10), progress=False)


@CORPUS.row("kernel_fn", "found str", "function whose parameters are its parents")
def name_of_a_kernel() -> Any:
    return pk.gp("rbf", at="x")


@CORPUS.row("pk.gp", "name of the column", "at='x'")
def no_inputs() -> Any:
    return pk.gp(pk.kernels.RBF())


@CORPUS.row("precision", "found 'doubel'", "Did you mean 'double'")
def misspelt_precision() -> Any:
    return pk.gp(pk.kernels.RBF(), at="x", precision="doubel")


@CORPUS.row("'f'", "parent 'scal'", "Did you mean 'scale'")
def misspelt_parent_of_the_kernel() -> Any:
    return model(pk.gp(lambda scal: pk.kernels.RBF(scal), at="x")).bind(DATA)


@CORPUS.row("'f'", "parent 'xx'", "Did you mean 'x'")
def misspelt_column_of_inputs() -> Any:
    return model(pk.gp(pk.kernels.RBF(), at="xx")).bind(DATA)


@CORPUS.row("'f'", "found shape", "sum over the points' coordinates")
def kernel_of_one_coordinate_at_points_of_two() -> Any:
    squared = pk.gp(lambda scale: lambda a, b: jnp.exp(-((a - b) ** 2) / scale), at=["x", "t"])
    return model(squared).bind({**DATA, "t": X})


@CORPUS.row("'f'", "coordinates", r"at=\[")
def kernel_of_two_coordinates_at_points_of_one() -> Any:
    return model(pk.gp(pk.kernels.Columns(pk.kernels.RBF(), [0, 1]), at="x")).bind(DATA)


@CORPUS.row("'f'", "found Array|found Tracer|found .*Tracer", "function of two points")
def number_in_place_of_a_kernel() -> Any:
    return model(pk.gp(lambda scale: 2.0 * scale, at="x")).bind(DATA)


@CORPUS.row("'f'", r"found shape \(2,\)", "one a row of x")
def mean_of_another_length() -> Any:
    return model(pk.gp(pk.kernels.RBF(), at="x", mean=lambda: jnp.zeros(2))).bind(DATA)


@CORPUS.row("site 'y'", r"\(5,\), found batch shape \(6,\)", "change dims")
def outcomes_of_another_length() -> Any:
    return model().bind({"x": X, "y": Y[:5]})


@CORPUS.row("covariate 'x'", "1 missing", "drop those rows, fill them")
def missing_input() -> Any:
    return model().bind({"x": np.where(X > 2.6, np.nan, X), "y": Y})


@CORPUS.row("site 'y'", "3 observed values are outside it .*-1", "mend the data")
def labels_of_minus_one_and_one() -> Any:
    probit = model(value=lambda f: pk.BernoulliProbit(f))
    return probit.bind({"x": X, "y": np.array([-1, 1, -1, 1, 1, -1])})


@CORPUS.row("site 'f'", r"100000 points .*\d+ GiB", "subsample the rows|inducing points")
def more_rows_than_memory() -> Any:
    x = np.linspace(0, 1, 100_000)
    return pk.fit(model(), {"x": x, "y": x}, method=pk.NUTS(draws=5, warmup=5), progress=False)


@CORPUS.row("site 'f' is never finite", "no starting point", "kernel .* positive definite")
def kernel_that_is_not_positive_definite() -> Any:
    distance = pk.gp(lambda scale: lambda a, b: jnp.abs(a - b) / scale, at="x")
    return pk.fit(
        model(distance), DATA, method=pk.NUTS(draws=5, warmup=5, chains=1), progress=False
    )


@CORPUS.row("GPExact: site 'f'", "not positive definite.*scale=", "kernel of pk.kernels")
def engine_with_a_kernel_that_is_not_positive_definite() -> Any:
    distance = pk.gp(lambda scale: lambda a, b: jnp.abs(a - b) / scale, at="x")
    return pk.fit(model(distance), DATA, method=pk.GPExact(starts=1), progress=False)


@CORPUS.row("EP", "no Gaussian process", r"pk.gp\(")
def engine_for_a_model_without_a_process() -> Any:
    plain = pk.Model(mu=dist.Normal(0, 1), y=pk.rv(lambda mu: dist.Normal(mu, 1)))
    return pk.fit(plain, {"y": Y}, method=pk.EP(), progress=False)


@CORPUS.row("GPExact", "2 Gaussian processes", "add their kernels up")
def engine_for_two_processes() -> Any:
    two = model(value=lambda f, g: dist.Normal(f + g, 0.3))
    two = two.extend(g=pk.gp(pk.kernels.RBF(), at="x"))
    return pk.fit(two, DATA, method=pk.GPExact(), progress=False)


@CORPUS.row("EP", "several rows of 'f'", r"pk.NUTS\(\)")
def engine_for_observations_of_sums() -> Any:
    summed = model(value=lambda f: dist.Normal(jnp.cumsum(f), 0.3))
    return pk.fit(summed, DATA, method=pk.EP(), progress=False)


@CORPUS.row("EP", "'y' has missing entries", "posterior.predict")
def engine_for_missing_outcomes() -> Any:
    holes = np.where(Y > 1.5, np.nan, Y)
    return pk.fit(model(), {"x": X, "y": holes}, method=pk.EP(), progress=False)


@CORPUS.row("site 'y'", "2 observed values are outside it .*2", "mend the data")
def engine_for_labels_beyond_one() -> Any:
    probit = model(value=lambda f: pk.BernoulliProbit(f))
    data = {"x": X, "y": np.array([0, 1, 2, 1, 0, 2])}
    return pk.fit(probit, data, method=pk.EP(), progress=False)


@CORPUS.row("site 'f'", r"100000 points .*\d+ GiB|100000 rows", "subset|subsample")
def engine_for_more_rows_than_memory() -> Any:
    x = np.linspace(0, 1, 100_000)
    return pk.fit(model(), {"x": x, "y": x}, method=pk.GPExact(), progress=False)


@CORPUS.row("GPExact", "not Gaussian", r"pk.EP\(\)")
def exact_solve_of_labels() -> Any:
    logit = model(value=lambda f: dist.Bernoulli(logits=f))
    data = {"x": X, "y": (Y > 1).astype(int)}
    return pk.fit(logit, data, method=pk.GPExact(), progress=False)


@CORPUS.row("site 'f'", "needs all of its rows", "take all rows")
def mini_batches_of_a_process() -> Any:
    return pk.fit(model(), DATA, method=pk.SGLD(draws=5, batch_size=2), progress=False)


@CORPUS.row("'f'.*'x'", "not in the new data", "add the column")
def predicting_without_the_inputs() -> Any:
    return fitted().predict({"z": X})


@CORPUS.row("log_predictive", "no observed variable", "'y'")
def scoring_without_outcomes() -> Any:
    return fitted().log_predictive({"x": X})


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda m: m.name)
def test_mistake(mistake: Mistake) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        mistake.make()
    message = str(caught.value)
    for part in ("where", "what", "remedy"):
        pattern = getattr(mistake, part)
        assert re.search(pattern, message, re.DOTALL), f"{part} {pattern!r} is not in:\n{message}"


def test_jitter_is_said() -> None:
    """A negative eigenvalue within a thousandth of the diagonal: repaired, and said."""
    bent = np.eye(6)
    bent[0, 1] = bent[1, 0] = 1.0005
    table = jnp.asarray(bent)
    looked_up = pk.gp(lambda: lambda a, b: table[a.astype(int), b.astype(int)], at="x")
    fixed = model(looked_up).do(scale=1.0)
    with pytest.warns(UserWarning, match="site 'f': the covariance matrix got a jitter"):
        found = pk.fit(
            fixed, {"x": np.arange(6.0), "y": Y}, method=pk.GPExact(starts=1), progress=False
        )
    assert 5e-4 < found.approximation.stats["jitter"] <= 1.001e-3
    assert found.check()["jitter"].ok is False


def test_engines_take_repeated_inputs_and_a_constant_outcome() -> None:
    """A constant needs no noise, so its evidence has no bound: that is said, in finite figures."""
    noisy = model(value=lambda f, noise: dist.Normal(f, noise)).extend(noise=dist.HalfNormal(1.0))
    data = {"x": np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]), "y": np.full(6, 2.0)}
    found = pk.fit(noisy, data, method=pk.GPExact(objective="ml2"), progress=False)
    stats = found.approximation.stats
    assert np.isfinite(stats["log_evidence"]) and np.all(np.isfinite(stats["f_mean"]))
    assert "constant outcome" in found.check()["range"].advice


ENGINES = [
    pytest.param(pk.EP(starts=1), id="ep"),
    *[
        pytest.param(method, id=name, marks=pytest.mark.slow)
        for name, method in {
            "laplace": pk.GPLaplace(starts=1),
            "cvi": pk.CVI(starts=1),
            "hybrid": pk.HybridEP(starts=1),
            "svgp": pk.SVGP(inducing=3),
            "sparse hybrid": pk.SparseHybridEP(inducing=3),
        }.items()
    ],
]


@pytest.mark.parametrize("method", ENGINES)
def test_engines_take_one_label_at_repeated_inputs(method: Any) -> None:
    """All labels are one: figures are finite, and either it ends or it says why it did not."""
    probit = model(value=lambda f: pk.BernoulliProbit(f))
    data = {"x": np.array([0.0, 0.0, 0.5, 1.0, 1.0, 1.5]), "y": np.ones(6, int)}
    found = pk.fit(probit, data, method=method, progress=False)
    stats = found.approximation.stats
    assert np.isfinite(stats["log_evidence"]) and np.all(np.isfinite(stats["f_mean"]))
    assert found.status is pk.core.Status.OK or any(c.advice for c in found.check().failed)


@pytest.mark.parametrize("method", ENGINES)
def test_engines_refuse_a_kernel_that_is_not_positive_definite(method: Any) -> None:
    distance = pk.gp(lambda scale: lambda a, b: jnp.abs(a - b) / scale, at="x")
    probit = model(distance, lambda f: pk.BernoulliProbit(f))
    data = {"x": X, "y": (Y > 1).astype(int)}
    with pytest.raises(ValueError, match=r"site 'f'.*not positive definite.*pk\.kernels"):
        pk.fit(probit, data, method=method, progress=False)


def test_what_looks_like_a_mistake_and_is_none() -> None:
    """Equal inputs and a constant outcome: the density and its gradient are finite."""
    target = model().bind({"x": np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1e-12]), "y": np.full(6, 2.0)})
    with jax.enable_x64(True):
        point = {k: jnp.asarray(v) + 0.3 for k, v in target.example.items()}
        value, slope = jax.value_and_grad(target.log_density)(point)
    assert np.isfinite(value) and all(np.isfinite(v).all() for v in slope.values())
