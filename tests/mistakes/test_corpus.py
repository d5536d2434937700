"""Mistakes that people make, and what they are told: each message names the place and the remedy.

A row is a name, a function that makes the mistake, and words that the message must contain: the
site (or column, or option) at fault first, then what was found or expected, then what to do.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import probkit as pk
from probkit import dist

SCHOOLS = pk.Model(
    mu=dist.Normal(0, 5),
    tau=dist.HalfCauchy(5),
    theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
    y=pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
)
Y = np.array([28.0, 8.0, -3.0, 7.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0])
DATA = {"y": Y, "sigma": SIGMA}
FRAME = pd.DataFrame(
    {
        "y": [1.0, 2.0, 3.0, 4.0],
        "x": [0.0, 1.0, 2.0, 3.0],
        "g": ["a", "b", "a", "b"],
        "n": [1, 2, 3, 4],
    }
)
LINE = pk.Model(
    slope=dist.Normal(0, 1),
    y=pk.rv(lambda slope, x: dist.Normal(slope * x, 1.0), dims="row"),
)
GROUPED = pk.Model(
    a=pk.rv(lambda: dist.Normal(0, 1), dims="g"),
    y=pk.rv(lambda a, g: dist.Normal(a[g], 1.0), dims="row"),
)


def one(**nodes):
    """A model with a mean and the given nodes."""
    return pk.Model(m=dist.Normal(0, 1), **nodes)


def holed(column: str) -> pd.DataFrame:
    frame = FRAME.copy()
    frame.loc[1, column] = np.nan
    return frame


Row = tuple[str, Callable[[], object], list[str]]

DECLARING: list[Row] = [
    ("empty model", lambda: pk.Model(), ["no variables", "pk.Model("]),
    (
        "cycle",
        lambda: pk.Model(
            a=pk.rv(lambda b: dist.Normal(b, 1)), b=pk.rv(lambda a: dist.Normal(a, 1))
        ),
        ["'a'", "cycle", "a -> b -> a"],
    ),
    (
        "own parent",
        lambda: pk.Model(x=pk.rv(lambda x: dist.Normal(x, 1), dims="t")),
        ["'x'", "cycle", "pk.markov"],
    ),
    ("bare function", lambda: one(x=lambda m: dist.Normal(m, 1)), ["'x'", "function", "pk.rv"]),
    ("class, not instance", lambda: one(x=dist.HalfNormal), ["'x'", "HalfNormal(...)"]),
    ("a constant", lambda: one(x=3.0), ["'x'", "float", "data"]),
    ("a string", lambda: one(x="normal"), ["'x'", "str", "distribution"]),
    ("an array", lambda: one(x=np.zeros(3)), ["'x'", "ndarray", "data"]),
    ("variadic function", lambda: pk.rv(lambda *args: dist.Normal(0, 1)), ["*args", "parameter"]),
    ("keyword-variadic", lambda: pk.rv(lambda **kw: dist.Normal(0, 1)), ["*kw", "parameter"]),
    ("rv of a number", lambda: pk.rv(3.0), ["pk.rv", "float", "lambda"]),
    ("misspelt option of rv", lambda: pk.rv(dist.Normal(0, 1), dim="g"), ["'dim'", "'dims'"]),
    (
        "misspelt option of factor",
        lambda: pk.factor(lambda: 0.0, likelyhood=True),
        ["'likelihood'"],
    ),
    (
        "misspelt option of deterministic",
        lambda: pk.deterministic(lambda: 0.0, dimz="g"),
        ["'dims'"],
    ),
    ("dim that is no name", lambda: pk.rv(dist.Normal(0, 1), dims=3), ["pk.rv", "3"]),
    ("dim twice", lambda: pk.rv(dist.Normal(0, 1), dims=("g", "g")), ["twice", "two dims"]),
    (
        "dim and event dim",
        lambda: one(
            x=pk.rv(
                lambda m: dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
                dims="g",
                event_dims="g",
            )
        ),
        ["'x'", "'g'", "event_dims"],
    ),
    ("size of a number", lambda: pk.size(3), ["pk.size", "3"]),
    ("module without prior", lambda: pk.module(object(), None), ["pk.module", "prior", "NoneType"]),
    ("replace unknown", lambda: SCHOOLS.replace(taw=dist.Normal(0, 1)), ["'taw'", "'tau'"]),
    ("extend existing", lambda: SCHOOLS.extend(tau=dist.Normal(0, 1)), ["'tau'", "replace(tau="]),
    ("do unknown", lambda: SCHOOLS.do(teta=1.0), ["'teta'", "'theta'"]),
    ("condition unknown", lambda: SCHOOLS.condition(muu=1.0), ["'muu'", "'mu'"]),
]

BINDING: list[Row] = [
    (
        "negative scale",
        lambda: one(x=pk.rv(lambda m: dist.Normal(m, -1.0))).bind(),
        ["'x'", "scale=-1", "positive", "mend"],
    ),
    (
        "zero scale in a sequence",
        lambda: one(x=pk.rv(lambda m: dist.Normal(m, np.array([1.0, 0.0])))).bind(),
        ["'x'", "scale=0", "positive"],
    ),
    (
        "negative degrees of freedom",
        lambda: one(x=pk.rv(lambda m: dist.StudentT(-2.0, m, 1.0))).bind(),
        ["'x'", "df=-2", "positive"],
    ),
    (
        "probability above one",
        lambda: one(x=pk.rv(lambda: dist.Bernoulli(1.5))).bind(),
        ["'x'", "probs=1.5", "interval"],
    ),
    (
        "unknown parent",
        lambda: SCHOOLS.bind({"y": Y, "sigm": SIGMA}),
        ["'y'", "'sigma'", "'sigm'"],
    ),
    ("missing frame column", lambda: LINE.bind(FRAME[["y"]]), ["'y'", "'x'", "column"]),
    ("unobserved by a misspelling", lambda: SCHOOLS.bind({"Y": Y, "sigma": SIGMA}), ["'Y'", "'y'"]),
    ("wrong shape", lambda: SCHOOLS.bind({"y": Y[:, None], "sigma": SIGMA}), ["'y'", "(4, 1)"]),
    (
        "lengths that clash",
        lambda: SCHOOLS.bind({"y": Y, "sigma": SIGMA[:3]}),
        ["'y'", "(3,)", "(4,)"],
    ),
    (
        "coords of another length",
        lambda: SCHOOLS.bind(DATA, coords={"school": ["a", "b"]}),
        ["'school'", "2", "4", "agree"],
    ),
    (
        "coords twice",
        lambda: SCHOOLS.bind(DATA, coords={"school": ["a", "a", "b", "c"]}),
        ["'school'", "2 times", "unique"],
    ),
    (
        "coords of no dim",
        lambda: SCHOOLS.bind(DATA, coords={"schools": list("abcd")}),
        ["'schools'", "'school'"],
    ),
    ("dim without size", lambda: SCHOOLS.bind(None), ["sigma"]),
    ("NaN in a covariate", lambda: LINE.bind(holed("x")), ["'y'", "'x'", "1 missing", "drop"]),
    (
        "infinite data",
        lambda: LINE.bind({"y": Y, "x": np.array([0, 1, np.inf, 2])}),
        ["'x'", "inf"],
    ),
    (
        "whole numbers for a continuous family",
        lambda: LINE.bind({"y": np.array([1, 2, 3, 4]), "x": Y}),
        ["'y'", "Normal", "int64", "astype(float)"],
    ),
    (
        "whole-number column for a continuous family",
        lambda: LINE.bind(FRAME.assign(y=FRAME.n)),
        ["'y'", "continuous", "astype(float)"],
    ),
    (
        "outside a positive support",
        lambda: one(y=pk.rv(lambda m: dist.Exponential(jnp.exp(m)), dims="i")).bind({"y": Y}),
        ["'y'", "Exponential", "(2,)", "-3"],
    ),
    (
        "fractions for counts",
        lambda: one(y=pk.rv(lambda m: dist.Poisson(jnp.exp(m)), dims="i")).bind(
            {"y": np.array([1.0, 2.5])}
        ),
        ["'y'", "Poisson", "2.5", "whole numbers"],
    ),
    (
        "negative counts",
        lambda: one(y=pk.rv(lambda m: dist.Poisson(jnp.exp(m)), dims="i")).bind(
            {"y": np.array([1, -2])}
        ),
        ["'y'", "Poisson", "-2"],
    ),
    (
        "twos for a Bernoulli",
        lambda: one(y=pk.rv(lambda m: dist.Bernoulli(logits=m), dims="i")).bind(
            {"y": np.array([1, 2])}
        ),
        ["'y'", "Bernoulli", "boolean"],
    ),
    (
        "negative scale from a column",
        lambda: SCHOOLS.bind({"y": Y, "sigma": -SIGMA}),
        ["'y'", "scale=-15", "positive", "column"],
    ),
    (
        "a value where a distribution is due",
        lambda: one(x=pk.rv(lambda m: m + 1)).bind(),
        ["'x'", "distribution", "pk.deterministic"],
    ),
    ("no return", lambda: one(x=pk.rv(lambda m: None)).bind(), ["'x'", "None", "return"]),
    (
        "class returned",
        lambda: one(x=pk.rv(lambda m: dist.Normal)).bind(),
        ["'x'", "class", "Normal(...)"],
    ),
    (
        "misspelt argument of a distribution",
        lambda: one(x=pk.rv(lambda m: dist.Normal(m, sigma=1.0))).bind(),
        ["'x'", "sigma", "parents"],
    ),
    (
        "shapes that do not combine",
        lambda: SCHOOLS.extend(
            z=pk.deterministic(lambda theta: theta + jnp.zeros(3), dims="school")
        ).bind(DATA),
        ["'z'", "theta: (4,)", "dims"],
    ),
    (
        "deterministic of another shape",
        lambda: SCHOOLS.extend(z=pk.deterministic(lambda mu: mu, dims="school")).bind(DATA),
        ["'z'", "(4,)", "()", "dims"],
    ),
    (
        "batch shape against dims",
        lambda: one(x=pk.rv(lambda m: dist.Normal(jnp.zeros(3), 1), dims="g")).bind(
            coords={"g": ["a", "b"]}
        ),
        ["'x'", "(3,)", "(2,)", "dims"],
    ),
    (
        "event dims of a scalar",
        lambda: one(x=pk.rv(lambda m: dist.Normal(m, 1), event_dims="g")).bind(
            coords={"g": ["a", "b"]}
        ),
        ["'x'", "event_dims", "dims"],
    ),
    (
        "event of another length",
        lambda: one(x=pk.rv(lambda m: dist.Dirichlet(jnp.ones(3)), event_dims="g")).bind(
            coords={"g": ["a", "b"]}
        ),
        ["'x'", "'g'", "3", "2"],
    ),
    (
        "codes beyond the dim",
        lambda: GROUPED.bind({"y": Y, "g": np.array([0, 1, 2, 3])}, coords={"g": ["a", "b"]}),
        ["'g'", "0 to 3", "count from 0"],
    ),
    (
        "observing a deterministic",
        lambda: one(d=pk.deterministic(lambda m: 2 * m)).bind({"d": 1.0}),
        ["'d'", "deterministic", "model.do"],
    ),
    (
        "unbounded discrete latent",
        lambda: pk.fit(
            one(
                k=pk.rv(lambda m: dist.Poisson(jnp.exp(m))),
                y=pk.rv(lambda k: dist.Normal(k, 1.0)),
            ),
            {"y": 0.5},
            progress=False,
        ),
        ["'k'", "Poisson", "cannot be summed out"],
    ),
    (
        "all entries missing",
        lambda: LINE.bind({"y": np.full(4, np.nan), "x": Y}),
        ["'y'", "missing"],
    ),
    ("misspelt reparam", lambda: SCHOOLS.bind(DATA, reparam="noncentered"), ["'noncentred'"]),
    (
        "reparam of no site",
        lambda: SCHOOLS.bind(DATA, reparam={"thet": "off"}),
        ["'thet'", "'theta'"],
    ),
    ("ragged lists", lambda: LINE.bind({"y": Y, "x": [[1.0], [2.0, 3.0]]}), ["'x'"]),
    ("complex numbers", lambda: LINE.bind({"y": Y, "x": Y + 1j}), ["'x'", "complex"]),
    ("data that are a number", lambda: LINE.bind(3.0), ["float"]),
    (
        "dates as numbers",
        lambda: LINE.bind({"y": Y, "x": pd.date_range("2020", periods=4)}),
        ["'x'"],
    ),
    (
        "one discrete element for another's row",
        lambda: pk.Model(
            z=pk.rv(lambda: dist.Bernoulli(0.5), dims="g"),
            y=pk.rv(lambda z, g: dist.Normal(z[g] * 1.0, 1.0), dims="row"),
        ).bind(FRAME[["y", "g"]]),
        ["'z'", "'y'", "summed out"],
    ),
]

FITTING: list[Row] = [
    ("not a model", lambda: pk.fit(lambda x: x, DATA), ["function", "from_numpyro"]),
    ("method class", lambda: pk.fit(SCHOOLS, DATA, method=pk.NUTS), ["method", "NUTS()"]),
    (
        "method by name",
        lambda: pk.fit(SCHOOLS, DATA, method="nuts"),
        ["method", "'nuts'", "pk.NUTS()"],
    ),
    ("misspelt option of fit", lambda: pk.fit(SCHOOLS, DATA, coord={}), ["'coord'", "'coords'"]),
    ("misspelt option of NUTS", lambda: pk.NUTS(target_acept=0.9), ["'target_accept'"]),
    ("PyMC's name for draws", lambda: pk.NUTS(tune=500), ["'tune'", "'warmup'"]),
    ("fraction of draws", lambda: pk.NUTS(draws=10.5), ["draws", "10.5", "whole"]),
    ("no draws", lambda: pk.NUTS(draws=0), ["draws", "0"]),
    ("acceptance above one", lambda: pk.NUTS(target_accept=1.2), ["target_accept", "1.2"]),
    ("unknown metric", lambda: pk.NUTS(metric="lowrank"), ["metric", "'low_rank'"]),
    ("unknown engine", lambda: pk.NUTS(engine="stan"), ["engine", "'stan'", "blackjax"]),
    ("seed that is text", lambda: pk.fit(SCHOOLS, DATA, seed="x", progress=False), ["seed", "'x'"]),
    (
        "old-style key",
        lambda: pk.fit(SCHOOLS, DATA, seed=jnp.zeros(2, int)),
        ["key", "jax.random.key"],
    ),
    (
        "nothing to infer",
        lambda: pk.fit(pk.Model(y=dist.Normal(0, 1)), {"y": 1.0}, progress=False),
        ["NUTS", "unobserved"],
    ),
    (
        "checkpoint that is not there",
        lambda: pk.fit(SCHOOLS, DATA, resume="/nowhere/at/all", progress=False),
        ["resume", "/nowhere/at/all"],
    ),
    ("unknown attribute", lambda: pk.nuts, ["'nuts'", "'NUTS'"]),
]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [pytest.param(row[1], row[2], id=row[0]) for row in DECLARING + BINDING + FITTING],
)
def test_mistake_is_explained(mistake: Callable[[], object], words: list[str]):
    with pytest.raises((ValueError, TypeError, AttributeError)) as caught:
        mistake()
    message = str(caught.value)
    absent = [word for word in words if word not in message]
    assert not absent, f"the message lacks {absent}: {message}"
    assert len(message) < 2000


def test_corpus_is_large():
    assert len(DECLARING + BINDING + FITTING) >= 50


def test_impossible_start_reports_the_site():
    model = pk.Model(
        m=dist.Normal(0, 1),
        f=pk.factor(lambda m: jnp.where(m > jnp.inf, 0.0, -jnp.inf)),
        y=pk.rv(lambda m: dist.Normal(m, 1)),
    )
    with pytest.raises(ValueError, match="starting point") as caught:
        pk.fit(model, {"y": 0.5}, method=pk.NUTS(draws=10, warmup=10), progress=False)
    assert "f " in str(caught.value) and "NOT FINITE" in str(caught.value)


def test_a_bad_call_loses_nothing():
    """A mistake after the fit leaves the posterior as it was."""
    posterior = pk.fit(
        GROUPED, FRAME[["y", "g"]], method=pk.NUTS(draws=50, warmup=50, chains=2), progress=False
    )
    before = posterior.values["a"].copy()
    for mistake, words in (
        (lambda: posterior.predict(pd.DataFrame({"g": ["c"]})), ["'c'"]),
        (lambda: posterior.predict(pd.DataFrame({"h": [0.0]})), ["'g'"]),
        (lambda: posterior.summary("aa"), ["'aa'", "'a'"]),
        (lambda: posterior.groups("posteriors"), ["'posterior'"]),
        (lambda: posterior.log_predictive(pd.DataFrame({"g": ["a"]})), ["observed"]),
        (lambda: posterior["b"], ["'b'"]),
    ):
        with pytest.raises((ValueError, KeyError)) as caught:
            mistake()
        assert all(word in str(caught.value) for word in words), str(caught.value)
    np.testing.assert_array_equal(posterior.values["a"], before)
    assert jax.numpy.isfinite(before).all()
