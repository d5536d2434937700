"""Formulas: the text, the design, the families, and the model's density against other libraries."""

from __future__ import annotations

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
from numpyro import distributions as dist
from numpyro.distributions.transforms import OrderedTransform
from numpyro.infer.util import log_density
from statsmodels.miscmodels.ordinal_model import OrderedModel
from statsmodels.othermod.betareg import BetaModel

from probkit.models._formula import _trials, formula
from probkit.models._formula_families import FAMILIES, HalfStudentT, OrderStatistics, find_family
from probkit.models._formula_nodes import Priors
from probkit.models._formula_text import GroupTerm, mentioned, parse


def make_frame(n: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "x": 10 + 3 * rng.normal(size=n),
            "z": rng.normal(size=n),
            "f": rng.choice(list("abc"), n),
            "g": rng.choice(["u", "v", "w", "q"], n),
            "h": rng.integers(0, 3, n),
            "size": rng.integers(5, 12, n),
            "exposure": rng.uniform(1, 5, n),
        }
    )
    eta = 0.2 * (frame.x - 10) - 0.5 * frame.z
    frame["y"] = 1.5 + eta + rng.normal(size=n)
    frame["count"] = rng.poisson(frame.exposure * np.exp(0.3 + 0.5 * eta))
    frame["wins"] = rng.binomial(frame["size"], 1 / (1 + np.exp(-eta)))
    frame["hit"] = rng.uniform(size=n) < 1 / (1 + np.exp(-eta))
    frame["share"] = rng.beta(4 / (1 + np.exp(-eta)), 4 / (1 + np.exp(eta)))
    frame["time"] = rng.gamma(2.0, np.exp(0.3 * eta) / 2)
    frame["grade"] = np.clip(np.round(2 + eta + rng.logistic(size=n)), 0, 4).astype(int)
    return frame


FRAME = make_frame()


def arrays_of(model, data=None):
    return model._prepare(data)[0]


def log_terms(model, values, arrays=None):
    """Log density by variable, evaluated node by node; ``values`` are filled in on the way."""
    known = {**(arrays_of(model) if arrays is None else arrays), **values}
    terms = {}
    for name, node in model.nodes.items():
        found = node.fn(*(known[p] for p in node.parents)) if node.parents else node.fn()
        if isinstance(found, dist.Distribution):
            terms[name] = found.log_prob(known[name]).sum()
        else:
            known[name] = found
    return terms, known


# -- the text -------------------------------------------------------------------------------


def test_parse_takes_the_parts_apart():
    found = parse("y ~ 0 + x*z - w + (x || g/h) + offset(log(e)) + (0 + x | g:h) + (1 | `a b`)")
    assert found.common == "0 + x*z - w" and found.offsets == ("log(e)",)
    assert found.groups == (
        GroupTerm("x", ("g",), False),
        GroupTerm("x", ("g", "h"), False),
        GroupTerm("0 + x", ("g", "h"), True),
        GroupTerm("1", ("a b",), True),
    )
    assert parse("y ~ (1 | g + h)").groups[1].group == "h"
    assert parse("y ~ (1 | g)").common == "1"
    assert parse("y ~ -1 + x").common == "1 - 1 + x"
    assert parse("y | trials(n) ~ x").trials == parse("p(y, `n`) ~ x").trials == "n"
    assert parse("y['yes'] ~ x").level == parse("y[yes] ~ x").level == "yes"
    assert parse("y ~ C(f, levels=['a|b']) + bs(x, knots=[-1, 2])").groups == ()


