r"""What the two estimators share: models that are compiled once, rows that are padded, predictions.

Small data sets are padded to a power of two of rows (the added ones are not observed, so that they
change nothing) and, for isotropic named kernels, by columns of zeros up to a multiple of 16: a
cross-validation whose folds differ by a row, or a search over data sets, compiles one program.
Above 256 rows nothing is padded, since there a program's time counts, not its compilation.

Predictions condition on the sites: ``mean = k*' alpha``, ``var = k** - |L^-1 S k*|^2``, in float64.
With NUTS they are those of the mixture over draws of the hyperparameters, one draw after the other.

What the outcomes are is told by a number of classes: none for normal noise, two for one function
with a probit link, more for one function a class under a softmax, with predictions in `_softmax`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import distributions as dist

from probkit import _fit
from probkit.core import Inference, Target, check_choice
from probkit.core._programs import compiled
from probkit.core._trees import in_precision
from probkit.estimators._kernels import KernelPlan, kernel_plan, sized
from probkit.inference import (
    CVI,
    EP,
    NUTS,
    SVGP,
    TSVGP,
    GPExact,
    GPLaplace,
    HybridEP,
    Marginal,
    SparseHybridEP,
)
from probkit.inference.gaussian import _marginal
from probkit.inference.gaussian._conditioning import Sites, factorise
from probkit.inference.gaussian._posterior import problem_of
from probkit.models import BernoulliProbit, Model, gp, rv

METHODS: dict[str, Callable[..., Inference]] = {
    "exact": GPExact,
    "laplace": GPLaplace,
    "ep": EP,
    "cvi": CVI,
    "hybrid": HybridEP,
    "svgp": SVGP,
    "tsvgp": TSVGP,
    "sparse_hybrid": SparseHybridEP,
}
#: Rows up to which data are padded, the fewest padded to, multiples of rows under a softmax and of
#: columns, rows of a block of predictions, and draws of hyperparameters that a mixture is made of.
_SMALL, _FEWEST, _FEW, _COLUMNS, _BLOCK, _MIXTURE = 256, 64, 16, 16, 1024, 100
#: Exact searches where there is a length scale a column: of two, three in eight ended 20 nats below
#: the best optimum of a set of 277 rows and 6 columns; of four, none.
_STARTS_ARD = 4
#: Priors of logs of hyperparameters: wide enough for a factor of 20 either way.
_WIDTH, _NOISE = 1.5, -1.5


def method_of(
    inference: Any, options: Mapping[str, Any] | None, classes: int, ard: bool = False
) -> Inference:
    """The method that ``inference`` names, or itself.

    Args:
        inference: a name or a method.
        options: of the method that is named.
        classes: what the outcomes are; see the module's text.
        ard: whether there is a length scale a column, which makes several optima common.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a method, or an unknown option.
    """
    if isinstance(inference, Inference):
        if options:
            raise TypeError("options: a method object holds its options already; leave them out")
        if not {"gaussian_latent", "gaussian_latents"} & set(inference.requires):
            raise TypeError(
                "inference: expected an engine of Gaussian processes, as pk.EP(), or "
                f"pk.Marginal(...), found {inference!r}; to draw the hyperparameters take "
                "pk.Marginal(pk.NUTS())"
            )
        return inference
    names = ["auto", *METHODS, "nuts"]
    if not isinstance(inference, str):
        raise TypeError(
            f"inference: expected one of {names} or a method such as pk.EP(), found {inference!r}"
        )
    check_choice("inference", inference, names)
    kind = _kind(classes)
    if inference == "auto":
        inference = {"normal": "exact", "probit": "ep", "softmax": "cvi"}[kind]
    if inference == "nuts":
        engine = {"normal": "exact", "probit": "ep", "softmax": "auto"}[kind]
        return Marginal(NUTS(**(options or {})), engine=engine)
    more = {"starts": _STARTS_ARD} if ard and inference == "exact" else {}
    return METHODS[inference](**{**more, **(options or {})})


def _kind(classes: int) -> str:
    """What the outcomes are, in a word."""
    return "normal" if classes == 0 else "probit" if classes == 2 else "softmax"


@functools.lru_cache(maxsize=32)
def _named_model(kernel: str, columns: int, ard: bool, classes: int) -> tuple[Model, KernelPlan]:
    plan = kernel_plan(kernel, columns, ard)
    return _model(plan, classes), plan


def _model(plan: KernelPlan, classes: int) -> Model:
    def noisy(f: Array, log_noise: Any, spread: Any, level: Any, seen: Any) -> Any:
        return dist.Normal(level + f, spread * jnp.exp(log_noise)).mask(seen)

    def label(f: Array, seen: Any) -> Any:
        # A row that was added is certain to be a one, whatever f is there.
        return BernoulliProbit(jnp.where(seen, f, 40.0))

    def one_of(seen: Any, *f: Array) -> Any:
        return dist.CategoricalLogits(jnp.stack(f, -1)).mask(seen)

    nodes: dict[str, Any] = {}
    kernel: Callable[..., Any] = lambda unit, spread: plan.make(None, unit, spread)  # noqa: E731
    if plan.start.size:
        # As logs of ratios to where they begin, so that searches and their walls stand around that.
        nodes["log_kernel"] = rv(dist.Normal(0.0, _WIDTH), dims="hyper")
        kernel = lambda log_kernel, start, unit, spread: plan.make(  # noqa: E731
            start + log_kernel, unit, spread
        )
    kind = _kind(classes)
    functions = [f"f{k}" for k in range(classes)] if kind == "softmax" else ["f"]
    nodes |= {name: gp(kernel, at="x") for name in functions}
    if kind == "normal":
        nodes["log_noise"] = dist.Normal(_NOISE, _WIDTH)
        nodes["y"] = rv(noisy, dims="row")
    elif kind == "probit":
        nodes["y"] = rv(label, dims="row")
    else:
        nodes["y"] = rv(one_of, dims="row", parents=["seen", *functions])
    return Model(**nodes)


@dataclass
class Fitted:
    """What predictions need: plain arrays, and how to make the target again.

    Attributes:
        recipe: kernel, number of columns, ard, and the number of classes (none: normal noise).
        data: what the model was bound to.
        theta: hyperparameters, ``(draws, count)``; one draw where they are an optimum.
        sites: natural parameters, shifts and precisions: two arrays of as many draws; of a sparse
            method nothing.
        basis: of a sparse method the inducing points, and the two arrays that predictions are
            linear and quadratic in.
    """

    recipe: tuple[Any, int, bool, int]
    data: dict[str, np.ndarray]
    theta: np.ndarray
    sites: tuple[np.ndarray, np.ndarray]
    basis: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")}

    @property
    def made(self) -> tuple[Model, KernelPlan]:
        """The model and its kernel's plan."""
        if "_made" not in self.__dict__:
            self._made = _made(*self.recipe)
        return self._made

    @property
    def target(self) -> Target:
        """The model with its data."""
        if "_target" not in self.__dict__:
            self._target = _bind(self.made[0], self.data)
        return self._target

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Values by name, in the data's units; medians of the draws where there are several."""
        plan, theta = self.made[1], np.median(self.theta, axis=0)
        scales = [self.data[s] if isinstance(s, str) else s for s in plan.scales]
        logs = theta[: len(plan.names)] + self.data.get("start", 0.0)
        out = {k: float(s * np.exp(t)) for k, s, t in zip(plan.names, scales, logs, strict=True)}
        if len(theta) > len(plan.names):
            out["noise"] = float(self.data["spread"] * np.exp(theta[-1]))
        return out

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances of ``f`` at rows ``(n*, columns)``: ``(draws, n*)`` each."""
        n, blocks = len(x), self.blocks(x)
        out = [
            [self._block(theta, weights, block) for block in blocks]
            for theta, weights in zip(self.theta, self._weights(), strict=True)
        ]
        mean, var = np.moveaxis(np.asarray(out), 2, 0).reshape(2, len(self.theta), -1)
        return mean[:, :n], var[:, :n]

    def blocks(self, x: np.ndarray) -> np.ndarray:
        """Rows ``(n*, columns)`` in blocks ``(blocks, size, columns)``, the last one filled up."""
        wide = self.data["x"].shape[1] - x.shape[1]
        x = np.pad(np.asarray(x, np.float64), ((0, 0), (0, wide)))
        size = min(_BLOCK, max(_FEWEST, 1 << (len(x) - 1).bit_length()))
        whole = np.resize(x, (math.ceil(len(x) / size) * size, x.shape[1]))
        return whole.reshape(-1, size, x.shape[1])

    def _weights(self) -> Iterable[tuple[Any, Any]]:
        """For each draw what predictions are linear in; kept where there is one draw only."""
        if self.basis is not None:
            return [self.basis[1:]]
        if "_kept" in self.__dict__:
            return self._kept
        program = self.target.program

        def fn(theta: Array, sites: tuple, arrays: dict) -> tuple[Array, Array]:
            problem = problem_of(program, arrays)
            factor = factorise(problem.prior(theta), Sites(*sites))
            return factor.alpha, factor.inverse * factor.s

        def one(theta: np.ndarray, *sites: np.ndarray) -> tuple[Array, Array]:
            with in_precision(np.float64):
                args = (theta, sites, self.target.arrays)
                return compiled(program, "gp_weights", "", fn, args)(*args)

        made = (one(*draw) for draw in zip(self.theta, *self.sites, strict=True))
        if len(self.theta) > 1:
            return made
        self._kept = list(made)
        return self._kept

    def _block(self, theta: np.ndarray, weights: Any, points: np.ndarray) -> np.ndarray:
        program = self.target.program

        near = self.data["x"] if self.basis is None else self.basis[0]

        def fn(
            theta: Array, arrays: dict, alpha: Array, half: Array, near: Array, points: Array
        ) -> Array:
            latent = problem_of(program, arrays).latent
            cross = latent.cross_covariance(theta, near, points, arrays)
            whole = latent.variance(theta, points, arrays)
            var = whole - jnp.sum((half @ cross) ** 2, axis=0)
            tiny = 8.0 * jnp.finfo(whole.dtype).eps * whole
            return jnp.stack([cross.T @ alpha, jnp.maximum(var, tiny)])

        with in_precision(np.float64):
            args = (theta, self.target.arrays, *weights, near, points)
            return np.asarray(compiled(program, "gp_points", "", fn, args)(*args))


def _made(kernel: Any, columns: int, ard: bool, classes: int) -> tuple[Model, KernelPlan]:
    if isinstance(kernel, str):
        return _named_model(kernel, columns if ard else 0, ard, classes)
    plan = kernel_plan(kernel, columns, ard)
    return _model(plan, classes), plan


def _bind(model: Model, data: Mapping[str, np.ndarray]) -> Target:
    dims: dict[str, tuple[str, ...]] = {"x": ("row", "column"), "y": ("row",), "seen": ("row",)}
    if "start" in data:
        dims["start"] = ("hyper",)
    return model.bind(dict(data), dims=dims, reparam="off")


def columns_of(
    x: np.ndarray, y: np.ndarray, plan: KernelPlan, classes: int
) -> dict[str, np.ndarray]:
    """The model's data: rows and columns padded, scales, centres of priors."""
    n, d = x.shape
    small, gaussian = n <= _SMALL, classes == 0
    rows = n
    if small and classes > 2:
        rows = n + -n % _FEW  # the cost of a row is that of one a class, cubed
    elif small:
        rows = max(_FEWEST, 1 << (n - 1).bit_length())
    wide = -d % _COLUMNS if plan.named and small else 0
    variance = float(np.sum(np.var(x, axis=0)))
    spread = float(np.std(y)) if gaussian else 1.0
    # Whatever varies by rounding only does not vary.
    unit = math.sqrt(variance) if variance > 1e-20 * float(np.mean(x**2)) else 1.0
    level = float(np.mean(y)) if gaussian else 0.0
    data = {
        "x": np.pad(np.pad(x, ((0, rows - n), (0, 0)), mode="edge"), ((0, 0), (0, wide))),
        "y": np.pad(y, (0, rows - n), constant_values=1),
        "seen": np.arange(rows) < n,
        "unit": np.asarray(unit),
        "spread": np.asarray(spread if spread > 1e-10 * (abs(level) + 1e-300) else 1.0),
    }
    if gaussian:
        data["level"] = np.asarray(level)
    if plan.start.size:
        sizes = plan.given and "level" in data
        data["start"] = sized(plan, x, float(data["spread"])) if sizes else plan.start
    return data


