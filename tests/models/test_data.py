"""The data layer: the same bits from every library, and messages for everything that is wrong."""

from __future__ import annotations

import datetime
import decimal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xarray as xr

from probkit.models._data import ROWS, Data, read_data

TABLE = {
    "x": [1.5, -2.0, 0.25, 4.0, 5.5],
    "hole": [1.5, None, 0.25, float("nan"), 5.5],
    "count": [3, 1, 4, 1, 5],
    "count_hole": [3, None, 4, 1, 5],
    "flag": [True, False, True, True, False],
    "flag_hole": [True, None, False, True, True],
    "word": ["b", "a", "c", "a", "b"],
    "word_hole": ["b", None, "c", "a", "b"],
    "grade": ["low", "high", "low", "mid", "low"],
    "day": [datetime.datetime(2020, 1, d) for d in range(1, 6)],
}
GRADES = ["low", "mid", "high", "unused"]


def from_pandas() -> pd.DataFrame:
    frame = pd.DataFrame(TABLE)
    frame["grade"] = pd.Categorical(TABLE["grade"], categories=GRADES, ordered=True)
    return frame


def from_pandas_nullable() -> pd.DataFrame:
    return from_pandas().convert_dtypes()


def from_polars() -> pl.DataFrame:
    frame = pl.DataFrame(TABLE, strict=False)
    return frame.with_columns(pl.col("grade").cast(pl.Enum(GRADES)))


def from_lazy() -> pl.LazyFrame:
    return from_polars().lazy()


def from_arrow() -> pa.Table:
    table = pa.table(TABLE)
    codes = pa.array([GRADES.index(g) for g in TABLE["grade"]], pa.int8())
    grade = pa.DictionaryArray.from_arrays(codes, pa.array(GRADES))
    return table.set_column(table.column_names.index("grade"), "grade", grade)


def from_mapping() -> dict:
    return {**TABLE, "grade": pd.Categorical(TABLE["grade"], categories=GRADES)}


def from_series() -> dict:
    frame = from_pandas()
    return {name: frame[name] for name in frame}


def from_xarray() -> dict:
    """A mapping of DataArrays: xarray itself has no categories, so the labels are given."""
    return {name: xr.DataArray(np.asarray(v, object), dims="obs") for name, v in TABLE.items()}


def from_dataset() -> xr.Dataset:
    return xr.Dataset(from_xarray())


SOURCES = [
    from_pandas,
    from_pandas_nullable,
    from_polars,
    from_lazy,
    from_arrow,
    from_mapping,
    from_series,
    from_xarray,
    from_dataset,
]


@pytest.mark.parametrize("source", SOURCES)
def test_every_library_gives_the_same_bits(source):
    reference = read_data(from_pandas())
    given = {"grade": GRADES} if source in (from_xarray, from_dataset) else None
    data = read_data(source(), categories=given)
    assert set(data.arrays) == set(reference.arrays)
    for name, array in reference.arrays.items():
        assert data.arrays[name].dtype == array.dtype, name
        assert data.arrays[name].tobytes() == array.tobytes(), name
    for name in ("hole", "count_hole", "flag_hole", "word_hole"):
        np.testing.assert_array_equal(data.missing[name], reference.missing[name])
    assert set(data.missing) == set(reference.missing)
    assert data.categorical == reference.categorical == {"word", "word_hole", "grade"}
    for name in reference.categorical:
        assert data.coords[name].tolist() == reference.coords[name].tolist()
    same = data.labels["day"].astype("datetime64[s]") == np.asarray(TABLE["day"], "datetime64[s]")
    assert same.all()