def test_mentioned_names():
    text = "np.log(x) + C(f, contr.sum) + bs(z, df=4) + `a b` + Q('c d') + f2:x2"
    assert mentioned(text) == (
        {"x", "f", "z", "a b", "c d", "f2", "x2"},
        {"np", "C", "contr", "bs", "Q"},
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y x", "expected one '~'"),
        ("y ~", "expected one '~'"),
        ("~ x", "expected one '~'"),
        ("y ~ x ~ z", "expected one '~'"),
        ("y ~ x +", r"nothing follows the last '\+'"),
        ("y ~ x + + z", "between two signs"),
        ("y ~ (x", "never closed"),
        ("y ~ x)", "closes nothing"),
        ("y ~ 'x", "never closed"),
        ("y ~ x | g", "on its own in brackets"),
        ("y ~ (1|g)*x", "on its own in brackets"),
        ("y ~ x:(1|g)", "on its own in brackets"),
        ("y ~ x - (1|g)", "cannot be subtracted"),
        ("y ~ x - offset(z)", "cannot be subtracted"),
        ("y ~ (1|)", "expected '.effects . group.'"),
        ("y ~ (|g)", "expected '.effects . group.'"),
        ("y ~ (1|f|g)", "expected '.effects . group.'"),
        ("y ~ (1|C(g))", "found 'C.g.'"),
        ("y ~ (1|g*f)", "column of its own"),
        ("wins | size ~ x", "expected trials"),
        ("p(wins, log(size)) ~ x", "two columns"),
        ("y ~ x:", "cannot compute"),
        ("y ~ x + nope", "no column 'nope'"),
        ("y ~ x + exposur", "mean 'exposure'"),
        ("yy ~ x", "no column 'yy'.*mean 'y'"),
        ("y ~ (1|G)", "no column 'G'"),
        ("y ~ foo(x)", "no function 'foo'"),
        ("y ~ logg(x)", "mean 'log'"),
        ("y ~ log(z)", r"'log\(z\)' is .* in row"),
        ("log(z) ~ x", "'log.z.*'"),
        ("y ~ x + offset(f)", "offset.f. gives 3 columns"),
        ("f ~ x", "response 'f': holds labels"),
        ("hit ~ x", "holds True and False.*bernoulli"),
        ("f + z ~ x", "gives 4 columns"),
        ("y ~ (1|g) + (1|g)", "two variables are called '1|g"),
        ("y ~ x + (x||g) + (1|g)", "two variables are called '1|g"),
        ("y ~ (0|g)", "has no effects"),
        ("y ~ C(f", "never closed"),
    ],
)
def test_faults_of_the_text(text, message):
    if text == "log(z) ~ x":  # NaN responses are missing, which is allowed; none at all is not
        frame, message = FRAME.assign(z=-1.0), "every entry is missing"
    else:
        frame = FRAME
    with pytest.raises(ValueError, match=message):
        formula(text, frame)


# -- the design -----------------------------------------------------------------------------


def test_the_design_is_centred_and_the_intercept_is_not():
    model = formula("y ~ x*z + f", FRAME)
    arrays, dims, coords = model._prepare(None)
    assert coords["term"].tolist() == ["x", "z", "f[T.b]", "f[T.c]", "x:z"]
    assert dims["common"] == ("row", "term") and dims["y"] == ("row",)
    np.testing.assert_allclose(arrays["common"].mean(0), 0, atol=1e-12)
    raw = np.column_stack(
        [FRAME.x, FRAME.z, FRAME.f == "b", FRAME.f == "c", FRAME.x * FRAME.z]
    ).astype(float)
    np.testing.assert_allclose(arrays["common"] + arrays["common_mean"], raw, atol=1e-12)
    beta = np.arange(5.0)
    values = {"Intercept_centred": 2.0, "beta": beta, "sigma": 1.0}
    known = log_terms(model, values)[1]
    eta = np.asarray(known["Intercept"]) + raw @ beta
    np.testing.assert_allclose(2.0 + arrays["common"] @ beta, eta, rtol=1e-5)


def test_without_an_intercept_nothing_is_centred():
    for text in ("y ~ 0 + f + x", "y ~ f + x - 1", "y ~ -1 + f + x"):
        model = formula(text, FRAME)
        arrays, _, coords = model._prepare(None)
        assert coords["term"].tolist() == ["f[a]", "f[b]", "f[c]", "x"]
        assert "Intercept" not in model.nodes and "common_mean" not in arrays
        np.testing.assert_array_equal(arrays["common"][:, 3], FRAME.x)


def test_transforms_remember_the_training_rows():
    model = formula("y ~ scale(x) + center(z) + poly(x, 2) + bs(z, df=4)", FRAME)
    whole = arrays_of(model)
    part = FRAME.iloc[10:13]
    new = arrays_of(model, part)
    np.testing.assert_allclose(new["common"], whole["common"][10:13], rtol=1e-10)
    np.testing.assert_array_equal(new["common_mean"], whole["common_mean"])
    assert np.isclose((new["common"] + new["common_mean"])[0, 0],
                      (part.x.iloc[0] - FRAME.x.mean()) / FRAME.x.std())  # fmt: skip
    with pytest.raises(ValueError, match="bounds"):
        arrays_of(model, FRAME.iloc[:2].assign(z=99.0))


def test_contrasts():
    model = formula("y ~ C(f, contr.sum) + C(h)", FRAME)
    arrays, _, coords = model._prepare(None)
    assert coords["term"].tolist()[0] == "C(f, contr.sum)[S.a]"
    column = (arrays["common"] + arrays["common_mean"])[:, 0]
    np.testing.assert_allclose(column, np.select([FRAME.f == "a", FRAME.f == "c"], [1, -1], 0))
    assert coords["term"].tolist()[2:] == ["C(h)[T.1]", "C(h)[T.2]"]


