"""Mistakes that show when data meet a model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

import probkit as pk
from probkit import dist
from tests.mistakes.table import Corpus

CORPUS = Corpus()
SIGMA = np.array([15.0, 10.0, 16.0])
Y = np.array([28.0, 8.0, -3.0])
FRAME = pd.DataFrame({"g": ["a", "b", "a"], "x": [0.0, 1.0, 2.0], "y": [1.0, 2.0, 3.0]})


def schools(**other: Any) -> pk.Model:
    return pk.Model(
        **{
            "mu": dist.Normal(0.0, 5.0),
            "tau": dist.HalfCauchy(5.0),
            "theta": pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
            "y": pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
            **other,
        }
    )


def line() -> pk.Model:
    return pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims="g"),
        b=dist.Normal(0.0, 1.0),
        y=pk.rv(lambda a, b, g, x: dist.Normal(a[g] + b * x, 1.0), dims="obs"),
    )


def one(fn: Any, data: Any, **options: Any) -> Any:
    """A model of one observed variable, bound."""
    bound = options.pop("bind", {})
    return pk.Model(mu=dist.Normal(0.0, 1.0), y=pk.rv(fn, **options)).bind(data, **bound)


# -- names --------------------------------------------------------------------------------------


@CORPUS.row("site 'y'", "parent 'sigma' is neither", "Variables: .*data: ")
def forgot_a_column() -> Any:
    return schools().bind({"y": Y})


@CORPUS.row("site 'y'", "parent 'sigma'", "Did you mean 'sigmas'")
def misspelt_column() -> Any:
    return schools().bind({"y": Y, "sigmas": SIGMA})


@CORPUS.row("site 'theta'", "parent 'taus' is neither", "Did you mean 'tau'")
def misspelt_parent() -> Any:
    return schools(theta=pk.rv(lambda mu, taus: dist.Normal(mu, taus), dims="school")).bind(
        {"y": Y, "sigma": SIGMA}
    )


@CORPUS.row("site 'y'", "parent 'x' is neither", "data: ")
def column_missing_from_the_frame() -> Any:
    return line().bind(FRAME.drop(columns="x"))


@CORPUS.row("data 'Y'", "no variable uses", "Did you mean 'y'")
def outcome_in_capitals() -> Any:
    return line().bind(FRAME.rename(columns={"y": "Y"}))


@CORPUS.row("data 'thetas'", "no variable uses or declares it", "Did you mean 'theta'.*Rename")
def observed_name_misspelt() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA, "thetas": Y})


@CORPUS.row("site 'm'", "deterministic and cannot be observed", "rename")
def observing_a_deterministic() -> Any:
    return pk.Model(a=dist.Normal(0.0, 1.0), m=pk.deterministic(lambda a: a)).bind({"m": 1.0})


@CORPUS.row("site 'y'", "conditioned on a value already", "leave it out of the data")
def conditioned_and_given() -> Any:
    return schools().condition(y=Y).bind({"y": Y, "sigma": SIGMA})


@CORPUS.row("bind", "unknown option 'coord'", "Did you mean 'coords'")
def misspelt_option_of_bind() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, coord={})


@CORPUS.row("reparam", "found 'non-centred'", "Did you mean 'noncentred'")
def misspelt_style() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, reparam="non-centred")


@CORPUS.row("reparam", "no site 'thetta'", "Did you mean 'theta'")
def style_of_an_unknown_site() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, reparam={"thetta": "centred"})


@CORPUS.row("site 'tau'", "HalfCauchy has no location and scale", "leave it out of reparam")
def noncentring_what_has_no_location() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, reparam={"tau": "noncentred"})


@CORPUS.row("reparam", "expected one of .*found True", "'noncentred'.*mapping from sites")
def style_that_is_a_flag() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, reparam=True)


# -- shapes and dims ----------------------------------------------------------------------------


@CORPUS.row("dim 'school'", "length 2, but 3 in 'y'", "the same length, or different dims")
def lengths_that_clash() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA[:2]}, dims={"y": "school", "sigma": "school"})


@CORPUS.row("site 'y'", r"sigma: \(2,\)|batch shape", "check the parents' dims|change dims")
def lengths_that_clash_without_dims() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA[:2]})


@CORPUS.row("site 'y'", r"data of shape \(3,\).*found \(3, 1\)", "reshape the data")
def column_vector() -> Any:
    return schools().bind({"y": Y[:, None], "sigma": SIGMA})


@CORPUS.row(
    "site 'y'",
    r"batch shape fits dims \('o',\).*found batch shape \(3, 3\)",
    "missing from dims|change dims",
)
def forgot_an_axis() -> Any:
    return one(lambda mu, x: dist.Normal(x[:, None] * x, 1.0), {"y": Y, "x": Y}, dims="o")


@CORPUS.row("site 'y'", r"u: \(2,\), w: \(3,\)", "check the parents' dims")
def forgot_to_broadcast() -> Any:
    model = pk.Model(
        u=pk.rv(dist.Normal(0.0, 1.0), dims="firm"),
        w=pk.rv(dist.Normal(0.0, 1.0), dims="year"),
        y=pk.rv(lambda u, w: dist.Normal(u + w, 1.0), dims=("firm", "year")),
    )
    return model.bind({"y": np.zeros((2, 3))})


@CORPUS.row("site 'theta'", "size of its dim 'school' is not known", r"coords=\{'school'")
def no_data_and_no_coords() -> Any:
    return pk.Model(theta=pk.rv(dist.Normal(0.0, 1.0), dims="school")).bind()


@CORPUS.row("coords", "no dim 'schools'", "Did you mean 'school'")
def coords_of_an_unknown_dim() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, coords={"schools": [1, 2, 3]})


@CORPUS.row("dim 'school'", "found 2 .coords. and 3", "make the two agree")
def coords_of_the_wrong_length() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, coords={"school": ["a", "b"]})


@CORPUS.row(r"coords\['school'\]", "'a' occurs 2 times", "make them unique")
def coords_that_repeat() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, coords={"school": ["a", "b", "a"]})


@CORPUS.row(r"coords\['school'\]", r"sequence of labels, found shape \(\)", "give a list")
def coords_that_are_a_number() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, coords={"school": 3})


@CORPUS.row(r"coords\['school'\]", "expected a sequence of labels, found set", "give a list")
def coords_in_a_set() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, coords={"school": {"a", "b", "c"}})


@CORPUS.row("coords", "expected a mapping from dims to labels.*found list", "such as")
def coords_without_dims() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, coords=["a", "b", "c"])


@CORPUS.row("dims", "expected a mapping.*found tuple", "such as")
def dims_of_no_array() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, dims=("school",))


@CORPUS.row("dims.*'sigmas'", "not in the data", "Did you mean 'sigma'")
def dims_of_an_unknown_array() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, dims={"sigmas": "school"})


@CORPUS.row("dims of 'sigma'", r"2 dim\(s\).*shape \(3,\)", "one dim per axis")
def too_many_dims() -> Any:
    return schools().bind({"y": Y, "sigma": SIGMA}, dims={"sigma": ("school", "year")})


@CORPUS.row("site 'y'", r"dims \('school',\).*found \('pupil',\)", "rename")
def dataarray_with_other_dims() -> Any:
    return schools().bind({"y": xr.DataArray(Y, dims="pupil"), "sigma": SIGMA})


@CORPUS.row("site 'v'", r"event_dims \('k', 'l'\) name 2 axes.*shape \(2,\)", "into dims")
def event_dims_of_the_wrong_rank() -> Any:
    return pk.Model(v=pk.rv(dist.Dirichlet(np.ones(2)), event_dims=("k", "l"))).bind(
        coords={"k": [0, 1], "l": [0, 1]}
    )


@CORPUS.row("site 'v'", "event dim 'k' has length 3.*2 elsewhere", "make the two agree")
def event_dim_of_the_wrong_length() -> Any:
    return pk.Model(v=pk.rv(dist.Dirichlet(np.ones(3)), event_dims="k")).bind(
        coords={"k": ["p", "q"]}
    )


@CORPUS.row("site 'm'", r"value of shape \(2,\) for dims \('g',\), found \(\)", "change dims")
def deterministic_of_the_wrong_shape() -> Any:
    return pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims="g"),
        m=pk.deterministic(lambda a: a.sum(), dims="g"),
    ).bind(coords={"g": [0, 1]})


@CORPUS.row("site 'y'", r"declared with|column has one axis", "long-format|pass an array")
def frame_column_for_two_dims() -> Any:
    model = pk.Model(y=pk.rv(dist.Normal(0.0, 1.0), dims=("firm", "year")))
    return model.bind(FRAME, coords={"firm": ["a"], "year": [1, 2, 3]})


# -- values -------------------------------------------------------------------------------------


@CORPUS.row("site 'y'", "covariate 'x' has 1 missing", "drop those rows")
def nan_in_a_covariate() -> Any:
    return line().bind(FRAME.assign(x=[0.0, np.nan, 1.0]))


@CORPUS.row("'x'", "infinite", "NaN where|remove the row")
def infinite_covariate() -> Any:
    return line().bind(FRAME.assign(x=[0.0, np.inf, 1.0]))


@CORPUS.row("site 'y'", "Normal is continuous, but the data are int64", "pass floats")
def integers_for_a_continuous_outcome() -> Any:
    return one(lambda mu: dist.Normal(mu, 1.0), {"y": np.array([1, 2, 3])}, dims="o")


@CORPUS.row("site 'y'", "Poisson has support .*nonnegative.*not whole numbers", "mend the data")
def fractions_for_counts() -> Any:
    return one(lambda mu: dist.Poisson(jnp.exp(mu)), {"y": np.array([1.0, 2.5])}, dims="o")


@CORPUS.row("site 'y'", "Gamma has support positive.*outside it.*is -0.5", "mend the data")
def negative_outcome_of_a_gamma() -> Any:
    return one(lambda mu: dist.Gamma(2.0, jnp.exp(mu)), {"y": np.array([1.0, -0.5])}, dims="o")


@CORPUS.row("site 'y'", "Beta.*support.*outside it.*is 1.5", "choose another distribution")
def share_above_one() -> Any:
    return one(lambda mu: dist.Beta(jnp.exp(mu), 1.0), {"y": np.array([0.5, 1.5])}, dims="o")


@CORPUS.row("site 'y'", "outside it.*is 3", "mend the data")
def category_out_of_range() -> Any:
    return one(
        lambda mu: dist.Categorical(logits=jnp.stack([mu, -mu])),
        {"y": np.array([0, 1, 3])},
        dims="o",
    )


@CORPUS.row("site 'y'", "outside it.*is 2", "mend the data")
def labels_from_one_for_a_bernoulli() -> Any:
    return one(lambda mu: dist.Bernoulli(logits=mu), {"y": np.array([1, 2, 1])}, dims="o")


@CORPUS.row("site 'y'", "outside it.*is 7", "mend the data")
def more_successes_than_trials() -> Any:
    return one(
        lambda mu, n: dist.Binomial(n, logits=mu),
        {"y": np.array([2, 7]), "n": np.array([5, 5])},
        dims="o",
    )


@CORPUS.row("site 'y'", "scale=-10.*positive", "the column")
def negative_scale_in_a_column() -> Any:
    return schools().bind({"y": Y, "sigma": np.array([15.0, -10.0, 16.0])})


@CORPUS.row("site 'y'", "scale=0.*positive", "the column")
def zero_scale_in_a_column() -> Any:
    return schools().bind({"y": Y, "sigma": np.array([15.0, 0.0, 16.0])})


@CORPUS.row("site 'y'", "every entry is missing", "leave it out")
def nothing_but_holes() -> Any:
    return schools().bind({"y": np.full(3, np.nan), "sigma": SIGMA})


@CORPUS.row("site 'y'", "codes in 'g' run from 1 to 3.*expected 0 to 2", "count from 0")
def codes_from_one() -> Any:
    return line().bind({"g": np.array([1, 2, 3]), "x": Y, "y": Y}, coords={"g": ["a", "b", "c"]})


@CORPUS.row("site 'y'", "codes in 'g'.*-1", "count from 0")
def missing_category() -> Any:
    return line().bind({"g": np.array([0, -1, 1]), "x": Y, "y": Y}, coords={"g": ["a", "b"]})


@CORPUS.row("'g'", "label 'b' .*not among the known ones: 'a', 'c'", "Correct the label")
def category_without_a_coordinate() -> Any:
    return line().bind(FRAME, coords={"g": ["a", "c"]})


@CORPUS.row(
    "site 'y'",
    r"'x' holds labels \('high', 'low'\), expected numbers",
    "dims='x'.*turn the labels into",
)
def strings_where_numbers_are_needed() -> Any:
    return line().bind(FRAME.assign(x=["low", "high", "low"]))


@CORPUS.row("'x'", "mixes float and str|mixes", "all numbers")
def numbers_and_strings_in_a_column() -> Any:
    return line().bind({"g": ["a", "b", "a"], "x": [1.0, "two", 3.0], "y": [1.0, 2.0, 3.0]})


@CORPUS.row("'x'", "dates or times", "days since")
def dates_as_numbers() -> Any:
    return line().bind(FRAME.assign(x=pd.date_range("2020-01-01", periods=3)))


@CORPUS.row("'y'", "different lengths|no common shape", "pad them")
def ragged_lists() -> Any:
    return one(lambda mu: dist.Normal(mu, 1.0), {"y": [[1.0, 2.0], [3.0]]}, dims=("g", "t"))


@CORPUS.row("data 'y' is None", "None", "leave the name out")
def none_for_an_outcome() -> Any:
    return schools().bind({"y": None, "sigma": SIGMA})


@CORPUS.row("data", "expected a mapping.*one column", r"\{'y': column\}")
def a_single_series() -> Any:
    return line().bind(FRAME["y"])


@CORPUS.row("data", "no rows", "filter")
def an_empty_frame() -> Any:
    return line().bind(FRAME[FRAME["y"] > 10.0])


@CORPUS.row("data 'y'", "traced", "outside jit")
def binding_inside_jit() -> Any:
    return jax.jit(lambda y: schools().bind({"y": y, "sigma": SIGMA}).log_density({}))(
        jnp.asarray(Y)
    )


@CORPUS.row("data 'n'", "do not fit into int32", "as floats|subtract")
def whole_numbers_too_large() -> Any:
    return one(lambda mu, n: dist.Normal(mu * n, 1.0), {"y": Y, "n": np.full(3, 2**40)}, dims="o")


# -- functions ----------------------------------------------------------------------------------


@CORPUS.row("site 'y'", "returned None|found NoneType", "add the missing return")
def forgot_return() -> Any:
    def likelihood(mu: Any) -> None:
        dist.Normal(mu, 1.0)

    return one(likelihood, {"y": Y}, dims="o")


@CORPUS.row(
    "site 'y'", "expected a NumPyro distribution, found .*Tracer|found ", "pk.deterministic"
)
def value_instead_of_a_distribution() -> Any:
    return one(lambda mu: 2.0 * mu, {"y": Y}, dims="o")


@CORPUS.row("site 'y'", "expected a NumPyro distribution", r"call the class: Normal")
def class_instead_of_an_instance() -> Any:
    return one(lambda mu: dist.Normal, {"y": Y}, dims="o")


@CORPUS.row("site 'y'", r"unexpected keyword argument 'sd'", "loc|scale|check")
def wrong_argument_of_a_distribution() -> Any:
    return one(lambda mu: dist.Normal(mu, sd=1.0), {"y": Y}, dims="o")


@CORPUS.row("site 'y'", "Binomial.*missing|failed with", "check")
def too_few_arguments() -> Any:
    return one(lambda mu: dist.Gamma(), {"y": Y}, dims="o")


@CORPUS.row("site 'm'", "failed with Concretization", "jnp.exp for math.exp")
def math_instead_of_jax_numpy() -> Any:
    import math

    return pk.Model(a=dist.Normal(0.0, 1.0), m=pk.deterministic(lambda a: math.exp(a))).bind()


@CORPUS.row("site 'm'", "failed with TracerBool", "jnp.where for if")
def python_if_on_a_variable() -> Any:
    return pk.Model(
        a=dist.Normal(0.0, 1.0), m=pk.deterministic(lambda a: 1.0 if a > 0 else 0.0)
    ).bind()


@CORPUS.row("site 'm'", "expected its function to return an array, found str", "return numbers")
def deterministic_that_returns_text() -> Any:
    return pk.Model(a=dist.Normal(0.0, 1.0), m=pk.deterministic(lambda a: "a")).bind()


@CORPUS.row("site 'f'", "returned None|found NoneType", "return")
def factor_that_returns_none() -> Any:
    return pk.Model(a=dist.Normal(0.0, 1.0), f=pk.factor(lambda a: None)).bind()


@CORPUS.row("site 'n'", "Poisson is not observed and cannot be summed out", "Categorical or")
def latent_counts() -> Any:
    return pk.Model(
        n=dist.Poisson(3.0), y=pk.rv(lambda n: dist.Normal(1.0 * n, 1.0), dims="o")
    ).bind({"y": Y})


@CORPUS.row("site 'z'", r"dims \('g',\).*'y'.*without having 'g'", "give 'y' the dim")
def enumerating_by_group() -> Any:
    return pk.Model(
        z=pk.rv(dist.Bernoulli(0.5), dims="g"),
        y=pk.rv(lambda z, g: dist.Normal(1.0 * z[g], 1.0), dims="o"),
    ).bind({"y": Y, "g": np.array([0, 1, 1])})


@CORPUS.row("site 'x'", "discrete and has missing entries, and 'y' depends", "drop those rows")
def holes_in_a_discrete_covariate() -> Any:
    return pk.Model(
        x=pk.rv(dist.Bernoulli(0.5), dims="o"),
        y=pk.rv(lambda x: dist.Normal(1.0 * x, 1.0), dims="o"),
    ).bind({"x": np.array([0.0, np.nan, 1.0]), "y": Y})


@CORPUS.row("site 'x'", "StudentT has df=-2, expected it to be positive", "mend the constant")
def negative_degrees_of_freedom() -> Any:
    return pk.Model(m=dist.Normal(0.0, 1.0), x=pk.rv(lambda m: dist.StudentT(-2.0, m, 1.0))).bind()


@CORPUS.row("site 'y'", "scale=-15, -10, -16, expected it to be positive", "mend.*column")
def negative_scale_among_the_data() -> Any:
    return schools().bind({"y": Y, "sigma": -SIGMA})


@CORPUS.row("data 'x'", "complex numbers", "real and the imaginary part")
def complex_covariate() -> Any:
    return line().bind({"g": ["a", "b", "a"], "x": Y + 1j, "y": Y})


@CORPUS.row("site 'y'", "Exponential has support positive.*is -3", "mend the data or choose")
def negative_waiting_time() -> Any:
    return pk.Model(
        m=dist.Normal(0.0, 1.0), y=pk.rv(lambda m: dist.Exponential(jnp.exp(m)), dims="i")
    ).bind({"y": Y})


@CORPUS.row("site 'x'", r"event_dims \('g',\) name 1 axes.*shape \(\)", "axes that")
def event_dim_of_a_scalar() -> Any:
    model = pk.Model(
        m=dist.Normal(0.0, 1.0), x=pk.rv(lambda m: dist.Normal(m, 1.0), event_dims="g")
    )
    return model.bind(coords={"g": ["a", "b"]})


@CORPUS.row("site 'y'", "axis of length 3 .* with 'number', .* from 1 to 3", "subtract 1")
def numbers_from_one_under_another_name() -> Any:
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims="g"),
        y=pk.rv(lambda a, number: dist.Normal(a[number], 1.0), dims="obs"),
    )
    return model.bind({"y": Y, "number": np.array([1, 2, 3])}, coords={"g": ["u", "v", "w"]})


@CORPUS.row("column 'g'", "count from 0, .* from 1990 to 1992", r"astype\(str\)")
def years_as_groups() -> Any:
    return line().bind(FRAME.assign(g=[1990, 1991, 1992]))
