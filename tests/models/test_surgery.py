"""do, condition, replace, extend: the same graph with other names given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import probkit as pk
from probkit import dist


def _chain() -> pk.Model:
    """x -> m -> y with a confounder: what `do` cuts and `condition` does not."""
    return pk.Model(
        x=dist.Normal(0.0, 1.0),
        m=pk.rv(lambda x: dist.Normal(2.0 * x, 1.0)),
        y=pk.rv(lambda m: dist.Normal(m, 1.0)),
    )


def _density(model: pk.Model, z: dict, data: dict | None = None) -> float:
    target = model.bind(data, reparam="off")
    return float(target.log_density({k: jnp.asarray(v, jnp.float32) for k, v in z.items()}))


def test_condition_keeps_the_parents_term() -> None:
    model = _chain().condition(m=1.5)
    expected = stats.norm.logpdf([0.3, 1.5 - 0.6, 0.2 - 1.5]).sum()
    assert _density(model, {"x": 0.3, "y": 0.2}) == pytest.approx(expected, rel=1e-5)
    assert model.bind().sites["m"].kind == "observed"


def test_do_cuts_the_parents_term() -> None:
    model = _chain().do(m=1.5)
    expected = stats.norm.logpdf([0.3, 0.2 - 1.5]).sum()
    assert _density(model, {"x": 0.3, "y": 0.2}) == pytest.approx(expected, rel=1e-5)
    assert model.bind().sites["m"].kind == "deterministic"


def test_condition_is_the_same_as_data() -> None:
    z = {"x": 0.3, "m": 0.1}
    given = _density(_chain().condition(y=0.7), z)
    assert given == _density(_chain(), z, {"y": 0.7})


def test_condition_goes_with_frames_and_dataframes_keep_their_labels() -> None:
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims="g"),
        y=pk.rv(lambda a, g: dist.Normal(a[g], 1.0), dims="obs"),
    )
    frame = pd.DataFrame({"g": ["u", "v", "u"]})
    target = model.condition(y=[1.0, 2.0, 3.0]).bind(frame)
    assert target.coords["g"].tolist() == ["u", "v"]
    assert target.program.data_dims["g"] == ("obs",)
    whole = model.bind(frame.assign(y=[1.0, 2.0, 3.0]))
    z = {"a": jnp.array([0.1, 0.2])}
    assert target.log_density(z) == whole.log_density(z)


def test_condition_with_missing_entries_imputes() -> None:
    model = pk.Model(mu=dist.Normal(0.0, 1.0), y=pk.rv(lambda mu: dist.Normal(mu, 1.0), dims="o"))
    target = model.condition(y=[1.0, np.nan, 2.0]).bind()
    assert target.sites["y_missing"].shape == (1,)


@pytest.mark.parametrize("value", [2.0, [2.0, 2.0, 2.0]], ids=["number", "array"])
def test_do_of_a_variable_with_dims(value: object) -> None:
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims="g"),
        y=pk.rv(lambda a, code: dist.Normal(a[code], 1.0), dims="obs"),
    )
    data = {"code": np.array([0, 2, 1]), "y": np.array([2.0, 2.0, 3.0])}
    target = model.do(a=value).bind(data, coords={"g": list("xyz")})
    assert target.sites["a"].dims == ("g",)
    expected = stats.norm.logpdf([0.0, 0.0, 1.0]).sum()
    assert float(target.log_density({})) == pytest.approx(expected, rel=1e-5)


def test_do_then_simulate() -> None:
    """An intervention moves what is downstream, and nothing upstream."""
    prior = pk.prior_predictive(_chain().do(m=10.0), draws=2000, seed=3).prior
    assert abs(float(prior["y"].mean()) - 10.0) < 0.15
    assert abs(float(prior["x"].mean())) < 0.15
    assert float(prior["m"].std()) == 0.0


def test_replace() -> None:
    model = _chain().replace(x=dist.Normal(5.0, 2.0))
    expected = stats.norm.logpdf(0.3, 5, 2) + stats.norm.logpdf([0.1 - 0.6, 0.2 - 0.1]).sum()
    assert _density(model, {"x": 0.3, "m": 0.1, "y": 0.2}) == pytest.approx(expected, rel=1e-5)


def test_extend() -> None:
    model = _chain().extend(w=pk.rv(lambda y: dist.Normal(y, 1.0)))
    base = _density(_chain(), {"x": 0.3, "m": 0.1, "y": 0.2})
    more = _density(model, {"x": 0.3, "m": 0.1, "y": 0.2, "w": 1.0})
    assert more - base == pytest.approx(stats.norm.logpdf(0.8), rel=1e-5)


def test_models_are_left_as_they_were() -> None:
    model = _chain()
    before = model.nodes
    model.do(m=1.0), model.condition(m=1.0), model.replace(x=dist.Normal(0.0, 9.0))
    assert model.nodes == before and not model.bind().labels.observed


def test_surgery_composes() -> None:
    model = _chain().condition(y=0.7).replace(x=dist.Normal(1.0, 1.0)).do(m=0.5)
    expected = stats.norm.logpdf([0.3 - 1.0, 0.7 - 0.5]).sum()
    assert _density(model, {"x": 0.3}) == pytest.approx(expected, rel=1e-5)


def test_posterior_of_a_conditioned_chain_is_exact() -> None:
    target = _chain().condition(y=0.7).bind(reparam="off")
    precision = -jax.hessian(target.flat_log_density)(jnp.zeros(2))
    np.testing.assert_allclose(precision, [[1 + 4, -2], [-2, 2]], atol=1e-5)