def test_every_library_gives_the_same_design():
    text = "y ~ x*f + scale(z) + (1 + x | g) + (1 | h) + offset(log(exposure))"
    sources = {
        "pandas": FRAME,
        "categorical": FRAME.astype({"f": "category", "g": "category"}),
        "polars": pl.from_pandas(FRAME),
        "arrow": pa.Table.from_pandas(FRAME),
        "mapping": {name: FRAME[name].to_numpy() for name in FRAME},
        "dataset": FRAME.to_xarray(),
    }
    first, _, coords = formula(text, FRAME)._prepare(None)
    for source in sources.values():
        arrays, _, other = formula(text, source)._prepare(None)
        assert arrays.keys() == first.keys()
        for name, array in first.items():
            assert arrays[name].dtype == array.dtype
            assert arrays[name].tobytes() == array.tobytes()
        for dim in ("g", "h", "term"):
            assert other[dim].tolist() == coords[dim].tolist()


def test_levels_match_by_label_in_new_data():
    model = formula("y ~ f + (1 | g) + (1 | g:h) + (h | g)".replace("(h", "(0 + h"), FRAME)
    new = FRAME.iloc[[5, 3]][["f", "g", "h"]]
    arrays, dims, coords = model._prepare(new)
    whole, _, trained = model._prepare(None)
    for name in ("common", "g_index", "g:h_index", "h|g_design"):
        np.testing.assert_array_equal(arrays[name], whole[name][[5, 3]])
    assert coords["g"].tolist() == trained["g"].tolist() == ["q", "u", "v", "w"]
    assert "u:0" in trained["g:h"].tolist() and coords["row"].tolist() == [5, 3]
    assert "y" not in arrays and "y" not in dims
    with pytest.raises(ValueError, match=r"column 'g': the label 'uu' .*mean 'u'"):
        model._prepare(new.assign(g="uu"))
    with pytest.raises(ValueError, match=r"group 'g:h': the label '.:7'"):
        model._prepare(new.assign(h=7))
    with pytest.raises(ValueError, match="no column 'f'"):
        model._prepare(new.drop(columns="f"))


def test_only_levels_that_occur_count():
    frame = FRAME.assign(f=pd.Categorical(FRAME.f, ["c", "never", "b", "a"]))
    coords = formula("y ~ f + (1 | f)", frame)._prepare(None)[2]
    assert coords["term"].tolist() == ["f[T.b]", "f[T.a]"]
    assert coords["f"].tolist() == ["c", "b", "a"]


def test_missing_entries():
    holes = FRAME.assign(y=FRAME.y.where(FRAME.index > 2))
    arrays = arrays_of(formula("y ~ x", holes))
    assert np.isnan(arrays["y"]).sum() == 3
    counts = FRAME.assign(count=FRAME["count"].where(FRAME.index > 2))
    assert np.isnan(arrays_of(formula("count ~ x", counts, family="poisson"))["count"]).sum() == 3
    model = formula("y ~ x", FRAME)
    assert "y" not in arrays_of(model, FRAME.iloc[:2].assign(y=np.nan))
    with pytest.raises(ValueError, match=r"column 'x': 2 of 120 .*first in row 4.*drop those"):
        formula("y ~ x", FRAME.assign(x=FRAME.x.mask(FRAME.index.isin([4, 9]))))
    with pytest.raises(ValueError, match=r"column 'g': 1 of 120"):
        formula("y ~ (1|g)", FRAME.assign(g=FRAME.g.mask(FRAME.index == 4)))
    with pytest.raises(ValueError, match=r"column 'x': 1 of 2"):
        model._prepare(FRAME.iloc[:2].assign(x=[1, np.nan]))


def test_rows_keep_their_labels_and_a_formula_without_columns_counts_rows():
    model = formula("y ~ 1", FRAME)
    assert model._prepare(FRAME.set_axis(FRAME.index + 5).iloc[:3])[2]["row"].tolist() == [5, 6, 7]
    assert len(model._prepare(pd.DataFrame({"other": [1, 2]}))[2]["row"]) == 2
    assert len(model._prepare({"other": [1.0, 2.0]})[2]["row"]) == 2