def test_what_is_kept():
    data = read_data(from_polars())
    assert data.is_frame and data.row_labels is None
    assert data.dims["x"] == (ROWS,) and data.sizes == {ROWS: 5}
    assert data.arrays["count"].dtype == np.int64 and data.arrays["flag"].dtype == bool
    assert data.arrays["count_hole"].tolist()[2:] == [4.0, 1.0, 5.0]
    assert data.arrays["grade"].tolist() == [0, 2, 0, 1, 0]
    assert data.arrays["grade"].dtype == np.int32
    assert data.coords["grade"].tolist() == GRADES
    assert data.arrays["word_hole"].tolist() == [1, -1, 2, 0, 1]
    assert data.missing["word_hole"].tolist() == [False, True, False, False, False]
    assert "day" in data and "day" not in data.arrays and "nothing" not in data


def test_float32_and_small_integers_keep_their_dtype():
    data = read_data({"x": np.float32([1, 2]), "i": np.int16([1, 2]), "u": np.uint8([1, 2])})
    assert data.arrays["x"].dtype == np.float32
    assert data.arrays["i"].dtype == np.int16
    assert data.arrays["u"].dtype == np.int64  # so that u - 2 is not 255
    half = read_data({"h": jnp.asarray([1.5, 2.0], jnp.bfloat16), "q": np.float16([1, np.nan])})
    assert half.arrays["h"].dtype == half.arrays["q"].dtype == np.float32
    assert half.missing["q"].tolist() == [False, True]
    wide = read_data({"w": np.longdouble([1, 2])})
    assert wide.arrays["w"].dtype == np.float64


def test_nothing_no_frame_and_scalars():
    assert read_data(None).arrays == read_data({}).arrays == {}
    data = read_data({"s": 2.0, "n": np.int64(3), "j": jnp.float32(1.0)})
    assert data.arrays["s"].shape == () and data.dims["s"] == ()
    assert not data.is_frame and data.sizes == {}


def test_arrays_are_copies_that_cannot_be_written():
    x = np.arange(3.0)
    data = read_data({"x": x})
    x[0] = 99
    assert data.arrays["x"][0] == 0
    with pytest.raises(ValueError, match="read-only"):
        data.arrays["x"][0] = 1


def test_masked_arrays():
    x = np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0])
    i = np.ma.masked_array([1, 2, 3], mask=[1, 0, 0])
    s = np.ma.masked_array(["a", "b", "a"], mask=[0, 1, 0])
    data = read_data({"x": x, "i": i, "s": s, "full": np.ma.masked_array([1, 2])})
    assert data.missing["x"].tolist() == [False, True, False]
    assert np.isnan(data.arrays["i"][0]) and data.arrays["i"].dtype == np.float64
    assert data.arrays["s"].tolist() == [0, -1, 0] and data.coords["s"].tolist() == ["a"]
    assert data.arrays["full"].dtype == np.int64 and "full" not in data.missing


def test_dims_of_bare_arrays_and_of_dataarrays():
    grid = xr.DataArray(
        np.zeros((2, 3)), dims=("year", "firm"), coords={"firm": ["a", "b", "c"], "year": [7, 8]}
    )
    data = read_data(
        {"grid": grid, "y": np.ones((2, 3)), "v": [1, 2, 3]}, dims={"y": ("year", "firm")}
    )
    assert data.dims == {"grid": ("year", "firm"), "y": ("year", "firm"), "v": None}
    assert data.coords["firm"].tolist() == ["a", "b", "c"]
    assert data.coords["year"].tolist() == [7, 8]
    assert data.sizes == {"year": 2, "firm": 3}


def test_dataset_coordinates_that_are_no_labels_are_columns():
    data = read_data(
        xr.Dataset(
            {"y": ("obs", [1.0, 2.0])}, {"county": ("obs", ["b", "a"]), "obs": ["r", "s"], "n": 3}
        )
    )
    assert data.arrays["county"].tolist() == [1, 0] and data.dims["county"] == ("obs",)
    assert data.coords["obs"].tolist() == ["r", "s"] and "n" not in data.arrays


def test_row_labels():
    frame = pd.DataFrame({"y": [1.0, 2.0]})
    assert read_data(frame).row_labels is None
    assert read_data(frame.set_axis(["p", "q"])).row_labels.tolist() == ["p", "q"]
    assert read_data(frame.set_axis([5, 6])).row_labels.tolist() == [5, 6]
    levels = pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])
    assert read_data(frame.set_axis(levels)).row_labels.tolist() == ["a, 1", "a, 2"]
    dates = pd.date_range("2020-01-01", periods=2)
    assert read_data(frame.set_axis(dates)).row_labels.dtype.kind == "M"