def fitted(
    kernel: Any,
    ard: bool,
    x: np.ndarray,
    y: np.ndarray,
    classes: int,
    method: Inference,
    seed: int,
) -> tuple[Fitted, Any]:
    """Fit rows ``x`` of shape ``(n, d)`` to outcomes ``(n,)``; also returns the Posterior."""
    recipe = (kernel, x.shape[1], ard, classes)
    model, plan = _made(*recipe)
    data = columns_of(np.asarray(x, np.float64), y, plan, classes)
    target = _bind(model, data)
    posterior = _fit.fit(target, method=method, seed=seed, progress=False)
    found, basis = posterior.approximation, None
    if found is not None and "inducing_points" in found.stats:
        stats = found.stats
        none = np.zeros((1, 0))
        theta, sites = np.asarray(stats["theta"])[None], (none, none)
        basis = (stats["inducing_points"], stats["mean_weights"], stats["variance_weights"])
    elif found is not None and "theta" in found.stats:
        stats = found.stats
        theta = np.asarray(stats["theta"])[None]
        sites = (stats["site_shift"][None], stats["site_precision"][None])
    else:
        theta, sites = _mixture(target, posterior, method)
    out = Fitted(recipe, data, theta, sites, basis)
    out._made, out._target = (model, plan), target
    return out, posterior


def _mixture(
    target: Target, posterior: Any, method: Any
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Some draws of the hyperparameters, and the sites at each."""
    if not isinstance(method, Marginal):
        raise TypeError(
            f"inference: expected an engine of Gaussian processes or pk.Marginal(...), found "
            f"{method!r}"
        )
    flat = np.asarray(posterior._drawn.unconstrained)
    theta = _marginal.hyperparameters(target, flat.reshape(-1, flat.shape[-1]))
    theta = theta[np.linspace(0, len(theta) - 1, min(_MIXTURE, len(theta))).astype(int)]
    program = target.program

    def fn(thetas: Array, arrays: dict) -> Sites:
        problem = _marginal.posed_for(program, arrays, method.engine)
        engine = _marginal.engine_named(method.engine, problem)
        return jax.lax.map(lambda t: _marginal.sites_at(problem, engine, t)[0], thetas)

    with in_precision(np.float64):
        args = (theta, target.arrays)
        found = compiled(program, "gp_sites", method.engine, fn, args)(*args)
        return theta, (np.asarray(found.l1), np.asarray(found.l2))