def test_response_kinds():
    words = FRAME.assign(w=np.where(FRAME.hit, "yes", "no"))
    for text in ("w ~ x", "w['yes'] ~ x", "hit ~ x"):
        arrays = arrays_of(formula(text, words, family="bernoulli"))
        name = text[:1] if text[0] == "w" else "hit"
        np.testing.assert_array_equal(arrays[name], FRAME.hit)
    no = arrays_of(formula("w['no'] ~ x", words, family="bernoulli"))["w"]
    np.testing.assert_array_equal(no, ~FRAME.hit)
    logged = arrays_of(formula("np.log(time) ~ x", FRAME))["np.log(time)"]
    np.testing.assert_allclose(logged, np.log(FRAME.time))
    ordered = pd.Categorical.from_codes(FRAME.grade, list("edcba"), ordered=True)
    model = formula("o ~ x", FRAME.assign(o=ordered), family="ordinal")
    np.testing.assert_array_equal(arrays_of(model)["o"], FRAME.grade)
    assert model._prepare(None)[2]["cut"].tolist() == ["e|d", "d|c", "c|b", "b|a"]
    gaps = formula("grade ~ x", FRAME.assign(grade=FRAME.grade * 2 + 1), family="ordinal")
    np.testing.assert_array_equal(arrays_of(gaps)["grade"], FRAME.grade)
    assert gaps._prepare(None)[2]["cut"].tolist() == ["1|3", "3|5", "5|7", "7|9"]


@pytest.mark.parametrize(
    ("change", "text", "options", "message"),
    [
        ({}, "y ~ x", {"family": "gausian"}, "mean 'gaussian'"),
        ({}, "y ~ x", {"family": "weibull"}, "expected one of"),
        ({}, "y ~ x", {"family": "poisson"}, "expects counts.*found .* in row 0"),
        ({"count": -1}, "count ~ x", {"family": "poisson"}, "found -1 in row 0"),
        ({}, "y ~ x", {"family": "gamma"}, "expects positive"),
        ({}, "y ~ x", {"family": "beta"}, "between 0 and 1, both excluded"),
        ({}, "grade ~ x", {"family": "bernoulli"}, "expects 0 and 1"),
        ({}, "f ~ x", {"family": "bernoulli"}, r"3 levels.*f\['a'\]"),
        ({}, "f['d'] ~ x", {"family": "bernoulli"}, "no level 'd'"),
        ({}, "grade ~ 0 + x", {"family": "ordinal"}, "thresholds"),
        ({}, "wins ~ x", {"family": "binomial"}, "how many trials"),
        ({}, "wins ~ x", {"family": "binomial", "trials": "sise"}, "no column 'sise'"),
        ({}, "wins ~ x", {"family": "binomial", "trials": 2}, "of 2 trials"),
        ({}, "wins ~ x", {"family": "binomial", "trials": 0}, "at least 1"),
        ({}, "p(wins, size) ~ x", {"family": "binomial", "trials": 9}, "given both"),
        ({}, "wins ~ x", {"family": "binomial", "trials": "x"}, "whole numbers"),
        ({}, "y ~ x", {"trials": "size"}, "only family='binomial'"),
        ({"y": 2.0}, "y ~ x", {}, "every observed entry is 2"),
        ({"y": np.nan}, "y ~ x", {}, "every entry is missing"),
        ({"x": 3.0}, "y ~ x", {}, "'x' is 3 in every row"),
        ({"g": "u"}, "y ~ (1|g)", {}, "one level only"),
        ({"x": np.inf}, "y ~ x", {}, "column 'x': 120 infinite"),
        ({"row": FRAME.g}, "y ~ (1|row)", {}, "dim 'row' of its own"),
        ({"sigma": FRAME.y}, "sigma ~ x", {}, "two variables are called 'sigma'"),
        ({"common": FRAME.y}, "common ~ x", {}, "'common'"),
    ],
)
def test_faults_of_the_frame(change, text, options, message):
    with pytest.raises(ValueError, match=message):
        formula(text, FRAME.assign(**change), **options)


def test_faults_of_types():
    with pytest.raises(TypeError, match="expected a text"):
        parse(FRAME)
    with pytest.raises(TypeError, match="family: expected one of"):
        find_family(dist.Normal)
    with pytest.raises(TypeError, match="put the numbers into a column"):
        _trials(parse("wins ~ x"), find_family("binomial"), FRAME["size"])
    with pytest.raises(ValueError, match="one value per row"):
        formula("y ~ x", {"y": [1.0, 2.0], "x": np.eye(2)})
    with pytest.raises(ValueError, match="columns of equal length"):
        formula("y ~ x", {"y": [1.0, 2.0], "x": [1.0, 2.0, 3.0]})
    dated = FRAME.assign(d=pd.date_range("2020", periods=len(FRAME)))
    with pytest.raises(ValueError, match="'d' are dates"):
        formula("y ~ d", dated)


