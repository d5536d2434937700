"""GPRegressor: Gaussian-process regression with scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np

from probkit.estimators._sklearn import GPEstimator, RegressorMixin, inputs, seed_of, training


class GPRegressor(RegressorMixin, GPEstimator):
    """Gaussian-process regression with normal noise, hyperparameters learnt.

    The outcomes' mean is the process' mean; inputs are used as they are. Everything is computed in
    float64, whatever JAX's setting.

    Args:
        kernel: ``"rbf"``, ``"matern12"``, ``"matern32"``, ``"matern52"`` or ``"matern92"``; a
            kernel of `probkit.kernels`, whose numbers are learnt; or a function of positive
            hyperparameters that returns one.
        inference: ``"auto"`` (exact), ``"exact"``, ``"laplace"``, ``"ep"``, ``"cvi"`` or
            ``"hybrid"`` (for normal noise they agree), ``"nuts"`` (draws of the hyperparameters,
            the function integrated out), ``"svgp"``, ``"tsvgp"`` or ``"sparse_hybrid"`` (inducing
            points, for many rows; ``options={"batch_size": 512}``), or a method such as
            ``pk.GPExact(starts=4)``.
        ard: one length scale a column, for a kernel by name; otherwise one for all.
        options: options of the method that ``inference`` names, such as ``{"objective": "ml2"}``.
        random_state: seed of the search's starts, an int or a ``RandomState``.

    Attributes:
        hyperparameters_: their values by name, in the units of the data.
        log_marginal_likelihood_value_: log evidence at them (not with NUTS).
        posterior_: the `probkit.Posterior`; it is not pickled.
        n_features_in_, feature_names_in_: as in scikit-learn.

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
        from probkit.estimators import _engine

        x, y = training(self, X, y, y_numeric=True)
        method = _engine.method_of(self.inference, self.options, classes=0)
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
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predicted means ``(n*,)``; with ``return_std`` also sds of a new outcome, noise included.

        The sd is that of an observation at ``X``: the function's and the noise's together.
        """
        x = inputs(self, X)
        at = self._fitted
        mean, var = at.predict(x)
        level, spread = float(at.data["level"]), float(at.data["spread"])
        noise = (spread * np.exp(at.theta[:, -1:])) ** 2
        centre = np.mean(mean, axis=0)
        if not return_std:
            return level + centre
        between = np.mean((mean - centre) ** 2, axis=0)
        return level + centre, np.sqrt(np.mean(var + noise, axis=0) + between)
