r"""The capability ``gaussian_latents``: several Gaussian vectors whose terms meet row by row.

    theta ~ p(theta),   f_c ~ N(m_c(theta), K_c(theta)), c = 1..C, independent given theta,
    p(y | theta, f) = prod_i t_i(f_1i, ..., f_Ci; theta)

All vectors have ``n`` entries along one dim. Softmax classification has one a class; a normal with
a mean and a log scale of their own has two. With ``C = 1`` this is what
`probkit.core.GaussianLatent` says of a model, which methods that know both prefer. That no
observation depends on two rows was checked when the data were bound. All functions are pure and
traceable, take the arrays of a Target, and compute in its dtype.
"""

from __future__ import annotations

import abc

from jaxtyping import Array

from probkit.core._latent import Hyperparameters
from probkit.core._trees import Flat


class GaussianLatents(Hyperparameters, abc.ABC):
    """What is known of the Gaussian vectors of a model. Hashed by identity; kept by a Program.

    Attributes:
        names: the latent sites, in the order of the leading axis of everything below.
        dim: the dim they lie along.
        size: entries of each, ``n``.
        theta: the hyperparameters' sites as one flat vector (see `GaussianLatent`).
    """

    names: tuple[str, ...]
    dim: str
    size: int
    theta: Flat

    @property
    def name(self) -> str:
        """The sites' names as one, for messages."""
        return "', '".join(self.names)

    # -- the prior --------------------------------------------------------------------------

    @abc.abstractmethod
    def log_prior(self, theta: Array, arrays: dict) -> Array:
        """Log density of ``theta`` in the unconstrained space, and every term without ``f``."""

    @abc.abstractmethod
    def mean(self, theta: Array, arrays: dict) -> Array:
        """Prior means at the rows of ``arrays``, shape ``(C, n)``."""

    @abc.abstractmethod
    def covariance(self, theta: Array, arrays: dict) -> Array:
        """Prior covariances at the rows of ``arrays``, shape ``(C, n, n)``, without jitter."""

    @abc.abstractmethod
    def cross_covariance(self, theta: Array, arrays: dict, other: dict) -> Array:
        """Covariances between the rows of two Targets' arrays, shape ``(C, n, n*)``.

        ``other`` are arrays of the same model bound to other rows.
        """

    @abc.abstractmethod
    def variance(self, theta: Array, arrays: dict, other: dict) -> Array:
        """Prior variances at the rows of ``other``, shape ``(C, n*)``."""

    # -- the likelihood ---------------------------------------------------------------------

    @abc.abstractmethod
    def log_likelihood(self, theta: Array, f: Array, arrays: dict) -> Array:
        """Log terms, shape ``(n,)``, for ``f`` of shape ``(C, n)``; the i-th sees ``f[:, i]``."""

    @abc.abstractmethod
    def softmax(self, arrays: dict) -> bool:
        """Whether every term is that of one label, ``log softmax(f_i + offset)_y`` (static)."""

    def rows_apart(self, arrays: dict) -> bool:
        """Whether every row has one observation, its own (static)."""
        return False

    # -- and back ---------------------------------------------------------------------------

    @abc.abstractmethod
    def point(self, theta: Array, f: Array, arrays: dict) -> dict[str, Array]:
        """The model's own unconstrained point of a pair, ``f`` of shape ``(C, n)``."""
