"""Response families of a formula: linear predictor to distribution, and default priors.

============  ====================  ===================================  =====================
family        link                  distribution of the response         parameters of its own
============  ====================  ===================================  =====================
gaussian      identity              Normal(eta, sigma)                   sigma
student_t     identity              StudentT(nu, eta, sigma)             nu, sigma
bernoulli     logit                 Bernoulli(logits=eta)
binomial      logit                 Binomial(n, logits=eta)
poisson       log                   Poisson(exp(eta))
negative_     log                   mean m = exp(eta), variance          alpha
binomial                            m + m^2 / alpha
gamma         log                   Gamma(alpha, alpha / exp(eta))       alpha (the shape)
beta          logit                 Beta(m kappa, (1 - m) kappa),        kappa
                                    m = logistic(eta)
ordinal       cumulative logit      P(y <= k) = logistic(c_k - eta)      threshold c_1 < c_2 ...
============  ====================  ===================================  =====================

Default priors are weakly informative and scaled from the frame. The scales are those of rstanarm
("Prior distributions for rstanarm models", autoscale) and Bambi (Westfall 2017, arXiv 1702.01201),
in the form that puts the intercept's prior on the centred design. With ``s`` the sd of the response
for an identity link and 1 otherwise, and ``sd(x)`` of a column of the design:

- intercept, at the mean of the predictors: Normal(location, 2.5 s), its location being the mean of
  ``y - offset`` (identity), ``log(mean y / mean exp(offset))`` (log) or 0 (logit);
- coefficient of a column x: Normal(0, 2.5 s / sd(x));
- sd of a group effect: HalfNormal(2.5 s / sd(x)), where sd of the intercept's column counts as 1;
- correlations of group effects: LKJ with concentration 2;
- sigma: half Student-t with 4 degrees of freedom and scale s (as Bambi's); nu: Gamma(2, 0.1)
  (Juarez and Steel 2010); alpha, kappa: HalfCauchy(1) (Bambi's);
- thresholds: ordered draws from a Student-t with 3 degrees of freedom and scale 2.5 (brms's).

Everything is O(rows) per evaluation; the ordinal family O(rows x levels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from numpyro import distributions as dist
from numpyro.distributions import constraints

from probkit.core._errors import listing, nearest
from probkit.models._mean_families import Beta, Gamma, NegativeBinomial


@dataclass(frozen=True)
class Family:
    """A family: ``build(eta, *parameters)``; the binomial's first parameter are the trials."""

    name: str
    link: str
    build: Callable[..., Any]
    parameters: tuple[str, ...] = ()
    discrete: bool = False
    low: float = float("-inf")
    high: float = float("inf")
    closed: bool = True
    expected: str = "real numbers"


