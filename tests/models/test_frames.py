"""Data frames: every library gives the same target, bit for bit, and the same posterior."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr

import probkit as pk
from probkit import dist

N = 14
RNG = np.random.default_rng(5)
TABLE = {
    "county": [str(c) for c in np.array(["lake", "hill", "shore", "dale"])[np.arange(N) % 4]],
    "x": RNG.normal(size=N),
    "floor": np.arange(N) % 2,
    "y": RNG.normal(size=N),
    "unused": ["?"] * N,
}


def _arrays() -> dict:
    return {k: v for k, v in TABLE.items() if k != "unused"}


def _dataset() -> xr.Dataset:
    return xr.Dataset({k: ("obs", np.asarray(v)) for k, v in TABLE.items()})


SOURCES: dict[str, Callable[[], object]] = {
    "mapping": _arrays,
    "pandas": lambda: pd.DataFrame(TABLE),
    "pandas_categorical": lambda: pd.DataFrame(TABLE).astype({"county": "category"}),
    "pandas_nullable": lambda: pd.DataFrame(TABLE).convert_dtypes(),
    "series": lambda: {k: pd.Series(v) for k, v in _arrays().items()},
    "polars": lambda: pl.DataFrame(TABLE),
    "lazy": lambda: pl.DataFrame(TABLE).lazy(),
    "arrow": lambda: pa.table(TABLE),
    "xarray": _dataset,
}


@pytest.fixture(scope="module")
def model() -> pk.Model:
    return pk.Model(
        b=dist.Normal(0.0, 2.0),
        f=dist.Normal(0.0, 2.0),
        a=pk.rv(dist.Normal(0.0, 3.0), dims="county"),
        y=pk.rv(
            lambda a, b, f, county, x, floor: dist.Normal(a[county] + b * x + f * floor, 0.7),
            dims="obs",
        ),
    )


@pytest.fixture(scope="module")
def reference(model: pk.Model) -> tuple[pk.Target, np.ndarray]:
    target = model.bind(_arrays())
    return target, _draws(target)


def _draws(target: pk.Target) -> np.ndarray:
    posterior = pk.fit(target, method=pk.ExactGaussian(draws=20), seed=4, progress=False)
    return np.concatenate([posterior.values[k].reshape(20, -1) for k in ("a", "b", "f")], axis=1)


@pytest.mark.parametrize("source", [k for k in SOURCES if k != "mapping"])
def test_targets_and_posteriors_are_bit_equal(
    model: pk.Model, reference: tuple[pk.Target, np.ndarray], source: str
) -> None:
    expected, draws = reference
    target = model.bind(SOURCES[source]())
    assert target.program is expected.program, "equal sizes and dtypes share one program"
    assert jax.tree.structure(target.arrays) == jax.tree.structure(expected.arrays)
    for one, two in zip(
        jax.tree.leaves(target.arrays), jax.tree.leaves(expected.arrays), strict=True
    ):
        assert one.dtype == two.dtype and one.tobytes() == two.tobytes()
    assert target.coords["county"].tolist() == ["dale", "hill", "lake", "shore"]
    assert _draws(target).tobytes() == draws.tobytes()


def test_the_order_of_categories_is_kept(model: pk.Model) -> None:
    order = ["shore", "lake", "hill", "dale"]
    frame = pd.DataFrame(TABLE)
    frame["county"] = pd.Categorical(frame["county"], categories=order)
    target = model.bind(frame)
    assert target.coords["county"].tolist() == order
    assert target.arrays["data"]["county"][0] == 1


def test_coords_of_a_categorical_column_reorder_its_codes(model: pk.Model) -> None:
    order = ["shore", "lake", "hill", "dale", "moor"]
    target = model.bind(pd.DataFrame(TABLE), coords={"county": order})
    codes = target.arrays["data"]["county"]
    assert [order[i] for i in codes] == TABLE["county"]
    assert target.sites["a"].shape == (5,), "a label without rows has its effect too"


def test_row_labels_reach_the_coords(model: pk.Model) -> None:
    frame = pd.DataFrame(TABLE, index=[f"house {i}" for i in range(N)])
    assert model.bind(frame).coords["obs"][3] == "house 3"
    assert model.bind(pd.DataFrame(TABLE)).coords["obs"].tolist() == list(range(N))


def test_rows_of_a_frame_name_the_axes_of_undeclared_sites() -> None:
    """No dim is auto-named where the data can name it."""
    loose = pk.Model(b=dist.Normal(0.0, 1.0), y=pk.rv(lambda b, x: dist.Normal(b * x, 1.0)))
    assert loose.bind(pd.DataFrame(TABLE)).sites["y"].dims == ("row",)
    assert loose.bind(_dataset()).sites["y"].dims == ("obs",)
    assert loose.bind({"x": TABLE["x"], "y": TABLE["y"]}).sites["y"].dims == ("y_dim_0",)


def test_missing_entries_are_the_same_everywhere() -> None:
    model = pk.Model(
        b=dist.Normal(0.0, 1.0), y=pk.rv(lambda b, x: dist.Normal(b * x, 1.0), dims="obs")
    )
    y: list[float | None] = [1.0, None, 0.5, None]
    x = [0.0, 1.0, 2.0, 3.0]
    sources = [
        {"x": x, "y": y},
        {"x": x, "y": np.ma.masked_invalid(np.array(y, float))},
        pd.DataFrame({"x": x, "y": y}),
        pl.DataFrame({"x": x, "y": y}),
        pa.table({"x": x, "y": y}),
    ]
    targets = [model.bind(s) for s in sources]
    for target in targets:
        assert target.program is targets[0].program
        assert target.arrays["index"]["y"].tolist() == [1, 3]
        assert target.coords["y_missing_obs"].tolist() == [1, 3]
        for one, two in zip(
            jax.tree.leaves(target.arrays), jax.tree.leaves(targets[0].arrays), strict=True
        ):
            assert one.tobytes() == two.tobytes()
