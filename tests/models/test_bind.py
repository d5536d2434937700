"""bind: dims, coords, sizes and sources of data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from numpyro.distributions import MultivariateNormal

import probkit as pk
from probkit import dist

EXACT = pk.ExactGaussian(draws=50)


def _fit(model: pk.Model, data: object, **options: object) -> pk.Posterior:
    return pk.fit(model, data, method=EXACT, progress=False, **options)


def _panel() -> pk.Model:
    return pk.Model(
        u=pk.rv(dist.Normal(0.0, 3.0), dims="firm"),
        w=pk.rv(dist.Normal(0.0, 3.0), dims="year"),
        mean=pk.deterministic(lambda u, w: u[:, None] + w, dims=("firm", "year")),
        y=pk.rv(lambda mean: dist.Normal(mean, 0.5), dims=("firm", "year")),
    )


Y = np.arange(12.0).reshape(4, 3) / 4


# -- shapes -------------------------------------------------------------------------------------


def test_natural_shapes_broadcast() -> None:
    target = _panel().bind({"y": Y})
    z = {"u": jnp.arange(4.0), "w": jnp.array([0.5, 1.0, 2.0])}
    resid = Y - (np.arange(4.0)[:, None] + np.array([0.5, 1.0, 2.0]))
    expected = -0.5 * (resid / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(target.per_example(z)["y"], expected, rtol=1e-5, atol=1e-5)
    assert target.constrain(z)["mean"].shape == (4, 3)


def test_a_variable_keeps_the_order_of_its_own_dims() -> None:
    """Dims in another order in a parent: the function transposes, the values do not move."""
    model = pk.Model(
        b=pk.rv(dist.Normal(0.0, 1.0), dims=("year", "firm")),
        y=pk.rv(lambda b: dist.Normal(b.T, 1.0), dims=("firm", "year")),
    )
    target = model.bind({"y": Y})
    assert target.sites["b"].shape == (3, 4)
    z = {"b": jnp.asarray(Y.T)}
    np.testing.assert_allclose(target.log_likelihood(z), -12 * 0.5 * np.log(2 * np.pi), rtol=1e-6)


def test_dims_of_a_dataarray_are_put_in_order() -> None:
    moved = xr.DataArray(Y.T, dims=("year", "firm"), coords={"year": [1, 2, 3]})
    holes = moved.where(moved != Y[1, 2])
    z = {"u": jnp.arange(4.0), "w": jnp.ones(3)}
    plain = _panel().bind({"y": Y})
    target = _panel().bind({"y": moved})
    assert target.log_density(z) == plain.log_density(z)
    assert target.coords["year"].tolist() == [1, 2, 3]
    target = _panel().bind({"y": holes})
    assert target.coords["y_missing_firm_year"].tolist() == ["1, 3"]


def test_shared_distributions_repeat_along_dims() -> None:
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims=("g", "k")),
        b=pk.rv(dist.Normal(np.array([0.0, 5.0]), 1.0), dims=("g", "k")),
    )
    target = model.bind(coords={"g": ["x", "y", "z"], "k": [1, 2]})
    assert target.sites["a"].shape == target.sites["b"].shape == (3, 2)
    prior = target.terms({"a": jnp.zeros((3, 2)), "b": jnp.zeros((3, 2))}).prior
    np.testing.assert_allclose(prior["b"] - prior["a"], -3 * 12.5, rtol=1e-6)


# -- every site's dims and coords reach ArviZ ---------------------------------------------------


@pytest.fixture(scope="module")
def everything() -> pk.Posterior:
    """Scalars, batch and event dims, deterministics, factors, missing entries, unnamed axes."""
    model = pk.Model(
        m=dist.Normal(0.0, 1.0),
        loose=pk.rv(dist.Normal(np.zeros(2), 1.0)),
        pair=pk.rv(MultivariateNormal(np.zeros(2), np.eye(2)), dims="g", event_dims="part"),
        bare=pk.rv(
            lambda size: MultivariateNormal(jnp.outer(size, jnp.ones(3)), jnp.eye(3)), dims="g"
        ),
        total=pk.deterministic(lambda pair: pair.sum(-1), dims="g"),
        twice=pk.deterministic(lambda loose: 2 * loose),
        score=pk.factor(lambda total: -(total**2), dims="g", likelihood=True),
        y=pk.rv(
            lambda m, total, g, x, loose: dist.Normal(m + total[g] * x + loose.sum(), 1.0),
            dims="obs",
        ),
        v=pk.rv(lambda bare: MultivariateNormal(bare, np.eye(3)), dims="g"),
    )
    rng = np.random.default_rng(0)
    y = rng.normal(size=6)
    y[2] = np.nan
    data = {
        "y": y,
        "x": np.linspace(0, 1, 6),
        "size": np.array([1.0, 2.0, 3.0]),
        "g": ["a", "b", "a", "c", "b", "c"],
        "v": rng.normal(size=(3, 3)),
    }
    return _fit(model, data, coords={"part": ["first", "second"], "obs": list("uvwxyz")})


def test_dims_reach_every_group(everything: pk.Posterior) -> None:
    expected = {
        "m": (),
        "loose": ("loose_dim_0",),
        "pair": ("g", "part"),
        "bare": ("g", "bare_dim_0"),
        "total": ("g",),
        "twice": ("twice_dim_0",),
        "score": ("g",),
        "y": ("obs",),
        "v": ("g", "v_dim_0"),
        "y_missing": ("y_missing_obs",),
    }
    assert {k: s.dims for k, s in everything.target.sites.items()} == expected
    groups = everything.groups()
    drawn = {k: d[2:] for k, d in ((k, v.dims) for k, v in groups["posterior"].items())}
    kinds = {k: s.kind for k, s in everything.target.sites.items()}
    assert drawn == {k: d for k, d in expected.items() if kinds[k] != "observed"}
    for group in ("posterior_predictive", "prior_predictive"):
        assert {k: v.dims[2:] for k, v in groups[group].items()} == {
            k: expected[k] for k in ("y", "v")
        }
    likelihood = {k: v.dims[2:] for k, v in groups["log_likelihood"].items()}
    assert likelihood == {"y": ("obs",), "v": ("g",), "score": ("g",)}
    assert groups["observed_data"]["y"].dims == ("obs",)
    assert groups["constant_data"]["x"].dims == ("obs",)
    assert groups["constant_data"]["g_index"].dims == ("obs",)
    assert groups["constant_data"]["size"].dims == ("g",)


def test_coords_reach_every_group(everything: pk.Posterior) -> None:
    groups = everything.groups()
    known = {"g": ["a", "b", "c"], "part": ["first", "second"], "obs": list("uvwxyz")}
    for name, group in groups.items():
        for dim in group.dims:
            if dim in known:
                assert group[dim].values.tolist() == known[dim], (name, dim)
    assert groups["posterior"]["y_missing_obs"].values.tolist() == ["w"]


# -- where sizes come from ----------------------------------------------------------------------


def test_sizes_from_codes_labels_and_coords() -> None:
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims="g"),
        y=pk.rv(lambda a, g: dist.Normal(a[g], 1.0), dims="obs"),
    )
    y = np.zeros(4)
    assert model.bind({"g": np.array([0, 2, 1, 2]), "y": y}).sites["a"].shape == (3,)
    assert model.bind({"g": list("abab"), "y": y}).coords["g"].tolist() == ["a", "b"]
    target = model.bind({"g": list("abab"), "y": y}, coords={"g": ["c", "b", "a"]})
    assert target.coords["g"].tolist() == ["c", "b", "a"]
    assert target.arrays["data"]["g"].tolist() == [2, 1, 2, 1], "labels are matched, not sorted"
    target = model.bind({"g": np.array([0, 1, 0, 1]), "y": y}, coords={"g": ["p", "q"]})
    assert target.arrays["data"]["g"].tolist() == [0, 1, 0, 1], "codes stay codes"


def test_sizes_of_dims_as_parents() -> None:
    count = pk.size("region")
    model = pk.Model(
        s=pk.rv(lambda n=count: dist.Normal(0.0, 1.0 * n), dims="region"),
        t=pk.rv(lambda g: dist.Normal(0.0, 1.0 * g), dims="g"),
    )
    target = model.bind(coords={"region": list("abc"), "g": list("xy")})
    prior = target.terms({k: jnp.zeros(s) for k, s in target.program.shapes.items()}).prior
    np.testing.assert_allclose(prior["s"], -3 * np.log(3 * np.sqrt(2 * np.pi)), rtol=1e-6)
    np.testing.assert_allclose(prior["t"], -2 * np.log(2 * np.sqrt(2 * np.pi)), rtol=1e-6)


def test_names_resolve_to_columns_before_sizes() -> None:
    model = pk.Model(y=pk.rv(lambda n: dist.Normal(n, 1.0), dims="n"))
    assert model.bind({"y": np.zeros(2)}).log_density({}) == pytest.approx(
        -2 * (2.0**2 / 2 + 0.5 * np.log(2 * np.pi))
    )
    column = model.bind({"y": np.zeros(2), "n": np.array([5.0, 0.0])})
    assert column.log_density({}) == pytest.approx(-12.5 - np.log(2 * np.pi))


def test_names_resolve_to_variables_before_columns() -> None:
    """A declared name that is found in the data is observed: its density counts."""
    model = pk.Model(x=dist.Normal(1.0, 1.0), y=pk.rv(lambda x: dist.Normal(x, 1.0)))
    target = model.bind({"x": 3.0, "y": 3.0})
    assert target.sites["x"].kind == "observed"
    assert target.log_density({}) == pytest.approx(-2.0 - np.log(2 * np.pi))


def test_optional_parents_keep_their_defaults() -> None:
    model = pk.Model(y=pk.rv(lambda offset=1.5: dist.Normal(offset, 1.0)))
    y = np.array([1.5])
    assert model.bind({"y": y}).log_density({}) == pytest.approx(-0.5 * np.log(2 * np.pi))
    given = model.bind({"y": y, "offset": np.array([0.5])})
    assert given.log_density({}) == pytest.approx(-0.5 - 0.5 * np.log(2 * np.pi))


def test_bare_arrays_take_the_dim_that_fits() -> None:
    model = pk.Model(
        b=pk.rv(dist.Normal(0.0, 1.0), dims="k"),
        y=pk.rv(lambda b, X, s: dist.Normal(X @ b, s), dims="obs"),
    )
    data = {"X": np.ones((5, 2)), "s": np.ones(5), "y": np.zeros(5)}
    target = model.bind(data, coords={"k": ["p", "q"]})
    assert target.program.data_dims["s"] == ("obs",)
    named = model.bind(data, dims={"X": ("obs", "k")})
    assert named.program.data_dims["X"] == ("obs", "k")
    assert named.sites["b"].shape == (2,)


def test_targets_share_their_program_and_density_follows_dtype() -> None:
    model = _panel()
    one, two = model.bind({"y": Y}), model.bind({"y": Y + 1.0})
    assert one.program is two.program
    other = model.bind({"y": Y[:, :2]})
    assert other.program is not one.program
    with jax.enable_x64(True):
        wide = model.bind({"y": Y})
        assert wide.dtype == np.float64 and wide.program is not one.program
        z = {"u": jnp.zeros(4), "w": jnp.zeros(3)}
        assert wide.log_density(z).dtype == np.float64
    assert one.dtype == np.float32


def test_data_are_copied() -> None:
    y = Y.copy()
    target = _panel().bind({"y": y})
    y[:] = 100.0
    np.testing.assert_array_equal(target.arrays["observed"]["y"], Y.astype(np.float32))


def test_observe_false_leaves_declared_names_latent() -> None:
    target = _panel().bind({"y": Y}, coords={"firm": range(4), "year": range(3)}, observe=False)
    assert target.sites["y"].kind == "latent"


def test_an_outcome_without_data_is_simulated_not_summed() -> None:
    """A discrete outcome with infinite support that nothing depends on sums to one."""
    model = pk.Model(
        rate=dist.Gamma(2.0, 1.0),
        n=pk.rv(lambda rate: dist.Poisson(rate), dims="obs"),
        twice=pk.deterministic(lambda n: 2 * n, dims="obs"),
    )
    target = model.bind(coords={"obs": range(4)})
    z = {"rate": jnp.asarray(0.3)}
    only = pk.Model(rate=dist.Gamma(2.0, 1.0)).bind()
    assert target.log_density(z) == only.log_density(z)
    values = target.constrain(z, jax.random.key(1))
    assert values["n"].shape == (4,)
    np.testing.assert_array_equal(values["twice"], 2 * values["n"])