def test_new_data_match_by_label_not_by_position():
    new = pd.DataFrame({"g": ["c", "a"], "k": [30, 10]})
    data = read_data(new, categories={"g": ["a", "b", "c"], "k": np.array([10, 20, 30])})
    assert data.arrays["g"].tolist() == [2, 0] and data.coords["g"].tolist() == ["a", "b", "c"]
    assert data.arrays["k"].tolist() == [2, 0] and data.arrays["k"].dtype == np.int32
    shuffled = pd.DataFrame({"g": pd.Categorical(["c", "a"], categories=["c", "a"])})
    assert read_data(shuffled, categories={"g": ["a", "b", "c"]}).arrays["g"].tolist() == [2, 0]
    one = read_data({"g": "b"}, categories={"g": ["a", "b", "c"]})
    assert one.arrays["g"].shape == () and one.arrays["g"] == 1


def test_an_order_is_for_labels_and_leaves_numbers_alone():
    order = {"g": ["c", "b", "a"], "k": ["one", "two"], "elsewhere": [1]}
    frame = pd.DataFrame({"g": ["a", None, "c"], "k": [1, 0, 1]})
    data = read_data(frame, order=order)
    assert data.arrays["g"].tolist() == [2, -1, 0] and data.coords["g"].tolist() == order["g"]
    assert data.arrays["k"].tolist() == [1, 0, 1] and "k" not in data.categorical
    unused = pd.Categorical(["a", "b"], categories=["z", "a", "b"])
    assert read_data({"g": unused}, order=order).arrays["g"].tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"column 'g': the label 'd' \(row 1\)"):
        read_data({"g": ["a", "d"]}, order=order)


def test_unseen_label():
    with pytest.raises(ValueError, match=r"column 'g'.*'AITKEN' \(row 1\).*mean 'AITKIN'"):
        read_data(pl.DataFrame({"g": ["X", "AITKEN"]}), categories={"g": ["X", "AITKIN"]})
    with pytest.raises(ValueError, match=r"data 'g'.*label 3 \(row 0\)"):
        read_data({"g": [3]}, categories={"g": ["a", "b"]})


def test_intervals_are_labels():
    cut = pd.cut([1.0, 2.0, 9.0], [0, 5, 10])
    data = read_data({"g": cut})
    assert data.coords["g"].tolist() == ["(0, 5]", "(5, 10]"]
    again = read_data({"g": cut[::-1]}, categories={"g": data.coords["g"]})
    assert again.arrays["g"].tolist() == [1, 0, 0]


def test_polars_categorical_is_sorted_whatever_was_read_before():
    pl.Series(["z", "y", "b"], dtype=pl.Categorical)
    data = read_data(pl.DataFrame({"g": pl.Series(["b", "a"], dtype=pl.Categorical)}))
    assert data.coords["g"].tolist() == ["a", "b"] and data.arrays["g"].tolist() == [1, 0]


def test_arrow_chunks_with_their_own_dictionaries():
    chunks = pa.chunked_array(
        [pa.array(["b", "a"]).dictionary_encode(), pa.array(["c", None]).dictionary_encode()]
    )
    data = read_data(pa.table({"g": chunks}))
    assert data.coords["g"].tolist() == ["b", "a", "c"]
    assert data.arrays["g"].tolist() == [0, 1, 2, -1]
    assert read_data({"x": pa.array([1.0, None])}).missing["x"].tolist() == [False, True]


def test_decimals_are_numbers():
    values = [decimal.Decimal("1.5"), decimal.Decimal("2")]
    for data in ({"d": values}, pl.DataFrame({"d": values}), pa.table({"d": values})):
        array = read_data(data).arrays["d"]
        assert array.dtype == np.float64 and array.tolist() == [1.5, 2.0]


