"""GPClassifier: Gaussian-process classification with scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np

from probkit.core import check_choice
from probkit.estimators._sklearn import ClassifierMixin, GPEstimator, inputs, seed_of, training

MULTI_CLASS = ("one_vs_rest", "softmax")


class GPClassifier(ClassifierMixin, GPEstimator):
    """Gaussian-process classification, hyperparameters learnt.

    Two classes are told apart by one function with a probit link. For more there is a choice:

    - ``multi_class="one_vs_rest"``: each class against all others, a fit with hyperparameters of
      its own each, and the probabilities divided by their sum;
    - ``multi_class="softmax"``: one model of all classes, ``p(y = c) = softmax(f_1, ..., f_C)_c``,
      the functions independent beforehand with one kernel, whose hyperparameters all classes
      share: what differs between classes is learnt from the labels, not from a scale a class.
      Its evidence and its probabilities are those of one joint posterior, and CVI's are better
      calibrated than one against the rest. A fit takes matrices of ``C n`` rows, so that it is for
      some hundred rows of a few classes. ``"laplace"`` takes ``C + 1`` matrices of ``n`` rows
      instead, and is under-confident. An engine that takes a single process says so.

    Probabilities are integrated over the functions. Inputs are used as they are, and everything is
    computed in float64, whatever JAX's setting.

    Args:
        kernel: as for `GPRegressor`.
        inference: ``"auto"`` (EP; CVI for a softmax), ``"hybrid"``, ``"ep"``, ``"cvi"``,
            ``"laplace"``, ``"nuts"`` (draws of the hyperparameters, the function integrated out by
            EP, or Laplace's method where there are several), ``"svgp"``, ``"tsvgp"`` or
            ``"sparse_hybrid"`` (inducing points, for many rows), or a method such as
            ``pk.EP(power=0.5)``.
        multi_class: ``"one_vs_rest"`` or ``"softmax"``; nothing to choose with two classes.
        ard, options, random_state: as for `GPRegressor`.

    Attributes:
        classes_: the labels, sorted.
        hyperparameters_: their values by name (a list of these where there are several fits, one
            a class).
        log_marginal_likelihood_value_: log evidence at them, the mean over the fits.
        posteriors_: the `probkit.Posterior` of each fit; they are not pickled.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Warns:
        ConvergenceWarning: when fitted, that the verdict on a fit is not OK: what failed, and what
            to do (``posteriors_[0].check()`` has the whole verdict).

    Raises:
        ValueError, TypeError: when fitted, for data that scikit-learn refuses, a single class, an
            unknown kernel, inference (``"exact"`` needs normal noise) or ``multi_class``, or an
            engine that does not take several processes with ``multi_class="softmax"``.

    Example:
        >>> import numpy as np
        >>> import probkit as pk
        >>> x = np.linspace(-2, 2, 30)[:, None]
        >>> model = pk.estimators.GPClassifier(random_state=0).fit(x, x[:, 0] > 0)
        >>> model.predict([[-1.0], [1.0]])
        array([False,  True])
    """

    def __init__(
        self,
        kernel: Any = "matern52",
        *,
        inference: Any = "auto",
        multi_class: Any = "one_vs_rest",
        ard: Any = False,
        options: Any = None,
        random_state: Any = None,
    ):
        super().__init__(
            kernel, inference=inference, ard=ard, options=options, random_state=random_state
        )
        self.multi_class = multi_class

    def fit(self, X: Any, y: Any) -> GPClassifier:
        """Fit inputs of shape ``(n, d)`` to labels of shape ``(n,)``."""
        from sklearn.utils.multiclass import check_classification_targets

        from probkit.estimators import _engine, _verdict

        x, y = training(self, X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"GPClassifier: expected labels of at least two classes, found one class only "
                f"({self.classes_[0]!r}); there is nothing to tell apart"
            )
        check_choice("GPClassifier(multi_class)", self.multi_class, MULTI_CLASS)
        count = len(self.classes_)
        joint = count > 2 and self.multi_class == "softmax"
        method = _engine.method_of(self.inference, self.options, count if joint else 2)
        seed = seed_of(self.random_state)
        ones = [codes == k for k in ([1] if count == 2 else range(count))]
        labels = [codes] if joint else ones
        fits = [
            _engine.fitted(
                self.kernel, self.ard, x, y.astype(np.int32), count if joint else 2, method, seed
            )
            for y in labels
        ]
        self._fits = [f for f, _ in fits]
        self.posteriors_ = [p for _, p in fits]
        values = [f.hyperparameters for f in self._fits]
        self.hyperparameters_ = values if len(values) > 1 else values[0]
        found = [p.approximation for p in self.posteriors_]
        self.log_marginal_likelihood_value_ = (
            None if None in found else float(np.mean([a.log_evidence for a in found if a]))
        )
        of = [f"class {c!s}" for c in self.classes_] if len(fits) > 1 else [""]
        faults = {k: _verdict.failed(f, p) for k, (f, p) in zip(of, fits, strict=True)}
        places = {k: f"posteriors_[{i}]" for i, k in enumerate(of)}
        _verdict.warn("GPClassifier", places, faults)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, ``(n*, classes)``, integrated over the functions."""
        from scipy.special import ndtr

        from probkit.estimators._softmax import probabilities

        x = inputs(self, X)
        if len(self._fits) == 1 and len(self.classes_) > 2:
            return probabilities(self._fits[0], x)
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
