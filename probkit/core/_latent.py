r"""The capability ``gaussian_latent``: a model that is one Gaussian vector with pointwise terms.

    theta ~ p(theta),    f ~ N(m(theta), K(theta)),    p(y | theta, f) = prod_i t_i(f_i; theta)

``f`` has ``n`` entries along one dim; ``theta`` is one flat vector in the unconstrained space of
all other latent sites (the hyperparameters). What Laplace's method, expectation propagation,
conjugate-computation VI and their kin need to know of a model is collected here, so that they need
to know nothing of models. A term ``t_i`` is the product of the likelihoods of *all* observations
that depend on ``f_i``; that none depends on two entries of ``f`` was checked when the data were
bound.

All functions are pure and traceable, take the arrays of a Target as an argument, and compute in the
Target's dtype (float64 for a model with a Gaussian process, unless it asks for single precision),
inside ``probkit.core._trees.in_precision(target.dtype)`` where they are not traced by ``run``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array

from probkit.core._trees import Flat

if TYPE_CHECKING:
    from probkit.core._target import Target


class Hyperparameters:
    """Where the prior has the hyperparameters ``theta``: what both capabilities share."""

    theta: Flat
    _whereabouts: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def centre(self) -> np.ndarray:
        """About where the prior has ``theta``, ``(theta.size,)``: searches begin around it.

        Zeros where that is not known.
        """
        return np.zeros(self.theta.size) if self._whereabouts is None else self._whereabouts[0]

    @property
    def spread(self) -> np.ndarray:
        """The unit that searches measure ``theta`` in, ``(theta.size,)``: wider for wide priors.

        Ones where that is not known.
        """
        return np.ones(self.theta.size) if self._whereabouts is None else self._whereabouts[1]


class GaussianLatent(Hyperparameters, abc.ABC):
    """What is known of the Gaussian vector of a model. Hashed by identity; kept by a Program.

    Attributes:
        name: the latent site.
        dim: the dim it lies along.
        size: its number of entries, ``n``.
        theta: the hyperparameters' sites as one flat vector (unconstrained shapes by name);
            ``theta.size`` is its length (possibly 0), ``theta.unravel(vector)`` the dictionary.
    """

    name: str
    dim: str
    size: int
    theta: Flat

    # -- the prior --------------------------------------------------------------------------

    @abc.abstractmethod
    def log_prior(self, theta: Array, arrays: dict) -> Array:
        """Log density of ``theta``, shape ``(theta.size,)``, in the unconstrained space: a scalar.

        Log Jacobians are included, and so is every term of the model that does not involve ``f``.
        """

    @abc.abstractmethod
    def mean(self, theta: Array, arrays: dict) -> Array:
        """Prior mean of ``f`` at the rows of ``arrays``, shape ``(n,)``."""

    @abc.abstractmethod
    def covariance(self, theta: Array, arrays: dict) -> Array:
        """Prior covariance of ``f`` at the rows of ``arrays``, shape ``(n, n)``, without jitter."""

    @abc.abstractmethod
    def points(self, arrays: dict) -> Array:
        """Inputs of the rows, shape ``(n,)`` (one column) or ``(n, d)`` (a list of columns).

        The arrays may be those of another Target of the same model: the same columns with another
        number of rows. (The same holds of `mean`, `covariance` and `variance`.)
        """

    @abc.abstractmethod
    def cross_covariance(self, theta: Array, a: Array, b: Array, arrays: dict) -> Array:
        """Kernel matrix between two sets of points (shaped like `points`), ``(len(a), len(b))``."""

    @abc.abstractmethod
    def variance(self, theta: Array, a: Array, arrays: dict) -> Array:
        """Prior variances at points, ``(len(a),)``: the diagonal of ``cross_covariance(a, a)``."""

    # -- the likelihood ---------------------------------------------------------------------

    @abc.abstractmethod
    def log_likelihood(self, theta: Array, f: Array, arrays: dict) -> Array:
        """Log terms ``log t_i(f_i; theta)``, shape ``(n,)``, for ``f`` of shape ``(n,)``.

        The i-th depends on ``f_i`` alone, so that ``jax.grad`` of the sum, and ``jax.jvp`` of that
        in the direction of ones, are the first and second derivatives of every term.
        """

    @abc.abstractmethod
    def log_likelihood_rows(self, theta: Array, f: Array, rows: Array, arrays: dict) -> Array:
        """The terms of some rows, shape ``(b,)``: ``f`` holds the values at ``rows`` only.

        For mini-batches: ``rows`` is an index array of shape ``(b,)``. Costs O(b).

        Raises:
            ValueError: the terms of a row cannot be had without those of the others.
        """

    @abc.abstractmethod
    def family(self, arrays: dict) -> str | None:
        """``"gaussian"`` or ``"probit"`` if all terms have that closed form, else None (static).

        Read off the structure of ``arrays``, so it may be asked for while tracing.
        """

    @abc.abstractmethod
    def gaussian_terms(self, theta: Array, arrays: dict) -> tuple[Array, Array, Array]:
        """``(a, b, c)``, each ``(n,)``, with ``log t_i(f) = c_i + b_i f - a_i f^2 / 2`` exactly.

        ``a_i = 0`` for a row without observations. Only for the family ``"gaussian"``; one Normal
        observation of ``f_i`` has ``a = 1 / scale^2`` and ``b = y / scale^2``.
        """

    @abc.abstractmethod
    def probit_terms(self, theta: Array, arrays: dict) -> tuple[Array, Array]:
        """``(slope, offset)``, each ``(n,)``, with ``log t_i(f) = log Phi(offset + slope f)``.

        Only for the family ``"probit"``; a label 0 has a negative slope.
        """

    def kinks(self, arrays: dict) -> int:
        """0 where all terms are smooth in ``f`` as far as one looked, else how many observations
        an entry has at the most: their terms have kinks, which rules must look for (static).
        """
        return 0

    def rows_apart(self, arrays: dict) -> bool:
        """Whether the terms of some rows can be had without the others (static)."""
        return True

    # -- and back ---------------------------------------------------------------------------

    @abc.abstractmethod
    def point(self, theta: Array, f: Array, arrays: dict) -> dict[str, Array]:
        """The model's own unconstrained point of a pair: what ``Target.log_density`` takes.

        ``f`` goes through the model's parametrisation (whitened unless it was switched off, with
        the jitter of the node), which costs a Cholesky factor.
        ``target.program.flat.ravel(point)`` is a row of draws of an `Approximation`.
        """

    def pointing(self, theta: Array, arrays: dict) -> tuple[Array, Callable[[Array], dict]]:
        """The prior's lower factor, with the jitter of the node, and `point` with it at hand.

        For a draw of the function and its point by one factor: ``f = m + factor @ noise``.

        Raises:
            ValueError: the model offers no factor.
        """
        raise ValueError("this model offers no factor of its Gaussian vector's covariance")

    @abc.abstractmethod
    def split(self, z: dict[str, Array], arrays: dict) -> tuple[Array, Array]:
        """The pair ``(theta, f)`` of the model's unconstrained point: the inverse of `point`."""

    def induced(self, target: Target, points: Any, jitter: float) -> Target:
        """The model with the function's residual at other points in place of the function.

        Its sites are those of ``theta`` and one more, the values at ``points`` of the process less
        its mean; rows of the data and new rows are drawn, and scored, given these. What sparse
        methods return draws of: their memory does not grow with the rows.

        Args:
            target: the Target this is the capability of.
            points: inducing points, shaped like `points`.
            jitter: the share of its mean diagonal that their covariance gets.

        Raises:
            ValueError: the model offers no such form.
        """
        raise ValueError("this model offers no form in which inducing points hold the function")