# -- the families ---------------------------------------------------------------------------


def logistic(v):
    return 1 / (1 + np.exp(-v))


ETA = np.linspace(-2, 2, 9)
SCIPY = {
    "gaussian": ((1.3,), lambda y: scipy.stats.norm.logpdf(y, ETA, 1.3), ETA**2),
    "student_t": ((3.0, 1.3), lambda y: scipy.stats.t.logpdf(y, 3, ETA, 1.3), ETA**2),
    "bernoulli": (
        (),
        lambda y: scipy.stats.bernoulli.logpmf(y, logistic(ETA)),
        np.arange(9) % 2,
    ),
    "binomial": (
        (np.full(9, 7),),
        lambda y: scipy.stats.binom.logpmf(y, 7, logistic(ETA)),
        np.arange(9) % 8,
    ),
    "poisson": ((), lambda y: scipy.stats.poisson.logpmf(y, np.exp(ETA)), np.arange(9)),
    "negative_binomial": (
        (1.7,),
        lambda y: scipy.stats.nbinom.logpmf(y, 1.7, 1.7 / (1.7 + np.exp(ETA))),
        np.arange(9),
    ),
    "gamma": (
        (1.7,),
        lambda y: scipy.stats.gamma.logpdf(y, 1.7, scale=np.exp(ETA) / 1.7),
        0.1 + ETA**2,
    ),
    "beta": (
        (3.3,),
        lambda y: scipy.stats.beta.logpdf(y, 3.3 * logistic(ETA), 3.3 * logistic(-ETA)),
        np.linspace(0.05, 0.95, 9),
    ),
    "ordinal": (
        (np.array([-1.0, 0.3, 2.0]),),
        lambda y: np.log(
            np.diff(logistic(np.array([-np.inf, -1.0, 0.3, 2.0, np.inf]) - ETA[:, None]), axis=1)[
                np.arange(9), y
            ]
        ),
        np.arange(9) % 4,
    ),
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_densities_against_scipy(name):
    parameters, reference, y = SCIPY[name]
    with jax.enable_x64(True):
        found = FAMILIES[name].build(jnp.asarray(ETA), *map(jnp.asarray, parameters)).log_prob(y)
    # JAX's log beta function, in the negative binomial, is good to about 1e-6.
    rtol = 1e-6 if name == "negative_binomial" else 1e-9
    np.testing.assert_allclose(found, reference(y), rtol=rtol, atol=1e-9)


def test_ordinal_far_out_in_float32():
    found = FAMILIES["ordinal"].build(jnp.float32(40.0), jnp.float32([-1.0, 0.0, 1.0]))
    lower = jax.grad(lambda e: FAMILIES["ordinal"].build(e, jnp.float32([0.0, 1.0])).log_prob(1))
    exact = np.log(np.exp(-39.0) - np.exp(-40.0))
    assert np.isclose(found.log_prob(2), exact, rtol=1e-5)
    assert np.isclose(lower(jnp.float32(40.0)), -1.0)


def test_family_names():
    for name in ("Negative Binomial", "negative-binomial", "NegativeBinomial", "nb"):
        assert find_family(name).name == "negative_binomial"
    assert find_family("t").name == find_family("StudentT").name == "student_t"
    assert find_family("normal").name == "gaussian"


def test_order_statistics_are_normalised_and_sorted():
    d = OrderStatistics(dist.StudentT(3.0, 0.0, 2.5), 2)
    base = scipy.stats.t(3, 0, 2.5)
    # P(c_2 < 1) is the square of the base's, by the density and by the draws.
    grid = np.linspace(-400, 1, 4001)
    inner = base.pdf(grid) * base.cdf(grid)
    assert np.isclose(2 * scipy.integrate.simpson(inner, x=grid), base.cdf(1) ** 2, atol=1e-4)
    value = np.array([-1.0, 0.5])
    assert np.isclose(d.log_prob(value), np.log(2) + base.logpdf(value).sum(), rtol=1e-5)
    draws = np.asarray(d.sample(jax.random.key(0), (4000,)))
    assert draws.shape == (4000, 2) and (np.diff(draws) >= 0).all()
    # Binomial standard error .008; four of them: a false alarm in 16,000.
    assert abs((draws[:, 1] < 1).mean() - base.cdf(1) ** 2) < 4 * 0.008


def test_half_student_t():
    d, base = HalfStudentT(4.0, 2.0), scipy.stats.t(4, 0, 2.0)
    assert np.isclose(d.log_prob(1.5), base.logpdf(1.5) + np.log(2), rtol=1e-5)
    draws = np.asarray(d.sample(jax.random.key(1), (4000,)))
    assert (draws >= 0).all()
    assert abs((draws < 1.5).mean() - (2 * base.cdf(1.5) - 1)) < 4 * 0.008


# -- the priors -----------------------------------------------------------------------------


def fixed(model, name):
    return model.nodes[name].fn()


def test_default_priors_are_scaled_from_the_frame():
    model = formula("y ~ x + f + (1 + x | g)", FRAME)
    spread = FRAME.y.std(ddof=0)
    assert np.isclose(fixed(model, "Intercept_centred").loc, FRAME.y.mean())
    assert np.isclose(fixed(model, "Intercept_centred").scale, 2.5 * spread)
    sds = [FRAME.x.std(ddof=0), (FRAME.f == "b").std(ddof=0), (FRAME.f == "c").std(ddof=0)]
    np.testing.assert_allclose(fixed(model, "beta").scale, 2.5 * spread / np.array(sds), rtol=1e-6)
    assert np.isclose(fixed(model, "1|g_sigma").scale, 2.5 * spread)
    assert np.isclose(fixed(model, "x|g_sigma").scale, 2.5 * spread / sds[0])
    assert np.isclose(fixed(model, "sigma").scale, spread)
    count = formula("count ~ x + offset(log(exposure))", FRAME, family="poisson")
    rate = FRAME["count"].mean() / FRAME.exposure.mean()
    assert np.isclose(fixed(count, "Intercept_centred").loc, np.log(rate))
    assert fixed(count, "Intercept_centred").scale == 2.5
    moved = formula("y ~ x + offset(100 * exposure)".replace("100 * exposure", "x"), FRAME)
    assert np.isclose(fixed(moved, "Intercept_centred").loc, (FRAME.y - FRAME.x).mean())


def test_priors_by_name():
    priors = {
        "Intercept": dist.Cauchy(0, 3),
        "x": dist.Normal(1, 2),
        "f": dist.Normal(0, 5),
        "1|g_sigma": dist.Exponential(2),
        "sigma": dist.HalfNormal(7),
    }
    model = formula("y ~ x + f + z + (1 | g)", FRAME, priors=priors)
    assert fixed(model, "Intercept_centred") is priors["Intercept"]
    np.testing.assert_array_equal(fixed(model, "beta").loc, [1, 0, 0, 0])
    np.testing.assert_array_equal(fixed(model, "beta").scale[:3], [2, 5, 5])
    assert fixed(model, "1|g_sigma").rate == 2 and fixed(model, "sigma").scale == 7
    whole = formula("y ~ x + f", FRAME, priors={"beta": dist.Laplace(0, 1)})
    assert isinstance(fixed(whole, "beta"), dist.Laplace)
    flat = formula("grade ~ x", FRAME, family="ordinal", priors={"threshold": dist.Normal(0, 9)})
    assert fixed(flat, "threshold_centred").base.scale == 9
    lkj = formula("y ~ (x|g)", FRAME, priors={"1 + x|g_cholesky": dist.LKJCholesky(2, 7.0)})
    assert fixed(lkj, "1 + x|g_cholesky").concentration == 7


def test_coefficients_with_priors_of_other_families_are_sites_of_their_own():
    priors = {"x": dist.HalfNormal(1), "f[T.c]": dist.Laplace(0, 2)}
    model = formula("y ~ z + x + f", FRAME, priors=priors)
    coords = model._prepare(None)[2]
    assert coords["normal_term"].tolist() == ["z", "f[T.b]"]
    values = {"Intercept_centred": 0.0, "x": 10.0, "f[T.c]": 40.0, "beta_normal": [1.0, 30.0]}
    values = {k: jnp.asarray(v) for k, v in values.items()}
    terms, known = log_terms(model, {**values, "sigma": 1.0})
    assert known["beta"].tolist() == [1.0, 10.0, 30.0, 40.0]
    assert np.isclose(terms["x"], dist.HalfNormal(1).log_prob(10.0))
    every = formula("y ~ x", FRAME, priors={"x": dist.Laplace(0, 2)})
    assert "beta_normal" not in every.nodes and "normal_term" not in every._prepare(None)[2]


@pytest.mark.parametrize(
    ("priors", "error", "message"),
    [
        ({"xx": dist.Normal(0, 1)}, ValueError, "no parameter 'xx'.*mean 'x'"),
        ({"1|g": dist.Normal(0, 1)}, ValueError, "no parameter '1.g'.*'1.g_sigma'"),
        ({"x": 1.0}, TypeError, "expected a distribution"),
        ([dist.Normal(0, 1)], TypeError, "expected a mapping"),
        ({"x": dist.Normal(np.zeros(2), 1)}, ValueError, "one number"),
        ({"sigma": dist.Normal(0, 1)}, ValueError, "'sigma' is positive"),
        ({"1|g_sigma": dist.StudentT(3, 0, 1)}, ValueError, "is positive"),
        ({"beta": dist.Normal(0, 1), "x": dist.Normal(0, 1)}, ValueError, "either 'beta'"),
    ],
)
def test_faults_of_priors(priors, error, message):
    with pytest.raises(error, match=message):
        if isinstance(priors, dict):
            formula("y ~ x + (1 | g)", FRAME, priors=priors)
        Priors(priors)


# -- the density ----------------------------------------------------------------------------


def by_hand(x, z, g, groups, y=None):
    """y ~ x + z + (1 + x | g) with the default priors, as NumPyro users write it."""
    spread, sx, sz = (float(v.std(ddof=0)) for v in (FRAME.y, FRAME.x, FRAME.z))
    intercept = numpyro.sample("Intercept_centred", dist.Normal(FRAME.y.mean(), 2.5 * spread))
    scale = 2.5 * spread / jnp.array([sx, sz])
    beta = numpyro.sample("beta", dist.Normal(0, scale).to_event(1))
    s0 = numpyro.sample("1|g_sigma", dist.HalfNormal(2.5 * spread))
    s1 = numpyro.sample("x|g_sigma", dist.HalfNormal(2.5 * spread / sx))
    factor = numpyro.sample("1 + x|g_cholesky", dist.LKJCholesky(2, 2.0))
    tril = jnp.stack([s0, s1])[:, None] * factor
    with numpyro.plate("levels", groups):
        u = numpyro.sample("u", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril))
    sigma = numpyro.sample("sigma", HalfStudentT(4.0, spread))
    eta = intercept + (x - x.mean()) * beta[0] + (z - z.mean()) * beta[1]
    numpyro.sample("y", dist.Normal(eta + u[g, 0] + x * u[g, 1], sigma), obs=y)


