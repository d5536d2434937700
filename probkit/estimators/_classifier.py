"""GPClassifier: Gaussian-process classification with scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np

from probkit.estimators._sklearn import ClassifierMixin, GPEstimator, inputs, seed_of, training


class GPClassifier(ClassifierMixin, GPEstimator):
    """Gaussian-process classification with a probit link, hyperparameters learnt.

    Probabilities are integrated over the function. More than two classes are told apart one
    against the rest, and the probabilities divided by their sum. Inputs are used as they are, and
    everything is computed in float64, whatever JAX's setting.

    Args:
        kernel: as for `GPRegressor`.
        inference: ``"auto"`` (EP), ``"hybrid"``, ``"ep"``, ``"cvi"``, ``"laplace"``, ``"nuts"``
            (draws of the hyperparameters, the function integrated out by EP), ``"svgp"``,
            ``"tsvgp"`` or ``"sparse_hybrid"`` (inducing points, for many rows), or a method such as
            ``pk.EP(power=0.5)``.
        ard, options, random_state: as for `GPRegressor`.

    Attributes:
        classes_: the labels, sorted.
        hyperparameters_: their values by name (a list of these where there are several fits).
        log_marginal_likelihood_value_: log evidence at them, the mean over the fits.
        posteriors_: the `probkit.Posterior` of each fit; they are not pickled.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Raises:
        ValueError, TypeError: when fitted, for data that scikit-learn refuses, a single class, an
            unknown kernel or inference (``"exact"`` needs normal noise).

    Example:
        >>> import numpy as np
        >>> import probkit as pk
        >>> x = np.linspace(-2, 2, 30)[:, None]
        >>> model = pk.estimators.GPClassifier(random_state=0).fit(x, x[:, 0] > 0)
        >>> model.predict([[-1.0], [1.0]])
        array([False,  True])
    """

    def fit(self, X: Any, y: Any) -> GPClassifier:
        """Fit inputs of shape ``(n, d)`` to labels of shape ``(n,)``."""
        from sklearn.utils.multiclass import check_classification_targets

        from probkit.estimators import _engine

        x, y = training(self, X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"GPClassifier: expected labels of at least two classes, found one class only "
                f"({self.classes_[0]!r}); there is nothing to tell apart"
            )
        method = _engine.method_of(self.inference, self.options, gaussian=False)
        seed = seed_of(self.random_state)
        ones = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        fits = [
            _engine.fitted(
                self.kernel, self.ard, x, (codes == k).astype(np.int32), False, method, seed
            )
            for k in ones
        ]
        self._fits = [f for f, _ in fits]
        self.posteriors_ = [p for _, p in fits]
        values = [f.hyperparameters for f in self._fits]
        self.hyperparameters_ = values if len(values) > 1 else values[0]
        found = [p.approximation for p in self.posteriors_]
        self.log_marginal_likelihood_value_ = (
            None if None in found else float(np.mean([a.log_evidence for a in found if a]))
        )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, ``(n*, classes)``, integrated over the function."""
        from scipy.special import ndtr

        x = inputs(self, X)
        columns = []
        for fit in self._fits:
            mean, var = fit.predict(x)
            columns.append(np.mean(ndtr(mean / np.sqrt(1.0 + var)), axis=0))
        if len(columns) == 1:
            return np.stack([1.0 - columns[0], columns[0]], axis=1)
        p = np.stack(columns, axis=1)
        return p / np.sum(p, axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row, ``(n*,)``."""
        p = self.predict_proba(X)
        return self.classes_[np.argmax(p, axis=1)]
