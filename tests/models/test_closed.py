"""Closed forms of the commonest log densities: against NumPyro's, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as dist

from probkit.models import _closed
from probkit.models._inside import log_density

REAL = np.linspace(-3.0, 4.0, 6)
POSITIVE = np.linspace(0.1, 5.0, 6)
# Parameters as numbers, one for all elements, and one an element; the last argument moves them.
MAKERS: dict[str, tuple[Callable[[Any, Any], Any], np.ndarray]] = {
    "normal": (lambda m, s: dist.Normal(m, s), REAL),
    "half normal": (lambda m, s: dist.HalfNormal(s), POSITIVE),
    "cauchy": (lambda m, s: dist.Cauchy(m, s), REAL),
    "half cauchy": (lambda m, s: dist.HalfCauchy(s), POSITIVE),
    "student": (lambda m, s: dist.StudentT(4.5, m, s), REAL),
    "student of traced df": (lambda m, s: dist.StudentT(2.0 + s, m, s), REAL),
    "exponential": (lambda m, s: dist.Exponential(s), POSITIVE),
    # (Not at 0, where NumPyro's slope is that of one side.)
    "bernoulli": (lambda m, s: dist.BernoulliLogits(0.1 + m * jnp.ones(6)), np.arange(6) % 2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_value_and_slopes_are_those_of_numpyro(name: str) -> None:
    make, x = MAKERS[name]
    with jax.enable_x64(True):
        for m, s in ((0.0, 1.0), (0.3, 1.7), (np.float64(-2.0), 3), (REAL, POSITIVE)):
            known = make(m, s)
            np.testing.assert_allclose(log_density(known, x), known.log_prob(x), rtol=1e-13)
            at = (jnp.asarray(m, float), jnp.asarray(s, float), jnp.asarray(x))

            def ours(m: Any, s: Any, x: Any) -> Any:
                return jnp.sum(log_density(make(m, s), x))

            def theirs(m: Any, s: Any, x: Any) -> Any:
                return jnp.sum(make(m, s).log_prob(x))

            which = (0, 1) if name == "bernoulli" else (0, 1, 2)
            found = jax.jit(jax.grad(ours, which))(*at)
            for one, other in zip(found, jax.jit(jax.grad(theirs, which))(*at), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_one_scale_for_all_elements() -> None:
    def terms(s: Any, form: Callable) -> Any:
        return form(dist.Normal(0.4, s), jnp.asarray(REAL))

    with jax.enable_x64(True):
        s = jnp.asarray([1.3])
        theirs = terms(s, lambda d, x: d.log_prob(x))
        np.testing.assert_allclose(terms(s, log_density), theirs, rtol=1e-13)


def test_certain_outcomes_of_infinite_logits() -> None:
    logits = jnp.asarray([jnp.inf, -jnp.inf, jnp.inf, -jnp.inf, 200.0, -200.0])
    certain = dist.BernoulliLogits(logits, validate_args=False)
    found = log_density(certain, jnp.asarray([1, 0, 0, 1, 1, 1]))
    np.testing.assert_array_equal(found, [0.0, 0.0, -jnp.inf, -jnp.inf, 0.0, -200.0])


def test_the_slope_of_a_coin_at_even_odds() -> None:
    slope = jax.grad(lambda eta: log_density(dist.BernoulliLogits(eta), jnp.asarray(1)))(0.0)
    assert float(slope) == 0.5


def test_subclasses_and_others_are_left_to_numpyro() -> None:
    class Own(dist.Normal):
        """A subclass may have another density."""

    assert _closed.closed_form(Own(0.0, 1.0)) is None
    assert _closed.closed_form(dist.Gamma(2.0, 1.0)) is None
    assert _closed.closed_form(dist.Normal(0.0, 1.0).expand([3])) is None
    assert _closed.closed_form(dist.Normal(0.0, 1.0)) is not None