POINT = {
    "Intercept_centred": 1.2,
    "beta": np.array([0.3, -0.4]),
    "1|g_sigma": 0.8,
    "x|g_sigma": 0.3,
    "1 + x|g_cholesky": np.array([[1.0, 0.0], [0.6, 0.8]]),
    "1|g": np.array([0.5, -0.7, 0.1, 0.9]),
    "x|g": np.array([-0.2, 0.1, 0.3, -0.1]),
    "sigma": 1.1,
}


def reference_density():
    point = {k: jnp.asarray(v) for k, v in POINT.items() if k not in ("1|g", "x|g")}
    point["u"] = jnp.stack([jnp.asarray(POINT["1|g"]), jnp.asarray(POINT["x|g"])], axis=1)
    g = np.searchsorted(["q", "u", "v", "w"], FRAME.g)
    args = (FRAME.x.to_numpy(), FRAME.z.to_numpy(), g, 4, FRAME.y.to_numpy())
    return float(log_density(by_hand, args, {}, point)[0])


def test_log_density_against_a_handwritten_model():
    with jax.enable_x64(True):
        model = formula("y ~ x + z + (1 + x | g)", FRAME)
        terms, known = log_terms(model, {k: jnp.asarray(v) for k, v in POINT.items()})
        np.testing.assert_allclose(sum(terms.values()), reference_density(), rtol=1e-12)
    np.testing.assert_allclose(known["1 + x|g_corr"], [[1, 0.6], [0.6, 1]], atol=1e-12)