class OrderStatistics(dist.Distribution):
    """Independent draws of a scalar distribution, put in order: c_1 < c_2 < ... < c_n.

    The density is n! prod_i base(c_i) on ordered vectors, so that it is normalised and drawn from
    by sorting.
    """

    arg_constraints: dict[str, Any] = {}
    support: Any = constraints.ordered_vector  # pyright: ignore
    reparametrized_params: list[str] = []
    pytree_data_fields = ("base",)
    pytree_aux_fields = ("size",)

    def __init__(
        self, base: dist.Distribution, size: int, *, validate_args: bool | None = None
    ) -> None:
        self.base, self.size = base, size
        super().__init__((), (size,), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Sorted independent draws, of shape ``(*sample_shape, size)``."""
        return jnp.sort(self.base.sample(key, (*sample_shape, self.size)), axis=-1)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """The log density of ordered vectors ``(..., size)``."""
        return jnp.sum(self.base.log_prob(value), axis=-1) + gammaln(self.size + 1.0)


class HalfStudentT(dist.Distribution):
    """The absolute value of a Student-t with location 0."""

    arg_constraints: dict[str, Any] = {
        "df": constraints.positive,
        "scale": constraints.positive,
    }
    support: Any = constraints.positive  # pyright: ignore
    reparametrized_params: list[str] = ["scale"]
    pytree_data_fields = ("df", "scale")

    def __init__(self, df: Any, scale: Any, *, validate_args: bool | None = None) -> None:
        self.df, self.scale = df, scale
        shape = jnp.broadcast_shapes(jnp.shape(df), jnp.shape(scale))
        super().__init__(shape, (), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Absolute values of Student-t draws, ``(*sample_shape, *batch_shape)``."""
        return jnp.abs(dist.StudentT(self.df, 0.0, self.scale).sample(key, sample_shape))

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """The log density of positive numbers."""
        return dist.StudentT(self.df, 0.0, self.scale).log_prob(value) + np.log(2.0)


def _ordinal(eta: Any, threshold: Any) -> Any:
    """Categorical with log P(y = k) from log-logistics, exact far out in both tails.

    logistic(b) - logistic(a) = logistic(b) logistic(-a) (1 - exp(a - b)).
    """
    below = jnp.asarray(threshold) - jnp.asarray(eta)[..., None]
    gaps = jnp.diff(threshold, axis=-1)
    inner = (
        jax.nn.log_sigmoid(below[..., 1:])
        + jax.nn.log_sigmoid(-below[..., :-1])
        + jnp.log(-jnp.expm1(-gaps))
    )
    first = jax.nn.log_sigmoid(below[..., :1])
    last = jax.nn.log_sigmoid(-below[..., -1:])
    return dist.Categorical(logits=jnp.concatenate([first, inner, last], axis=-1))


_COUNTS = "counts 0, 1, 2, ..."
FAMILIES = {
    family.name: family
    for family in (
        Family("gaussian", "identity", lambda eta, sigma: dist.Normal(eta, sigma), ("sigma",)),
        Family(
            "student_t",
            "identity",
            lambda eta, nu, sigma: dist.StudentT(nu, eta, sigma),
            ("nu", "sigma"),
        ),
        Family(
            "bernoulli",
            "logit",
            lambda eta: dist.Bernoulli(logits=eta),
            discrete=True,
            low=0.0,
            high=1.0,
            expected="0 and 1, True and False, or two labels",
        ),
        Family(
            "binomial",
            "logit",
            lambda eta, trials: dist.Binomial(trials, logits=eta),
            discrete=True,
            low=0.0,
            expected="counts of successes between 0 and the trials",
        ),
        Family(
            "poisson",
            "log",
            lambda eta: dist.Poisson(jnp.exp(eta)),
            discrete=True,
            low=0.0,
            expected=_COUNTS,
        ),
        Family(
            "negative_binomial",
            "log",
            NegativeBinomial,
            ("alpha",),
            discrete=True,
            low=0.0,
            expected=_COUNTS,
        ),
        Family(
            "gamma",
            "log",
            Gamma,
            ("alpha",),
            low=0.0,
            closed=False,
            expected="positive numbers",
        ),
        Family(
            "beta",
            "logit",
            Beta,
            ("kappa",),
            low=0.0,
            high=1.0,
            closed=False,
            expected="numbers between 0 and 1, both excluded",
        ),
        Family(
            "ordinal",
            "cumulative logit",
            _ordinal,
            discrete=True,
            low=0.0,
            expected="an ordered categorical, or whole numbers",
        ),
    )
}
_ALIASES = {
    "normal": "gaussian",
    "t": "student_t",
    "studentt": "student_t",
    "logistic": "bernoulli",
    "negativebinomial": "negative_binomial",
    "nb": "negative_binomial",
    "cumulative": "ordinal",
}


def find_family(name: Any) -> Family:
    """The family of that name; spelling of spaces, hyphens and capitals does not matter."""
    if not isinstance(name, str):
        raise TypeError(
            f"family: expected one of {listing(FAMILIES)}, found {type(name).__name__}."
        )
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    plain = _ALIASES.get(plain, _ALIASES.get(plain.replace("_", ""), plain))
    if plain not in FAMILIES:
        hint = nearest(plain, FAMILIES)
        raise ValueError(f"family: expected one of {listing(FAMILIES)}, found {name!r}.{hint}")
    return FAMILIES[plain]


def check_response(name: str, family: Family, y: np.ndarray, trials: np.ndarray | None) -> None:
    """A ValueError at the first observed response that the family cannot produce."""
    high: Any = family.high if trials is None else trials
    seen = ~np.isnan(y)
    with np.errstate(invalid="ignore"):
        if family.closed:
            inside = (y >= family.low) & (y <= high)
        else:
            inside = (y > family.low) & (y < high)
        if family.discrete:
            inside &= y == np.round(y)
    wrong = seen & ~inside
    if wrong.any():
        row = int(np.argmax(wrong))
        hint = ""
        if trials is not None and y[row] > trials[row]:
            hint = f" (of {trials[row]:g} trials)"
        raise ValueError(
            f"response {name!r}: family {family.name!r} expects {family.expected}; found "
            f"{y[row]:g}{hint} in row {row} and {int(wrong.sum()) - 1} more such rows. Choose "
            f"another family, or correct the rows."
        )


@dataclass(frozen=True)
class Scales:
    """What the default priors are scaled with: the intercept's location, and the response's sd."""

    location: float
    spread: float


def response_scales(family: Family, name: str, y: np.ndarray, offset: np.ndarray | float) -> Scales:
    """Location of the intercept and spread of the response; see the module's docstring."""
    seen = ~np.isnan(y)
    offset = np.broadcast_to(np.asarray(offset, float), y.shape)[seen]
    y = y[seen]
    if family.link == "identity":
        spread = float(np.std(y - offset))
        if not spread > 0:
            raise ValueError(
                f"response {name!r}: every observed entry is {y[0]:g}, which leaves no scale for "
                f"the default priors; check the column."
            )
        return Scales(float(np.mean(y - offset)), spread)
    if family.link == "log":
        mean = np.mean(y) if np.mean(y) > 0 else 0.5 / y.size
        return Scales(float(np.log(mean) - np.log(np.mean(np.exp(offset)))), 1.0)
    return Scales(0.0, 1.0)


def parameter_priors(family: Family, scales: Scales) -> dict[str, dist.Distribution]:
    """Default priors of the parameters that a family has besides the linear predictor."""
    defaults = {
        "sigma": HalfStudentT(4.0, scales.spread),
        "nu": dist.Gamma(2.0, 0.1),
        "alpha": dist.HalfCauchy(1.0),
        "kappa": dist.HalfCauchy(1.0),
    }
    return {name: defaults[name] for name in family.parameters}
