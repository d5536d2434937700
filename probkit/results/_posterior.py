"""Posterior: the one result that every method returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probkit.core import (
    Approximation,
    Draws,
    Estimate,
    Inference,
    Run,
    Status,
    Target,
    Weights,
    listing,
    nearest,
)
from probkit.results import _approximations, _groups
from probkit.results._checks import Check, loo_checks, mcmc_checks
from probkit.results._values import constrained, log_densities, map_draws
from probkit.results._verdict import Verdict

if TYPE_CHECKING:
    import pandas
    import xarray

    from probkit.results._evidence import Evidence
    from probkit.results._psis import Loo


class Posterior:
    """Draws with names, their statistics, a verdict, and what can be computed from them.

    Every method returns one, with the same schema. Made by `probkit.fit`; everything beyond the
    draws is computed when it is asked for, by compiled programs that refits share.

    Attributes:
        target: the model with its data.
        method: the configured method.
        status: how the run ended.
        seconds: wall-clock seconds by part.
        state: the run's last state; pass it as ``resume=`` to go on.
        approximation: the distribution that was fitted, or None for methods that draw.

    Example:
        >>> import probkit as pk
        >>> model = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1)))
        >>> posterior = pk.fit(model, {"y": 1.0}, method=pk.ExactGaussian(), progress=False)
        >>> posterior.summary(stats=("mean", "sd")).round(1)
            mean   sd
        mu   0.5  0.7
    """

    def __init__(self, target: Target, method: Inference, run: Run, seed: np.ndarray):
        own = run.output.target if isinstance(run.output, Approximation) else None
        self.target = target if own is None else own
        self.method = method
        self.status = run.status
        self.seconds = dict(run.seconds)
        self.state = run.snapshot
        self.approximation = run.output if isinstance(run.output, Approximation) else None
        self._run = run
        self._key = np.asarray(seed)
        self._cache: dict[str, Any] = {}
        self._inherited: tuple[Check, ...] = ()

    # -- draws ------------------------------------------------------------------------------

    @cached_property
    def _drawn(self) -> Draws:
        output = self._run.output
        if isinstance(output, Draws):
            return output
        return _groups.sampled(self.target, output, self._stream(1))

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Draws by site in the model's space: host arrays of shape ``(chain, draw, *shape)``."""
        return constrained(self.target, self._drawn.unconstrained, self._stream(2))

    @property
    def stats(self) -> dict[str, np.ndarray]:
        """The method's statistics by name, shape ``(chain, draw)``."""
        return self._drawn.stats

    @property
    def draws(self) -> xarray.Dataset:
        """The posterior draws: dims chain, draw, and the model's own, with coords."""
        return self.groups("posterior")["posterior"]

    def __getitem__(self, name: str) -> xarray.DataArray:
        if name not in self.values:
            raise KeyError(
                f"the posterior has no site {name!r}.{nearest(name, self.values)} "
                f"It has {listing(self.values)}."
            )
        return self.draws[name]

    def _stream(self, number: int) -> np.ndarray:
        """Raw key data for one use: the run's own folded by a number, on the host."""
        mixed = np.random.SeedSequence([*map(int, self._key.ravel()), number])
        return mixed.generate_state(self._key.size).astype(np.uint32).reshape(self._key.shape)

    # -- judging ----------------------------------------------------------------------------

    def label(self, site: str, index: tuple[int, ...]) -> str:
        """``theta[Choate]``: a component's name with its coordinate labels."""
        return _groups.label(self.target, site, index)

    def summary(self, var_names: Any = None, **options: Any) -> pandas.DataFrame:
        """Means, intervals and diagnostics of every component, a data frame with the mean first.

        Args:
            var_names: sites to report; all by default.
            **options: ``hdi_prob=``, ``stats=``, ``constants=`` (by default, components that
                never vary beside others of their site that do, as on the diagonal of a correlation
                matrix, have no row); see `probkit.results._summary.summarise`.
        """
        from probkit.results._summary import picked, summarise

        values = picked(self.values, var_names)
        if self._drawn.unconstrained.shape[1] == 0:
            raise ValueError("summary: the run ended before its first draw; see posterior.check()")
        return summarise(values, self.label, **options)

    def check(self, *, loo: bool = False) -> Verdict:
        """The verdict: an entry each for what could be wrong, with figure, threshold and advice.

        Never raises. With ``loo=True`` (or once `loo` was called) it includes the Pareto k of
        leave-one-out.
        """
        checks = [self._status_check()]
        if self._drawn.unconstrained.shape[1] == 0:
            advice = "the run ended before its first draw; resume it or ask for less warm-up"
            return Verdict(
                (*checks, Check("draws", False, 0.0, 1.0, "", advice, ">")), self._words()
            )
        if self.approximation is not None:
            checks += _approximations.checks(self)
        else:
            checks += mcmc_checks(
                _groups.judged(self.target, self.values), self.stats, labels=self.label
            )
            checks += self._inherited
        if loo or "loo" in self._cache:
            checks += self._loo_check()
        return Verdict(tuple(checks), self._words(), _approximations.notes(self))

    def _words(self) -> str:
        return "" if self.status.ok else self.status.message

    def _status_check(self) -> Check:
        code = float(self.status.value)
        good = self.status in (Status.OK, Status.STOPPED)
        return Check("status", good, code, 0.0, "", "" if good else self.status.message)

    def _loo_check(self) -> list[Check]:
        try:
            return list(loo_checks(self.loo()))
        except Exception as error:
            reason = f"not computed: {type(error).__name__}: {error}"
            return [Check("loo_k", None, float("nan"), 0.0, "", reason)]

    @property
    def log_weights(self) -> np.ndarray | None:
        """Log target minus log approximation at the draws, or None for methods that draw."""
        weights = self._drawn.stats.get("log_weight")
        return None if weights is None else weights.reshape(-1)

    @cached_property
    def weights(self) -> Weights | None:
        """An approximation judged: 20,000 draws with log p and log q, k-hat, ELBO, evidence.

        None for methods that draw, and for an approximation without a density.
        """
        return _approximations.weights(self)

    @property
    def elbo(self) -> Estimate:
        """The evidence lower bound of the approximation, with its standard error.

        Raises:
            ValueError: the method has no approximation with a density.
        """
        own = {} if self.approximation is None else self.approximation.stats
        if self.weights is None and "elbo" in own:
            return Estimate(own["elbo"], 0.0)
        return _approximations.demanded(self, "elbo").elbo

    def importance_resample(self, draws: int | None = None, *, seed: int = 0) -> Posterior:
        """A posterior of draws that are resampled by their smoothed importance weights.

        What the approximation covers but weighs wrongly is corrected; what it does not reach is
        not: look at ``check()["k_hat"]`` first. Each of the draws that judge the fit (20,000,
        and as many wider ones where the approximation's own weights are not good) is taken a
        number of times in proportion to its weight (systematic resampling), in random order.

        Args:
            draws: how many; as many as the posterior has by default.
            seed: a whole number.

        Raises:
            ValueError: the method has no approximation with a density, or no weight is finite.

        Example:
            >>> import probkit as pk
            >>> model = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1)))
            >>> posterior = pk.fit(model, {"y": 0.5}, method=pk.Laplace(), progress=False)
            >>> posterior.importance_resample(1000).draws.sizes["draw"]
            1000
        """
        return _approximations.resampled(self, draws, seed)

    @property
    def log_evidence(self) -> Evidence:
        """The log marginal likelihood with its standard error.

        For draws: bridge sampling, or importance sampling from a t fitted to them, whichever has
        the smaller error. For an approximation: importance sampling from it, 20,000 draws with
        smoothed weights (`elbo` stands beside it); a Gaussian-process engine's own. Meaningful
        where all priors are proper.

        Raises:
            ValueError: an approximation without a density and without an evidence of its own.
        """
        if "evidence" not in self._cache:
            self._cache["evidence"] = _groups.evidence(self)
        return self._cache["evidence"]

    def log_likelihood(self) -> xarray.Dataset:
        """Log likelihood of each observation at each draw (imputed entries are left out)."""
        return self.groups("log_likelihood")["log_likelihood"]

    def loo(self) -> Loo:
        """Leave-one-out predictive accuracy.

        By Pareto-smoothed importance sampling; by the engine's cavities where a Gaussian process
        was fitted at a point of its hyperparameters with an observation at each row (exact for
        normal noise, given the hyperparameters; every k is 0 then).
        """
        if "loo" not in self._cache:
            self._cache["loo"] = _groups.loo_of(self)
        return self._cache["loo"]

    # -- predicting -------------------------------------------------------------------------

    def predict(self, data: Any = None, *, coords: Mapping[str, Any] | None = None, seed: int = 0):
        """The posterior predictive distribution, for new data or (None) the training inputs.

        New data replace the old rows; dims that are not rows keep their coords, and categories are
        matched by label. Variables along the rows (and along any dim whose coords are given anew)
        are drawn afresh from their distribution given the rest.

        Returns:
            An ArviZ object with a ``predictions`` group (for new data; ``posterior_predictive`` for
            the training inputs) that has chain, draw, and the model's dims and coords.
        """
        from probkit.results._arviz import to_arviz
        from probkit.results._predict import predictions

        if data is None and coords is None:
            return to_arviz(self.groups("posterior_predictive", "observed_data"), self.attrs)
        return to_arviz(predictions(self, data, coords, seed), self.attrs)

    def log_predictive(self, data: Any, *, coords: Mapping[str, Any] | None = None, seed: int = 0):
        """Log predictive density of held-out observations, each integrated over the posterior.

        By the engine's own integral where a Gaussian process was fitted at a point of its
        hyperparameters and has an observation at each row. Otherwise by the mean over the draws,
        whose error grows for observations far out in the tails.

        Returns:
            A DataArray over the rows; a Dataset where several variables are observed.
        """
        from probkit.results._predict import log_predictive

        return log_predictive(self, data, coords, seed)

    # -- handing over -----------------------------------------------------------------------

    @property
    def attrs(self) -> dict[str, Any]:
        """Facts of the run, kept with every ArviZ object and file."""
        return _groups.facts(self)

    def groups(self, *names: str) -> dict[str, xarray.Dataset]:
        """ArviZ groups as xarray Datasets; all that can be made if no name is given."""
        return _groups.groups(self, names)

    def to_arviz(self, *names: str) -> Any:
        """An ArviZ object: InferenceData on ArviZ 0.x, a DataTree on 1.x.

        Its log likelihood has no rows for missing outcomes (ArviZ counts every entry).
        """
        from probkit.results._arviz import to_arviz, without_holes

        groups = dict(self.groups(*names))
        if "log_likelihood" in groups:
            groups["log_likelihood"] = without_holes(groups["log_likelihood"])
        return to_arviz(groups, self.attrs)

    def report(self, path: str | Path, title: str | None = None) -> Path:
        """Write one self-contained HTML page: the verdict, the summary, and pictures."""
        from probkit.results._report import write_report

        graph = _groups.graph_svg(self.target)
        return write_report(self.groups(), path, self.check(loo=True), graph, title, self.attrs)

    def save(self, path: str | Path) -> Path:
        """Write all groups to a netCDF file that ArviZ reads."""
        from probkit.results._netcdf import save_groups
        from probkit.results._report_data import verdict_to_json

        attrs = {**self.attrs, "verdict": verdict_to_json(self.check(loo=True))}
        graph = _groups.graph_svg(self.target)
        if graph is not None:
            attrs["model_graph"] = graph
        return save_groups(self.groups(), path, attrs)

    @staticmethod
    def load(path: str | Path):
        """A saved posterior: its groups, verdict, summary and report, without the model."""
        from probkit.results._saved import SavedPosterior

        return SavedPosterior.load(path)

    def map(self, fn: Callable[..., Any]) -> dict[str, np.ndarray]:
        """``fn(values)`` for each draw's dictionary of values; returns arrays by name.

        Args:
            fn: traceable; takes a dictionary of site values, returns a dictionary of arrays.
        """
        lead = self._drawn.unconstrained.shape[:2]
        rows = {k: v.reshape(-1, *v.shape[2:]) for k, v in self.values.items()}
        # The function itself is in the key: it stays alive as long as its program, so that its
        # place in memory (and thus its hash) is no other function's.
        once = lambda key, row, arrays: fn(row)  # noqa: E731
        out = map_draws(self.target, "map", once, rows, self._stream(9), variant=fn)
        return {k: v.reshape(lead + v.shape[1:]) for k, v in out.items()}

    def __repr__(self) -> str:
        lead = self._drawn.unconstrained.shape[:2]
        kind = type(self.method).__name__
        return (
            f"Posterior({kind}, {lead[0]} x {lead[1]} draws of {listing(self.values)})\n"
            f"{self.check()}"
        )

    def _repr_html_(self) -> str:
        return self.check()._repr_html_()


def densities(target: Target) -> Callable[[np.ndarray], np.ndarray]:
    """The log density as a function of host arrays of points."""
    return lambda points: log_densities(target, points)