def test_three_correlated_effects_are_one_multivariate_normal():
    with jax.enable_x64(True):
        model = formula("y ~ 1 + (x + z | g)", FRAME)
        factor = np.linalg.cholesky([[1, 0.4, -0.2], [0.4, 1, 0.5], [-0.2, 0.5, 1]])
        sigma = np.array([0.7, 1.3, 0.2])
        u = np.random.default_rng(0).normal(size=(4, 3))
        values = {"1 + x + z|g_cholesky": factor, "Intercept": 0.0, "sigma": 1.0}
        for i, name in enumerate(("1|g", "x|g", "z|g")):
            values[name], values[f"{name}_sigma"] = u[:, i], sigma[i]
        terms, _ = log_terms(model, {k: jnp.asarray(v) for k, v in values.items()})
        found = sum(terms[name] for name in ("1|g", "x|g", "z|g"))
    cov = np.diag(sigma) @ factor @ factor.T @ np.diag(sigma)
    exact = scipy.stats.multivariate_normal(np.zeros(3), cov).logpdf(u).sum()
    np.testing.assert_allclose(found, exact, rtol=1e-10)


def test_independent_effects_have_no_correlation():
    nodes = formula("y ~ x + (x || g)", FRAME).nodes
    assert {"1|g", "x|g"} <= set(nodes) and not any("cholesky" in name for name in nodes)
    assert nodes["x|g"].parents == ("x|g_sigma",) and nodes["x|g"].dims == ("g",)


