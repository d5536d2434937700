"""The sparse Gaussian-process methods: three objectives over one kind of step."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array

from probkit.core import (
    Approximation,
    Batch,
    Batches,
    Inference,
    Target,
    check_between,
    check_choice,
    check_count,
    check_options,
)
from probkit.inference.gaussian import _sparse, _sparse_learning, _sparse_posterior
from probkit.inference.gaussian._inducing_points import check_choose, check_points
from probkit.inference.gaussian._sparse_learning import Form, Settings

_OPTIONS = (
    "inducing",
    "batch_size",
    "draws",
    "choose",
    "move",
    "objective",
    "step",
    "rate",
    "screen",
    "max_steps",
    "tolerance",
)


class SparseGP(Inference):
    """A Gaussian process through inducing points. Abstract: see `SVGP`.

    Attributes:
        points: inducing points that were given, ``(m,)`` or ``(m, columns)``, or None.
    """

    points: Any
    draws: int
    step_size: Any
    rate: float
    tolerance: float
    inducing: int | None = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    choose: str = eqx.field(static=True)
    move: bool = eqx.field(static=True)
    objective: str = eqx.field(static=True)
    screen: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        inducing: Any = None,
        batch_size: int | None = None,
        draws: int = 500,
        choose: str = "kmeans",
        move: bool = False,
        objective: str = "map",
        step: float | None = None,
        rate: float = 0.05,
        screen: int = 8,
        max_steps: int = 5000,
        tolerance: float = 0.05,
        **unknown: Any,
    ):
        name = type(self).__name__
        check_options(name, unknown, _OPTIONS)
        check_choice(f"{name}(objective)", objective, ("map", "ml2"))
        if not isinstance(move, bool):
            raise TypeError(f"{name}(move): expected True or False, found {move!r}")
        self.inducing, self.points = check_points(name, inducing)
        size = None if batch_size is None else check_count(f"{name}(batch_size)", batch_size)
        self.batch_size = size
        self.draws = check_count(f"{name}(draws)", draws)
        self.choose, self.move = check_choose(name, choose), move
        self.objective = objective
        top = 1.0 + 1e-12
        self.step_size = None if step is None else check_between(f"{name}(step)", step, 0.0, top)
        self.rate = check_between(f"{name}(rate)", rate, 0.0, 10.0)
        self.screen = check_count(f"{name}(screen)", screen)
        self.max_steps = check_count(f"{name}(max_steps)", max_steps)
        self.tolerance = check_between(f"{name}(tolerance)", tolerance, 0.0, np.inf)

    @property
    @abc.abstractmethod
    def form(self) -> Form:
        """The objective, and what stays when the hyperparameters move."""

    @property
    def chains(self) -> int:
        return 1

    @property
    def num_steps(self) -> int:
        return self.max_steps

    @property
    def requires(self) -> tuple[str, ...]:
        return ("gaussian_latent",)

    @property
    def batches(self) -> Batches | None:
        return None if self.batch_size is None else Batches(self.batch_size)

    def _settings(self) -> Settings:
        return Settings(
            name=type(self).__name__,
            form=self.form,
            number=self.inducing,
            given=self.points,
            choose=self.choose,
            move=self.move,
            objective=self.objective,
            screen=self.screen,
            batch=self.batch_size,
            step=self.step_size,
            rate=self.rate,
            tolerance=self.tolerance,
        )

    def init(self, key: Array, target: Target) -> dict[str, Any]:
        return _sparse_learning.init(key, target, self._settings())

    def step(
        self, key: Array, target: Target, state: dict[str, Any], batch: Batch | None, t: Array
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        return _sparse_learning.step(target, state, batch, self._settings())

    def terminate(self, state: dict[str, Any], info: dict[str, Array]) -> tuple[Array, Array]:
        return _sparse_learning.terminate(state)

    def finish(
        self, key: np.ndarray, target: Target, state: Any, history: dict[str, np.ndarray]
    ) -> Approximation:
        return _sparse_posterior.finish(target, state, history, int(self.draws), self._settings())


class SVGP(SparseGP):
    """A sparse variational Gaussian process: natural gradients on q, mini-batches of rows.

    For more rows than the dense engines can hold: a step of ``b`` rows and ``m`` inducing points
    costs O(b m^2 + m^3), and nothing grows with the square of the rows. The optimum over q of

        ELBO = sum_i E_q[log p(y_i | f_i)] - KL(q(u) || p(u)),

    hyperparameters by Adam on the same bound; any likelihood whose terms depend on one entry of the
    function each. The result's draws are of the hyperparameters (a point) and of
    ``{f}_inducing``, the function less its prior mean at the inducing points; rows come from
    ``posterior.predict(data)``, and their moments are in ``posterior.approximation.stats``
    (``f_mean``, ``f_sd``). ``posterior.log_evidence`` is the bound. Computed in float64 as all of a
    model with a process is: bounds are differences of sums over rows, and ``K_ZZ`` is close to
    singular for smooth kernels.

    Args:
        inducing: how many inducing points (by default 128, or the rows if fewer), or the points
            themselves, ``(m,)`` or ``(m, columns)``.
        batch_size: rows a step; by default all. From some thousand rows on, 256 to 1024 of them.
        draws: draws that stand for the result.
        choose: ``"kmeans"`` spreads points like the rows, ``"greedy"`` puts each where the variance
            that is left is largest, at the hyperparameters that the search begins with.
        move: whether the points move with the hyperparameters; codes among the columns would too.
        objective: ``"map"`` maximises the bound plus the log prior of the hyperparameters (in the
            unconstrained space), ``"ml2"`` the bound alone.
        step: length of the natural-gradient steps. By default 0.05 with mini-batches; otherwise 1
            for normal terms, whose optimum over q is one step away, and 0.5 for others.
        rate: Adam's largest move of a hyperparameter's logarithm in one step.
        screen: random starting points, of which the best is taken.
        max_steps: steps at the most. They end by themselves before, when windows of them stop
            gaining; some evaluations on all rows then find the optimum, unless rows times
            ``m^2`` exceed 4e9 (240,000 rows at 128 points).
        tolerance: nats that a window of steps must gain for more to follow (with mini-batches a
            thousandth of a nat a row at least).

    Raises:
        TypeError, ValueError: a misspelt option or one out of range, points that repeat; at
            fitting, more points than rows, points with other columns, or mini-batches of
            observations that do not lie along the function's rows.

    Example:
        >>> import probkit as pk
        >>> pk.SVGP(inducing=50, batch_size=256).batches.size
        256
    """

    __init__ = SparseGP.__init__

    @property
    def form(self) -> Form:
        return Form(_sparse.elbo_at, tied=False)


class TSVGP(SparseGP):
    """A sparse variational Gaussian process whose sites are tied to the inducing values.

    The optimum of `SVGP` at any fixed hyperparameters. When these move, the sites on ``u`` stay,
    not those on the whitened ``v``: the bound as a function of the hyperparameters is tighter
    around the optimum for q, so that fewer steps are needed (Adam, Chang, Khan and Solin 2021).
    Options as for `SVGP`.

    Raises:
        TypeError, ValueError: as for `SVGP`.

    Example:
        >>> import probkit as pk
        >>> pk.TSVGP(choose="greedy").choose
        'greedy'
    """

    __init__ = SparseGP.__init__

    @property
    def form(self) -> Form:
        return Form(_sparse.elbo_at, tied=True)


class SparseHybridEP(SparseGP):
    """The hybrid through inducing points: q of `TSVGP`, hyperparameters by power EP's energy.

    They end where the energy (power one) at q's sites, differentiated with each row's site frozen,
    has no slope, as in `HybridEP`, which it is at ``inducing`` = the rows. The log evidence is that
    energy, which is no bound; the ELBO stands in ``posterior.approximation.stats["elbo"]``. Options
    as for `SVGP`.

    Raises:
        TypeError, ValueError: as for `SVGP`.

    Example:
        >>> import probkit as pk
        >>> pk.SparseHybridEP(inducing=20).requires
        ('gaussian_latent',)
    """

    __init__ = SparseGP.__init__

    @property
    def form(self) -> Form:
        return Form(_sparse.energy_at, tied=True)
