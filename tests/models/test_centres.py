"""Where priors have their parameters, against the medians of draws."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpyro.distributions import biject_to

import probkit as pk
from probkit.models._centres import whereabouts

dist = pk.dist
PRIORS = {
    "normal": dist.Normal(30.0, 2.0),
    "wide": dist.Normal(np.array([0.0, 500.0]), np.array([100.0, 1.0])),
    "student": dist.StudentT(4.0, -7.0, 1.0),
    "lognormal": dist.LogNormal(13.8, 0.5),
    "halfnormal": dist.HalfNormal(1e5),
    "halfcauchy": dist.HalfCauchy(1e-4),
    "exponential": dist.Exponential(1e-6),
    "gamma": dist.Gamma(5.0, 1e-3),
    "inverse_gamma": dist.InverseGamma(5.0, 1e4),
    "weibull": dist.Weibull(1e3, 2.0),
    "beta": dist.Beta(2.0, 2.0),
    "uniform": dist.Uniform(1e3, 1e4),
    "left_truncated": dist.TruncatedNormal(2e6, 1e6, low=0.0),
    "left_cut_off": dist.TruncatedCauchy(-1e3, 1e3, low=5.0),
    "right_truncated": dist.TruncatedNormal(-2e6, 1e6, high=0.0),
    "both_truncated": dist.TruncatedNormal(2e6, 1e6, low=0.0, high=1e8),
    "loguniform": dist.LogUniform(1e-5, 1e5),
    "chi2": dist.Chi2(6.0),
    "vector": dist.LogNormal(np.array([1.0, 9.0, -9.0]), 1.0),
    "repeated": dist.LogNormal(9.0, 1.0).expand([3]),
    "event": dist.Normal(np.array([1.0, 9.0]), 1.0).to_event(1),
}


@pytest.mark.parametrize("name", PRIORS)
def test_centres_are_about_the_medians(name):
    prior = PRIORS[name]
    model = pk.Model(v=prior, y=pk.rv(lambda v: dist.Normal(np.sum(v * 0.0), 1.0)))
    program = model.bind({"y": 0.0}).program
    found, units = whereabouts(program, program.shapes)
    draws = prior.sample(jax.random.key(0), (400,))
    medians = np.median(biject_to(prior.support).inv(draws), axis=0)
    assert found.shape == (medians.size,)
    np.testing.assert_allclose(found, medians.ravel(), atol=np.max(units))
    spread = np.std(biject_to(prior.support).inv(draws), axis=0).ravel()
    assert np.all(units == np.where(spread > 2.5, units, 1.0)) and np.all(spread < 4 * units)


def test_priors_that_depend_on_others_stand_around_nought():
    model = pk.Model(
        m=dist.Normal(50.0, 1.0),
        v=pk.rv(lambda m: dist.Normal(m, 1.0)),
        w=pk.rv(lambda m: dist.LogNormal(m, 1.0)),
        y=pk.rv(lambda v, w: dist.Normal(v, w)),
    )
    program = model.bind({"y": 0.0}).program
    found = dict(zip(program.shapes, whereabouts(program, program.shapes)[0], strict=True))
    assert found["m"] == 50.0 and found["v"] == 0.0 and found["w"] == 0.0
