"""GPRegressor: Gaussian-process regression with scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np

from probkit.estimators._sklearn import (
    GPEstimator,
    RegressorMixin,
    generator,
    inputs,
    seed_of,
    training,
)


class GPRegressor(RegressorMixin, GPEstimator):
    """Gaussian-process regression with normal noise, hyperparameters learnt.

    The outcomes' mean is the process' mean; inputs are used as they are. Everything is computed in
    float64, whatever JAX's setting.

    Args:
        kernel: ``"rbf"``, ``"matern12"``, ``"matern32"``, ``"matern52"`` or ``"matern92"``; a
            kernel of `probkit.kernels`, whose numbers are learnt, each up to a positive factor; or
            a function of positive hyperparameters that returns one, whose defaults (or 1) are where
            the search begins. The numbers that set the function's size begin at the outcomes'.
        inference: ``"auto"`` (exact), ``"exact"``, ``"laplace"``, ``"ep"``, ``"cvi"`` or
            ``"hybrid"`` (for normal noise they agree), ``"nuts"`` (draws of the hyperparameters,
            the function integrated out), ``"svgp"``, ``"tsvgp"`` or ``"sparse_hybrid"`` (inducing
            points, for many rows; ``options={"batch_size": 512}``), or a method such as
            ``pk.GPExact(starts=4)``.
        ard: one length scale a column, for a kernel by name; otherwise one for all. Several optima
            are common then: the exact engine looks four times (``options={"starts": 4}``).
        options: options of the method that ``inference`` names, such as ``{"objective": "ml2"}``.
        random_state: seed of the search's starts, an int or a ``RandomState``.

    Attributes:
        hyperparameters_: their values by name, in the units of the data (for a kernel object by
            their places in it: ``left.lengthscale``).
        log_marginal_likelihood_value_: log evidence at them (not with NUTS).
        posterior_: the `probkit.Posterior`; it is not pickled.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Warns:
        ConvergenceWarning: when fitted, that the fit's verdict is not OK: what failed, and what to
            do (``posterior_.check()`` has the whole verdict).

    Raises:
        ValueError, TypeError: when fitted, for data that scikit-learn refuses, an unknown kernel
            or inference.

    Example:
        >>> import numpy as np
        >>> import probkit as pk
        >>> x = np.linspace(0, 6, 30)[:, None]
        >>> model = pk.estimators.GPRegressor("rbf", random_state=0).fit(x, np.sin(x[:, 0]))
        >>> mean, sd = model.predict([[1.5]], return_std=True)
        >>> bool(abs(mean[0] - np.sin(1.5)) < 0.01)
        True
    """

    def fit(self, X: Any, y: Any) -> GPRegressor:
        """Fit inputs of shape ``(n, d)`` to outcomes of shape ``(n,)``."""
        from probkit.estimators import _engine, _verdict

        x, y = training(self, X, y, y_numeric=True)
        method = _engine.method_of(self.inference, self.options, 0, bool(self.ard))
        self._fitted, self.posterior_ = _engine.fitted(
            self.kernel,
            self.ard,
            x,
            np.asarray(y, np.float64),
            0,
            method,
            seed_of(self.random_state),
        )
        self.hyperparameters_ = self._fitted.hyperparameters
        found = self.posterior_.approximation
        self.log_marginal_likelihood_value_ = None if found is None else found.log_evidence
        faults = {"": _verdict.failed(self._fitted, self.posterior_)}
        _verdict.warn("GPRegressor", {"": "posterior_"}, faults)
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Predicted means ``(n*,)``, and on request their sds or covariance, noise included.

        Args:
            X: rows, ``(n*, d)``.
            return_std: also the sds ``(n*,)`` of new outcomes, the function's and the noise's.
            return_cov: also the covariance ``(n*, n*)`` of new outcomes; its diagonal is the square
                of these sds. Costs O(n n*^2), and O(n*^2) memory.

        Raises:
            ValueError: both were asked for.
        """
        from probkit.estimators import _joint

        if return_std and return_cov:
            raise ValueError(
                "GPRegressor.predict: expected one of return_std and return_cov, found both; the "
                "sds are np.sqrt(np.diag(covariance))"
            )
        x = inputs(self, X)
        at = self._fitted
        level = float(at.data["level"])
        if return_cov:
            mean, cov = _joint.mean_and_covariance(at, x)
            return level + mean, cov + np.mean(self._noise() ** 2) * np.eye(len(x))
        means, var = at.predict(x)
        centre = np.mean(means, axis=0)
        if not return_std:
            return level + centre
        between = np.mean((means - centre) ** 2, axis=0)
        return level + centre, np.sqrt(np.mean(var, axis=0) + np.mean(self._noise() ** 2) + between)

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> np.ndarray:
        """Draws of new outcomes at rows ``(n*, d)``, noise included: ``(n*, n_samples)``.

        Outcomes of one draw share the function (and, with NUTS, the hyperparameters).
        """
        from probkit.estimators import _joint

        x, rng = inputs(self, X), generator(random_state)
        f, which = _joint.sample(self._fitted, x, n_samples, rng)
        noise = self._noise()[which] * rng.standard_normal(f.shape)
        return float(self._fitted.data["level"]) + f + noise

    def _noise(self) -> np.ndarray:
        """The noise's sd, one for each draw of the hyperparameters."""
        return float(self._fitted.data["spread"]) * np.exp(self._fitted.theta[:, -1])