def test_dates_are_labels_and_no_numbers():
    frame = pd.DataFrame({"day": pd.date_range("2020", periods=2, tz="Europe/Paris"), "y": [1, 2]})
    frame["span"] = frame["day"] - frame["day"][0]
    data = read_data(frame)
    assert set(data.labels) == {"day", "span"}
    with pytest.raises(ValueError, match=r"'day' are dates or times.*timedelta64"):
        data.array("day")
    with pytest.raises(ValueError, match=r"'span' are durations"):
        data.array("span")
    assert read_data({"d": [datetime.date(2020, 1, 1), None]}).missing["d"].tolist() == [0, 1]
    assert data.array("y").tolist() == [1, 2]


def test_absent_names_get_advice():
    data = read_data({"sigma": [1.0], "class": [2.0]})
    with pytest.raises(ValueError, match=r"'sigme' is not in the data. Did you mean 'sigma'\?"):
        data.array("sigme")
    with pytest.raises(ValueError, match=r"'class_'.*word of the Python language.*rename"):
        data.array("class_")


def test_only_the_names_asked_for_are_read():
    frame = pd.DataFrame({"y": [1.0, 2.0], "junk": [1, "a"], "inf": [np.inf, 1.0]})
    assert set(read_data(frame, names={"y", "elsewhere"}).arrays) == {"y"}
    ds = xr.Dataset({"y": ("t", [1.0]), "z": ("t", [1j])})
    assert set(read_data(ds, names=["y"]).arrays) == {"y"}


class Odd:
    """Something that is no data."""


