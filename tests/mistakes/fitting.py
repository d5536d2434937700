"""Mistakes that show when a method meets a model, or afterwards."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

import probkit as pk
from probkit import dist
from tests.mistakes.binding import SIGMA, Y, schools
from tests.mistakes.table import Corpus

CORPUS = Corpus()
DATA = {"y": Y, "sigma": SIGMA}


def fit(model: Any, data: Any = None, **options: Any) -> Any:
    options.setdefault("method", pk.ExactGaussian(draws=20))
    return pk.fit(model, data, progress=False, **options)


@functools.cache
def fitted() -> pk.Posterior:
    """One posterior that the mistakes below share: none of them may harm it."""
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims="g"),
        y=pk.rv(lambda a, g, x: dist.Normal(a[g] * x, 1.0), dims="obs"),
    )
    frame = pd.DataFrame({"g": ["u", "v", "u"], "x": [0.0, 1.0, 2.0], "y": [1.0, 2.0, 3.0]})
    return fit(model, frame)


@CORPUS.row(r"fit\(method=\)", "expected an inference method", r"call it: NUTS\(\)")
def class_of_a_method() -> Any:
    return fit(schools(), DATA, method=pk.NUTS)


@CORPUS.row(r"fit\(method=\)", "found 'nuts'", r"pk.NUTS\(\)")
def name_of_a_method() -> Any:
    return fit(schools(), DATA, method="nuts")


@CORPUS.row("fit", "unknown option 'chains'", "Known options.*method")
def option_of_the_method_given_to_fit() -> Any:
    return fit(schools(), DATA, chains=4)


@CORPUS.row("fit", "unknown option 'cords'", "Did you mean 'coords'")
def misspelt_option_of_fit() -> Any:
    return fit(schools(), DATA, cords={"school": [1, 2, 3]})


@CORPUS.row("NUTS", "unknown option 'target_acept'", "Did you mean 'target_accept'")
def misspelt_option_of_nuts() -> Any:
    return pk.NUTS(target_acept=0.9)


@CORPUS.row("NUTS.*target_accept", "between 0.* and 1.*found 80", "between")
def acceptance_in_percent() -> Any:
    return pk.NUTS(target_accept=80)


@CORPUS.row("NUTS.*draws", "at least 1, found 0|at least", "at least")
def no_draws() -> Any:
    return pk.NUTS(draws=0)


@CORPUS.row("NUTS.*chains", "whole number, found 2.5", "whole number")
def half_a_chain() -> Any:
    return pk.NUTS(chains=2.5)


@CORPUS.row("fit", "expected a Model.*found function", "from_numpyro")
def numpyro_function() -> Any:
    return fit(lambda y: None, DATA)


@CORPUS.row("fit", "expected a Model.*found dict", "Model")
def arguments_swapped() -> Any:
    return fit(DATA, schools())


@CORPUS.row("site 'y'", "parent 'sigma' is neither", "data")
def fitting_without_data() -> Any:
    return fit(schools())


@CORPUS.row("fit", "a Target holds its data already", "data=None")
def target_and_data() -> Any:
    return fit(schools().bind(DATA), DATA)


@CORPUS.row("seed", "whole number, found 1.5", "whole number")
def seed_that_is_a_fraction() -> Any:
    return fit(schools(), DATA, seed=1.5)


@CORPUS.row("ExactGaussian", "no 'latents'|at least one unobserved continuous", "sites are")
def nothing_to_infer() -> Any:
    return fit(pk.Model(y=pk.rv(dist.Normal(0.0, 1.0), dims="o")), {"y": Y})


@CORPUS.row("site 'y'|'y'", "never finite|NOT FINITE", "observed values lie in its support")
def density_that_is_never_finite() -> Any:
    """The data lie below the smallest value that any parameter allows."""
    model = pk.Model(
        low=dist.Uniform(5.0, 6.0), y=pk.rv(lambda low: dist.Uniform(low, 20.0), dims="o")
    )
    method = pk.NUTS(draws=5, warmup=5, chains=1)
    return fit(model, {"y": np.array([1.0, 7.0])}, method=method)


@CORPUS.row("site 'pull'|'pull'", "never finite|NOT FINITE", "check")
def factor_that_is_minus_infinity() -> Any:
    model = pk.Model(
        a=dist.Normal(0.0, 1.0), pull=pk.factor(lambda a: jnp.log(-jnp.exp(a)) * jnp.inf)
    )
    return fit(model, method=pk.NUTS(draws=5, warmup=5, chains=1))


@CORPUS.row("batch", "no such dim", "Its dims are|Did you mean")
def batches_along_an_unknown_dim() -> Any:
    method = pk.SGLD(draws=5, warmup=0, chains=1, batch_size=2, dim="rows", step_size=1e-3)
    return fit(schools(), DATA, method=method)


@CORPUS.row("batch size", "expected 1 to 3 .*found 64", "'school'|rows of dim")
def batches_larger_than_the_data() -> Any:
    method = pk.SGLD(draws=5, warmup=0, chains=1, batch_size=64, step_size=1e-3)
    return fit(schools(), DATA, method=method)


@CORPUS.row("mini-batches", "imputed entries", "fill the holes")
def batches_with_imputed_entries() -> Any:
    method = pk.SGLD(draws=5, warmup=0, chains=1, batch_size=2, step_size=1e-3)
    return fit(schools(), {"y": np.array([1.0, np.nan, 2.0]), "sigma": SIGMA}, method=method)


# -- afterwards ---------------------------------------------------------------------------------


@CORPUS.row("'g'", "label 'w'.*known ones: 'u', 'v'", "Correct the label")
def predicting_an_unseen_category() -> Any:
    return fitted().predict(pd.DataFrame({"g": ["u", "w"], "x": [1.0, 2.0]}))


@CORPUS.row("site 'y'", "parent 'x' was a column.*The new data have: 'g'", "add the column")
def predicting_without_a_covariate() -> Any:
    return fitted().predict(pd.DataFrame({"g": ["u", "v"]}))


@CORPUS.row("site 'y'", "covariate 'x' has 1 missing", "drop those rows")
def predicting_with_a_hole() -> Any:
    return fitted().predict(pd.DataFrame({"g": ["u", "v"], "x": [1.0, np.nan]}))


@CORPUS.row("log_predictive", "no observed variable to score", "'y'")
def scoring_without_an_outcome() -> Any:
    return fitted().log_predictive(pd.DataFrame({"g": ["u"], "x": [1.0]}))


@CORPUS.row("coords", "no dim 'group'", "Its dims are|Did you mean")
def predicting_with_unknown_coords() -> Any:
    return fitted().predict(pd.DataFrame({"g": ["u"], "x": [1.0]}), coords={"group": ["u"]})


@CORPUS.row("summary", "no site 'aa'", "Did you mean|It has")
def summary_of_an_unknown_site() -> Any:
    return fitted().summary("aa")


@CORPUS.row("groups", "no group 'posteriors'", "Did you mean 'posterior'")
def unknown_group() -> Any:
    return fitted().groups("posteriors")


@CORPUS.row("unconstrain", "a value for every latent site, missing 'a'", "give|pass|expected")
def unconstraining_without_a_site() -> Any:
    return fitted().target.unconstrain({"b": jnp.zeros(2)})


@CORPUS.row("prior_predictive.*draws", "whole number, found 'many'", "whole number")
def draws_in_words() -> Any:
    return pk.prior_predictive(schools(), DATA, draws="many")


@CORPUS.row("NUTS", "unknown option 'tune'", "Known options: 'draws', 'warmup'")
def name_of_warmup_in_pymc() -> Any:
    return pk.NUTS(tune=500)


@CORPUS.row(r"NUTS\(draws\)", "found 10.5", "expected a whole number")
def fraction_of_a_draw() -> Any:
    return pk.NUTS(draws=10.5)


@CORPUS.row(r"NUTS\(metric\)", "found 'lowrank'", "Did you mean 'low_rank'")
def unknown_metric() -> Any:
    return pk.NUTS(metric="lowrank")


@CORPUS.row(r"NUTS\(engine\)", "found 'stan'", "expected one of 'blackjax', 'numpyro'")
def unknown_engine() -> Any:
    return pk.NUTS(engine="stan")


@CORPUS.row("f .*NOT FINITE", "starting point", "finite")
def factor_that_is_never_finite() -> Any:
    model = pk.Model(
        m=dist.Normal(0.0, 1.0),
        f=pk.factor(lambda m: jnp.where(m > jnp.inf, 0.0, -jnp.inf)),
        y=pk.rv(lambda m: dist.Normal(m, 1.0)),
    )
    return fit(model, {"y": 0.5}, method=pk.NUTS(draws=10, warmup=10))


@CORPUS.row("fit", "1 more .Laplace.", "method=pk.NUTS")
def method_by_position() -> Any:
    return pk.fit(schools(), DATA, pk.Laplace())