def fitted(model, start):
    """Maximum likelihood by BFGS on the model's own likelihood, scales on the log scale."""
    arrays = {k: jnp.asarray(v) for k, v in arrays_of(model).items()}
    (name,) = [n for n, node in model.nodes.items() if "row" in node.dims]
    flat, unravel = jax.flatten_util.ravel_pytree({k: jnp.asarray(v) for k, v in start.items()})
    positive = ("sigma", "alpha", "kappa", "nu")

    def values(point):
        found = unravel(point)
        if "threshold_centred" in found:
            found["threshold_centred"] = OrderedTransform()(found["threshold_centred"])
        return {k: jnp.exp(v) if k in positive else v for k, v in found.items()}

    def loss(point):
        return -log_terms(model, values(point), arrays)[0][name]

    found = scipy.optimize.minimize(
        jax.jit(loss), flat, jac=jax.jit(jax.grad(loss)), method="BFGS", options={"gtol": 1e-4}
    )
    known = log_terms(model, values(jnp.asarray(found.x)), arrays)[1]
    return {name: np.asarray(value) for name, value in known.items()}


X = sm.add_constant(FRAME[["x", "z"]])
START = {"Intercept_centred": 0.0, "beta": np.zeros(2)}


def glm(family, y, **options):
    return sm.GLM(y, X, family=family, **options).fit().params.to_numpy()


def statsmodels_estimates(name):
    if name == "poisson":
        return glm(sm.families.Poisson(), FRAME["count"], exposure=FRAME.exposure)
    if name == "binomial":
        wins = FRAME[["wins"]].assign(lost=FRAME["size"] - FRAME.wins)
        return glm(sm.families.Binomial(), wins)
    if name == "bernoulli":
        return glm(sm.families.Binomial(), FRAME.hit.astype(float))
    if name == "gamma":
        return glm(sm.families.Gamma(sm.families.links.Log()), FRAME.time)
    if name == "negative_binomial":
        return sm.NegativeBinomial(FRAME["count"], X).fit(disp=0).params.to_numpy()
    if name == "beta":
        return BetaModel(FRAME.share, X).fit(disp=0).params.to_numpy()
    return sm.OLS(FRAME.y, X).fit().params.to_numpy()


@pytest.mark.parametrize(
    ("text", "family", "extra"),
    [
        ("y ~ x + z", "gaussian", {"sigma": 0.0}),
        ("hit ~ x + z", "bernoulli", {}),
        ("p(wins, size) ~ x + z", "binomial", {}),
        ("count ~ x + z + offset(log(exposure))", "poisson", {}),
        ("count ~ x + z", "negative_binomial", {"alpha": 0.0}),
        ("time ~ x + z", "gamma", {"alpha": 0.0}),
        ("share ~ x + z", "beta", {"kappa": 0.0}),
    ],
)
def test_maximum_likelihood_against_statsmodels(text, family, extra):
    with jax.enable_x64(True):
        known = fitted(formula(text, FRAME, family=family), {**START, **extra})
    exact = statsmodels_estimates(family)
    found = np.array([float(known["Intercept"]), *np.asarray(known["beta"])])
    np.testing.assert_allclose(found, exact[:3], atol=2e-3)
    if family == "negative_binomial":  # statsmodels' alpha is the inverse
        np.testing.assert_allclose(1 / known["alpha"], exact[3], rtol=0.02)
    if family == "beta":
        np.testing.assert_allclose(np.log(known["kappa"]), exact[3], atol=2e-3)


def test_ordinal_maximum_likelihood_against_statsmodels():
    reference = OrderedModel(FRAME.grade, FRAME[["x", "z"]], distr="logit").fit(disp=0)
    cuts = reference.model.transform_threshold_params(reference.params.to_numpy())[1:-1]
    model = formula("grade ~ x + z", FRAME, family="ordinal")
    start = {"threshold_centred": np.array([-2.0, 0.0, 0.0, 0.0]), "beta": np.zeros(2)}
    with jax.enable_x64(True):
        known = fitted(model, start)
    np.testing.assert_allclose(known["beta"], reference.params.to_numpy()[:2], atol=2e-3)
    np.testing.assert_allclose(known["threshold"], cuts, atol=2e-2)
