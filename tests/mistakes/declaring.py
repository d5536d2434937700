"""Mistakes that show when a model is declared: before there are any data."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

import probkit as pk
from probkit import dist
from tests.mistakes.table import Corpus

CORPUS = Corpus()
normal = dist.Normal(0.0, 1.0)


@CORPUS.row("site 'a'", "cycle, a -> b -> a", "remove one of these parents|pk.markov")
def cycle() -> Any:
    return pk.Model(a=pk.rv(lambda b: dist.Normal(b, 1.0)), b=pk.rv(lambda a: dist.Normal(a, 1.0)))


@CORPUS.row("site 'x'", "cycle.*parameter of its own name", "pk.markov")
def parent_of_itself() -> Any:
    return pk.Model(x=pk.rv(lambda x: dist.Normal(x, 1.0)))


@CORPUS.row("Model", "no variables", "declare them by keyword")
def empty_model() -> Any:
    return pk.Model()


@CORPUS.row("site 'mu'", "expected a node, found function", "wrap it: pk.rv")
def forgot_rv() -> Any:
    return pk.Model(mu=lambda tau: dist.Normal(0.0, tau), tau=dist.HalfNormal(1.0))


@CORPUS.row(
    "site 'mu'",
    "expected a node, found ABCMeta|found .*type|found DistributionMeta",
    "call it: Normal",
)
def class_as_variable() -> Any:
    return pk.Model(mu=dist.Normal)


@CORPUS.row("pk.rv", "expected a distribution or a function.*found the class", "call it: Normal")
def class_in_rv() -> Any:
    return pk.Model(mu=pk.rv(dist.Normal, dims="g"))


@CORPUS.row("site 'sigma'", "found float", "constants are data")
def constant_as_variable() -> Any:
    return pk.Model(sigma=2.0, y=pk.rv(lambda sigma: dist.Normal(0.0, sigma)))


@CORPUS.row("site 'mu'", "found str", "NumPyro distribution")
def name_of_a_distribution() -> Any:
    return pk.Model(mu="Normal(0, 1)")


@CORPUS.row("site 'tau'", "invalid scale|HalfNormal has scale=-1", "mend the constant|check")
def negative_constant_scale() -> Any:
    return pk.Model(tau=pk.rv(lambda: dist.HalfNormal(-1.0))).bind()


@CORPUS.row("site 'p'", "invalid probs|probs=1.5", "mend the constant|check")
def probability_above_one() -> Any:
    return pk.Model(p=pk.rv(lambda: dist.Bernoulli(1.5))).bind()


@CORPUS.row("site 'k'", "invalid probs|expected it to be simplex", "mend the constant|check")
def weights_that_do_not_sum_to_one() -> Any:
    return pk.Model(k=pk.rv(lambda: dist.Categorical(np.array([0.5, 0.9])))).bind()


@CORPUS.row("site 'x'", "invalid loc|nan", "mend the constant|check")
def constant_that_is_nan() -> Any:
    return pk.Model(x=pk.rv(lambda: dist.Normal(np.nan, 1.0))).bind()


@CORPUS.row("pk.rv", r"dims \('g', 'g'\) name the same dim twice", "use two dims")
def same_dim_twice() -> Any:
    return pk.Model(a=pk.rv(normal, dims=("g", "g")))


@CORPUS.row("site 'a'", "'g' is both a dim and an event dim", "batch axes go into dims")
def dim_and_event_dim() -> Any:
    return pk.Model(a=pk.rv(dist.Dirichlet(jnp.ones(2)), dims="g", event_dims="g"))


@CORPUS.row("pk.rv", "names, found", "dims")
def dims_of_numbers() -> Any:
    return pk.Model(a=pk.rv(normal, dims=(3, 4)))


@CORPUS.row("pk.rv", "expected dims to be a name or a sequence of names, found 8", "dims='school'")
def size_instead_of_dim() -> Any:
    return pk.Model(a=pk.rv(normal, dims=8))


@CORPUS.row("pk.rv", "unknown option 'dim'", "Did you mean 'dims'")
def misspelt_option_of_rv() -> Any:
    return pk.Model(a=pk.rv(normal, dim="g"))


@CORPUS.row("pk.factor", "unknown option 'likelyhood'", "Did you mean 'likelihood'")
def misspelt_option_of_factor() -> Any:
    return pk.factor(lambda a: a, likelyhood=True)


@CORPUS.row("pk.rv", "unknown option 'observed'", "in the data|Known options")
def pymc_style_observed() -> Any:
    return pk.Model(y=pk.rv(lambda mu: dist.Normal(mu, 1.0), observed=np.zeros(3)))


@CORPUS.row("pk.rv", "unknown option 'shape'", "Did you mean|Known options.*dims")
def pymc_style_shape() -> Any:
    return pk.Model(y=pk.rv(normal, shape=8))


@CORPUS.row("pk.rv", r"takes \*args", "list every parent as a parameter")
def star_arguments() -> Any:
    return pk.Model(y=pk.rv(lambda *args: dist.Normal(args[0], 1.0)))


@CORPUS.row("pk.rv", r"takes \*parents|takes \*.*parents", "list every parent")
def double_star_arguments() -> Any:
    return pk.Model(y=pk.rv(lambda **parents: dist.Normal(parents["mu"], 1.0)))


@CORPUS.row("pk.deterministic", "expected a function.*found Array|found .*Array", "lambda")
def array_as_deterministic() -> Any:
    return pk.Model(c=pk.deterministic(jnp.ones(3)))


@CORPUS.row("site 'region'", "name of a dim", "rename")
def variable_named_like_a_dim() -> Any:
    return pk.Model(
        region=pk.rv(normal, dims="region"), y=pk.rv(lambda region: dist.Normal(region, 1.0))
    )


@CORPUS.row("replace", "no variable 'sigm'", "Did you mean 'sigma'")
def replacing_an_unknown_variable() -> Any:
    return pk.Model(sigma=dist.HalfNormal(1.0)).replace(sigm=dist.HalfNormal(2.0))


@CORPUS.row("extend", "has a variable 'mu' already", r"use replace\(mu=")
def extending_by_a_known_variable() -> Any:
    return pk.Model(mu=normal).extend(mu=normal)


@CORPUS.row("do", "no variable 'theta'", "It has 'mu'")
def intervening_on_an_unknown_variable() -> Any:
    return pk.Model(mu=normal).do(theta=1.0)


@CORPUS.row("do", "expected numbers for 'mu', found str", "give an array")
def intervening_with_a_label() -> Any:
    return pk.Model(mu=normal).do(mu="high")


@CORPUS.row("condition", "no variable 'yy'", "It has 'y'|Did you mean 'y'")
def conditioning_an_unknown_variable() -> Any:
    return pk.Model(y=normal).condition(yy=1.0)


@CORPUS.row("site 'net'", "no floating arrays", "inside a node's function")
def module_without_arrays() -> Any:
    return pk.Model(net=pk.module(jnp.tanh, prior=normal))


@CORPUS.row("pk.module", "expected a distribution or a function.*found float", "distribution")
def prior_that_is_a_number() -> Any:
    return pk.module(jnp.tanh, prior=1.0)


@CORPUS.row("site 'mu'", r"found tuple", r"pk\.rv")
def distribution_and_trailing_comma() -> Any:
    return pk.Model(mu=(dist.Normal(0.0, 1.0),))


@CORPUS.row("site 'x'", "support of Odd is not known", "choose another")
def support_without_a_map() -> Any:
    class Odd(dist.Normal):
        support = constraints.dependent

    return pk.Model(x=pk.rv(lambda: Odd(0.0, 1.0))).bind()


@CORPUS.row("site 'x'", "expected a node, found ndarray", "constants are data")
def array_as_variable() -> Any:
    return pk.Model(m=normal, x=np.zeros(3))


@CORPUS.row("site 'x'", "expected a node, found DistributionMeta", r"call it: HalfNormal\(\.\.\.\)")
def class_of_a_distribution() -> Any:
    return pk.Model(m=normal, x=dist.HalfNormal)


@CORPUS.row(r"pk\.rv", r"takes \*kw", "list every parent as a parameter")
def star_keywords() -> Any:
    return pk.rv(lambda **kw: normal)


@CORPUS.row(r"pk\.rv", "expected a function .*found float", "such as lambda")
def variable_from_a_number() -> Any:
    return pk.rv(3.0)


@CORPUS.row(r"pk\.deterministic", "unknown option 'dimz'", "Did you mean 'dims'")
def misspelt_option_of_deterministic() -> Any:
    return pk.deterministic(lambda: 0.0, dimz="g")


@CORPUS.row(r"pk\.size", "found 3", "expected the name of a dim")
def size_of_a_number() -> Any:
    return pk.size(3)


@CORPUS.row("extend", "has a variable 'tau' already", r"use replace\(tau=")
def extending_with_a_known_name() -> Any:
    return pk.Model(tau=dist.HalfNormal(1.0)).extend(tau=normal)
