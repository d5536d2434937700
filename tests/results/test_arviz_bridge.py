"""Groups to ArviZ and to netCDF and back: nothing lost, both ArviZ lines, any library's files."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from probkit.results._arviz import arviz_attrs, from_arviz, to_arviz
from probkit.results._netcdf import load_file, load_groups, save_groups

OLD_LINE = version("arviz").startswith("0.")


def some_groups() -> dict[str, xr.Dataset]:
    rng = np.random.default_rng(0)
    coords = {"chain": np.arange(2), "draw": np.arange(10), "school": ["Choate", "Ünï", "c c"]}
    posterior = xr.Dataset(
        {
            "mu": (("chain", "draw"), rng.normal(size=(2, 10))),
            "theta": (("chain", "draw", "school"), rng.normal(size=(2, 10, 3)).astype("f4")),
            "z": (("chain", "draw"), rng.integers(0, 3, (2, 10))),
        },
        coords=coords,
        attrs={"sampling_time": 1.5, "inference_library": "probkit"},
    )
    stats = xr.Dataset({"diverging": (("chain", "draw"), rng.random((2, 10)) < 0.3)})
    observed = xr.Dataset(
        {"y": ("school", [28.0, np.nan, -3.0])}, coords={"school": ["a", "b", "c"]}
    )
    return {"posterior": posterior, "sample_stats": stats, "observed_data": observed}


def assert_same(left: dict[str, xr.Dataset], right: dict[str, xr.Dataset]) -> None:
    assert list(left) == list(right)
    for name in left:
        xr.testing.assert_identical(left[name], right[name])
        for key, variable in left[name].variables.items():
            assert right[name].variables[key].dtype.kind == variable.dtype.kind, (name, key)


def test_to_arviz_and_back_keeps_everything():
    groups = some_groups()
    obj = to_arviz(groups, {"title": "schools"})
    assert type(obj).__name__ == ("InferenceData" if OLD_LINE else "DataTree")
    assert_same(groups, from_arviz(obj))
    assert arviz_attrs(obj) == {"title": "schools"}
    np.testing.assert_array_equal(obj["posterior"]["mu"], groups["posterior"]["mu"])


def test_arviz_itself_computes_on_the_object():
    import arviz as az

    table = az.summary(to_arviz(some_groups()))
    assert "theta[Choate]" in table.index


def test_a_datatree_is_read_on_either_line():
    groups = some_groups()
    tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"a": 1}), **groups})
    assert_same(groups, from_arviz(tree))
    assert arviz_attrs(tree) == {"a": 1}


def test_building_the_object_compiles_nothing():
    import jax

    counted = []

    def count(event: str, **_: object) -> None:
        if "compile" in event:
            counted.append(event)

    def timed(event: str, _: float, **__: object) -> None:
        count(event)

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(timed)
    try:
        from_arviz(to_arviz(some_groups()))
        assert counted == []
        jax.jit(lambda x: x * 3.25)(1.0)
        assert counted, "the counter must be able to see a compilation"
    finally:
        jax.monitoring.unregister_event_listener(count)
        jax.monitoring.unregister_event_duration_listener(timed)


def test_from_arviz_refuses_other_things():
    with pytest.raises(TypeError, match="found dict"):
        from_arviz({"posterior": xr.Dataset()})


@pytest.mark.parametrize("call", [to_arviz, lambda g: save_groups(g, "never.nc")])
def test_bad_groups_are_named(call):
    with pytest.raises(TypeError, match="'posterior' must be an xarray.Dataset, found dict"):
        call({"posterior": {"mu": np.zeros((1, 2))}})
    with pytest.raises(ValueError, match="'a/b' cannot be the name of a group"):
        call({"a/b": xr.Dataset()})


def test_save_and_load_identical(tmp_path):
    groups = some_groups()
    attrs = {"n": 3, "x": 0.5, "s": "text", "flag": True, "none": None, "d": {"a": [1, "b"]}}
    path = save_groups(groups, tmp_path / "a.nc", attrs)
    again, root = load_file(path)
    assert_same(groups, again)
    assert root == attrs
    assert os.listdir(tmp_path) == ["a.nc"]
    save_groups(again, path, root)  # the file is closed, so it can be replaced
    assert_same(groups, load_groups(path))


@pytest.mark.parametrize(
    "labels",
    [
        pd.Index(["a", "é", "c d"]),
        pd.Index([1, "two", None], dtype=object),
        pd.CategoricalIndex(["lo", "hi", "lo"], categories=["lo", "hi"], ordered=True),
        pd.CategoricalIndex([3, 1, 3]),
        pd.date_range("2020-01-31 12:34:56", periods=3, freq="36h"),
        pd.date_range("2020-01-31", periods=3, tz="Europe/Paris"),
        pd.to_timedelta([1, 25, 70], unit="h"),
        pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["k", "l"]),
        pd.Index([True, False, True]),
        pd.Index([0.5, 1.5, 2.5]),
    ],
    ids=lambda index: str(index.dtype) + type(index).__name__,
)
def test_labels_survive(tmp_path, labels):
    values = (("chain", "draw", "g"), np.arange(6.0).reshape(1, 2, 3))
    coords = (
        xr.Coordinates.from_pandas_multiindex(labels, "g")
        if isinstance(labels, pd.MultiIndex)
        else {"g": labels}
    )
    ds = xr.Dataset({"a": values}).assign_coords(coords)
    again = load_groups(save_groups({"posterior": ds}, tmp_path / "a.nc"))["posterior"]
    xr.testing.assert_identical(ds["a"], again["a"])
    assert type(again.indexes["g"]) is type(ds.indexes["g"])
    if isinstance(labels, pd.CategoricalIndex):
        assert again.indexes["g"].ordered == labels.ordered
        assert list(again.indexes["g"].categories) == list(labels.categories)


def test_periods_and_intervals_become_text(tmp_path):
    for labels in (pd.period_range("2020-01", periods=2, freq="M"), pd.interval_range(0, 2)):
        ds = xr.Dataset({"a": ("g", [1.0, 2.0])}, coords={"g": labels})
        again = load_groups(save_groups({"posterior": ds}, tmp_path / "a.nc"))["posterior"]
        assert list(again["g"].values) == [str(v) for v in labels]


def test_pandas_integers_become_plain_ones(tmp_path):
    ds = xr.Dataset({"a": ("g", [1.0, 2.0])}, coords={"g": pd.Index([1, 2], dtype="Int64")})
    again = load_groups(save_groups({"posterior": ds}, tmp_path / "a.nc"))["posterior"]
    assert again["g"].dtype == np.int64 and list(again["g"].values) == [1, 2]


def test_values_survive(tmp_path):
    import jax.numpy as jnp

    ds = xr.Dataset(
        {
            "flag": ("i", np.array([True, False])),
            "text": ("i", np.array(["x", "longer é"])),
            "objects": ("i", np.array(["x", 2], dtype=object)),
            "half": ("i", np.array([0.5, 2.0], dtype=np.float16)),
            "brain": ("i", np.asarray(jnp.asarray([0.5, 2.0], dtype=jnp.bfloat16))),
            "unsigned": ("i", np.array([0, 2**32 - 1], dtype=np.uint32)),
            "small": ("i", np.array([-1, 5], dtype=np.int8)),
            "holes": ("i", np.array([np.nan, np.inf])),
            "scalar": ((), 3.0),
            "none_left": (("i", "e"), np.zeros((2, 0))),
            "scope/w": (("i", "scope/w_dim_0"), np.ones((2, 2))),
            "scope::w": ("i", [1, 2]),
        },
        attrs={"note": ["a", 1], "flag": np.bool_(False)},
    )
    again = load_groups(save_groups({"constant_data": ds}, tmp_path / "a.nc"))["constant_data"]
    assert again.attrs == {"note": ["a", 1], "flag": False}
    assert set(again.variables) == set(ds.variables)
    for name in ds.variables:
        np.testing.assert_array_equal(again[name].values, ds[name].values, err_msg=name)
        assert again[name].dims == ds[name].dims
        if name not in ("text", "brain"):
            assert again[name].dtype == ds[name].dtype, name
    assert again["brain"].dtype == np.float32


def test_names_with_slashes_reach_arviz_and_come_back():
    draws = xr.Dataset({"net/w": (("chain", "draw", "net/in"), np.zeros((1, 2, 3)))})
    obj = to_arviz({"posterior": draws})
    assert ("net/w" if OLD_LINE else "net::w") in obj["posterior"]
    xr.testing.assert_identical(from_arviz(obj)["posterior"], draws)


def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path):
    path = save_groups(some_groups(), tmp_path / "a.nc")
    before = path.read_bytes()
    bad = {"posterior": xr.Dataset({"w": (("chain", "draw"), np.ones((1, 2)) * 1j)})}
    with pytest.raises(ValueError, match="group 'posterior': variable 'w' is complex"):
        save_groups(bad, path)
    clash = some_groups()
    clash["posterior"]["z"].attrs["_FillValue"] = "not a number"  # fails inside the writer
    with pytest.raises((ValueError, TypeError)):
        save_groups(clash, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nc"]


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.nc' does not exist"):
        load_groups(tmp_path / "no.nc")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_groups(tmp_path)
    (tmp_path / "text.nc").write_text("chain,draw\n0,1\n")
    with pytest.raises(ValueError, match="not a netCDF-4 file"):
        load_groups(tmp_path / "text.nc")
    some_groups()["posterior"].to_netcdf(tmp_path / "bare.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match="has no groups"):
        load_groups(tmp_path / "bare.nc")
    with pytest.raises(FileNotFoundError, match="does not exist; make it"):
        save_groups(some_groups(), tmp_path / "missing" / "a.nc")


def test_arviz_reads_what_we_write(tmp_path):
    import arviz as az

    groups = some_groups()
    path = save_groups(groups, tmp_path / "a.nc", {"title": "t"})
    obj = az.from_netcdf(str(path))
    read = from_arviz(obj)
    assert set(read) == set(groups)
    for name in groups:
        xr.testing.assert_identical(read[name].load(), groups[name])
    assert arviz_attrs(obj)["title"] == "t"
    assert "theta[Choate]" in az.summary(obj).index


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
def test_we_read_what_arviz_writes(tmp_path, engine):
    import arviz as az

    if engine == "netcdf4":
        pytest.importorskip("netCDF4")  # optional, as for xarray
    rng = np.random.default_rng(1)
    draws = {"mu": rng.normal(size=(2, 8)), "theta": rng.normal(size=(2, 8, 3))}
    hints = {"coords": {"g": ["a", "b", "c"]}, "dims": {"theta": ["g"]}}
    if OLD_LINE:
        obj = az.from_dict(posterior=draws, observed_data={"y": np.arange(3)}, **hints)
    else:
        obj = az.from_dict({"posterior": draws, "observed_data": {"y": np.arange(3)}}, **hints)
    obj.to_netcdf(str(tmp_path / "a.nc"), engine=engine)
    groups = load_groups(tmp_path / "a.nc")
    assert list(groups["posterior"]["theta"].coords["g"].values) == ["a", "b", "c"]
    np.testing.assert_array_equal(groups["posterior"]["mu"], draws["mu"])
    np.testing.assert_array_equal(groups["observed_data"]["y"], np.arange(3))


def test_inherited_coordinates_of_a_tree_file_are_found(tmp_path):
    shared = xr.Dataset(coords={"chain": [0, 1], "g": ["a", "b"]})
    draws = xr.Dataset({"t": (("chain", "draw", "g"), np.zeros((2, 3, 2)))})
    tree = xr.DataTree.from_dict({"/": shared, "posterior": draws})
    tree.to_netcdf(tmp_path / "tree.nc")
    assert list(load_groups(tmp_path / "tree.nc")["posterior"]["g"].values) == ["a", "b"]


def test_a_numpyro_run_saved_through_arviz_is_read(tmp_path):
    import arviz as az
    import jax
    import numpyro
    from numpyro import distributions as dist

    def model(sigma, y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("school", 3):
            theta = numpyro.sample("theta", dist.Normal(mu, 1))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model), num_warmup=20, num_samples=20, progress_bar=False
    )
    mcmc.run(jax.random.key(0), np.ones(3), y=np.arange(3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the other library's own
        az.from_numpyro(mcmc).to_netcdf(str(tmp_path / "n.nc"))
    groups = load_groups(tmp_path / "n.nc")
    assert groups["posterior"]["theta"].dims == ("chain", "draw", "school")
    assert groups["sample_stats"]["diverging"].dtype == bool
    assert "y" in groups["observed_data"]