MISTAKES = {
    "a list": ([1, 2], TypeError, "expected a mapping .* found list"),
    "an array": (np.zeros(3), TypeError, "found ndarray"),
    "a string": ("y", TypeError, "found str"),
    "an object": (Odd(), TypeError, "found Odd"),
    "records": ([{"y": 1}], TypeError, "pandas.DataFrame"),
    "a series": (pd.Series([1.0]), TypeError, "one column"),
    "a polars series": (pl.Series([1.0]), TypeError, "one column"),
    "a DataArray": (xr.DataArray([1.0]), TypeError, "to_dataset"),
    "no rows": (pd.DataFrame({"y": []}), ValueError, "no rows"),
    "no columns": (pd.DataFrame(index=[0, 1]), ValueError, "no columns"),
    "no rows, polars": (pl.DataFrame({"y": []}), ValueError, "no rows"),
    "no columns, arrow": (pa.table({}), ValueError, "no columns"),
    "no entries": ({"y": []}, ValueError, "'y': has no entries"),
    "twice": (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, "more than one.*'a'"),
    "twice, arrow": (
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
        ValueError,
        "more than one.*'a'",
    ),
    "numbered columns": (pd.DataFrame(np.zeros((2, 2))), TypeError, "strings, found 0"),
    "numbered keys": ({1: [2.0]}, TypeError, "strings, found 1"),
    "None": ({"y": None}, ValueError, "'y' is None"),
    "mixed": (pd.DataFrame({"y": [1, 2, "a"]}), ValueError, "mixes int and str .row 2 holds 'a'"),
    "mixed list": ({"y": [1.5, "a"]}, ValueError, "mixes float and str .row 1"),
    "mixed after a hole": ({"y": [None, "a", 1]}, ValueError, "mixes str and int .row 2"),
    "objects": ({"y": [Odd(), Odd()]}, ValueError, "holds Odd objects"),
    "an odd value": ({"y": Odd()}, TypeError, "found Odd"),
    "a set": ({"y": {1, 2}}, TypeError, "found set"),
    "a generator": ({"y": (i for i in range(3))}, TypeError, "found generator"),
    "complex": ({"y": [1j]}, ValueError, "'y': holds complex"),
    "complex frame": (pd.DataFrame({"y": [1j]}), ValueError, "'y': holds complex"),
    "bytes": ({"y": np.array([b"a"])}, ValueError, "decode"),
    "records array": ({"y": np.zeros(2, [("a", float)])}, ValueError, "field"),
    "ragged": ({"y": [[1, 2], [3]]}, ValueError, "'y': its rows have different lengths"),
    "ragged frame": (pl.DataFrame({"y": [[1, 2], [3]]}), ValueError, "list or a struct"),
    "ragged pandas": (pd.DataFrame({"y": [[1, 2], [3]]}), ValueError, "holds list objects"),
    "infinite": ({"y": [1.0, 2.0, np.inf, -np.inf]}, ValueError, "'y': 2 infinite.*row 2"),
    "infinite frame": (pl.DataFrame({"y": [1.0, np.inf]}), ValueError, "column 'y'.*row 1"),
    "infinite matrix": ({"y": [[1.0, np.inf]]}, ValueError, r"position \(0, 1\)"),
    "infinite scalar": ({"y": np.inf}, ValueError, "the only entry"),
    "infinite object": ({"y": [None, np.inf]}, ValueError, "row 1"),
    "a word": ({"method": "nuts"}, ValueError, "'method': is one string"),
    "a frame inside": ({"y": pd.DataFrame({"a": [1]})}, TypeError, "'y': found a whole table"),
    "a polars frame inside": ({"y": pl.DataFrame({"a": [1]})}, TypeError, "whole table"),
    "a Dataset inside": ({"y": xr.Dataset({"a": 1})}, TypeError, "expected a DataArray"),
    "too large": ({"y": np.array([2**63], np.uint64)}, ValueError, "int64"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case):
    data, error, message = MISTAKES[case]
    with pytest.raises(error, match=message):
        read_data(data)


def test_mistakes_about_dims():
    with pytest.raises(ValueError, match=r"dims: 'yy' is not in the data. Did you mean 'y'"):
        read_data({"y": [1.0]}, dims={"yy": "t"})
    with pytest.raises(ValueError, match=r"dims of 'y': 2 dim\(s\).*shape \(1,\)"):
        read_data({"y": [1.0]}, dims={"y": ("a", "b")})
    with pytest.raises(ValueError, match=r"'x': the dim 't' has length 3, but 2 in 'y'"):
        read_data({"y": [1.0, 2.0], "x": [1, 2, 3]}, dims={"y": "t", "x": "t"})
    with pytest.raises(ValueError, match="same dim twice"):
        read_data({"y": np.eye(2)}, dims={"y": ("a", "a")})
    with pytest.raises(TypeError, match="names of dims"):
        read_data({"y": [1.0]}, dims={"y": (0,)})
    with pytest.raises(TypeError, match="expected a mapping"):
        read_data({"y": [1.0]}, dims=("t",))
    with pytest.raises(ValueError, match="along its rows"):
        read_data(pd.DataFrame({"y": [1.0]}), dims={"y": "t"})
    named = xr.DataArray([1.0, 2.0], dims="t", coords={"t": [1, 2]})
    with pytest.raises(ValueError, match="rename the array's dims"):
        read_data({"y": named}, dims={"y": "s"})
    with pytest.raises(ValueError, match="align"):
        read_data({"y": named, "x": named.assign_coords(t=[2, 1])})


def test_traced_data_are_refused():
    def inside(x):
        read_data({"x": x})
        return x

    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(inside)(1.0)


def test_truth_of_a_frame_is_never_asked():
    class Shy(dict):
        def __bool__(self):
            raise AssertionError("a mapping was asked for its truth")

    assert set(read_data(Shy(y=[1.0])).arrays) == {"y"}
    assert isinstance(read_data(pd.DataFrame({"y": [1.0]})), Data)


def test_plain_arrays_import_no_frame_library():
    code = (
        "import sys; from probkit.models._data import read_data\n"
        "import numpy as np, jax.numpy as jnp\n"
        "read_data({'y': np.arange(3.), 'g': ['a', 'b'], 'j': jnp.ones(2), 's': 1.0})\n"
        "heavy = {'pandas', 'polars', 'pyarrow', 'xarray', 'narwhals'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
