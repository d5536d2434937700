"""The ArviZ groups of a posterior, each made when it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from probkit._version import __version__
from probkit.core import Approximation, Draws, Target, Weights, listing, nearest
from probkit.core._target import HELD
from probkit.core._weighing import draw
from probkit.results._values import constrained, log_densities, map_draws

if TYPE_CHECKING:
    import xarray

    from probkit.results._posterior import Posterior

_PRIOR_DRAWS = 500
_HUGE = 3000  # deterministic components that are judged at the most


def sampled(target: Target, output: Approximation, key: np.ndarray) -> Draws:
    """Draws from an approximation, one chain; with a density, both log densities and weights."""
    known = output.weights
    if known is not None and len(known.points) >= output.draws:
        found = (known.points, known.log_p, known.log_q)
    else:
        found = draw(target, output, key, output.draws)
    points, log_p, log_q = (x[: output.draws] for x in found)
    stats: dict[str, np.ndarray] = {} if output.target is not None else {"lp": log_p[None]}
    if output.log_density is not None:
        weights = Weights(points, log_p, log_q)
        stats |= {
            "log_q": log_q[None],
            "log_weight": weights.log_weights[None],
            "log_psis_weight": weights.smoothed[None],
        }
    return Draws(points[None], stats, status=output.status)


def judged(target: Target, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sites whose convergence is judged: latent ones, and deterministics unless they are huge."""
    out = {}
    for name, value in values.items():
        kind = target.sites[name].kind
        components = int(np.prod(value.shape[2:]))
        if kind in HELD and np.issubdtype(value.dtype, np.floating):
            out[name] = value
        elif kind == "deterministic" and components <= _HUGE // 10:
            out[name] = value
    return out or values


def label(target: Target, site: str, index: tuple[int, ...]) -> str:
    """A component's name with its coordinate labels."""
    if not index:
        return site
    known = target.sites.get(site)
    parts = []
    for axis, i in enumerate(index):
        dim = known.dims[axis] if known is not None and axis < len(known.dims) else ""
        coords = target.coords.get(dim)
        parts.append(str(coords[i]) if coords is not None and i < len(coords) else str(i))
    return f"{site}[{', '.join(parts)}]"


def facts(posterior: Posterior) -> dict[str, Any]:
    """Attributes of every object and file."""
    out: dict[str, Any] = {
        "created_by": "probkit",
        "probkit_version": __version__,
        "inference_library": "probkit",
        "inference_library_version": __version__,
        "method": type(posterior.method).__name__,
        "status": posterior.status.name,
        "dtype": str(posterior.target.dtype),
        "sampling_time": round(posterior.seconds.get("run", 0.0), 4),
        "compile_time": round(posterior.seconds.get("compile", 0.0), 4),
        "num_data": posterior.target.num_data,
    }
    if posterior.method.num_warmup:
        out["tuning_steps"] = posterior.method.num_warmup
    for name, words in _centring(posterior.target).items():
        out[f"centring_{name}"] = words
    return out


def _centring(target: Target) -> dict[str, str]:
    out = {}
    for name, choice in target.arrays.get("centred", {}).items():
        share = float(np.mean(choice))
        out[name] = {0.0: "non-centred", 1.0: "centred"}.get(share, f"{share:.0%} centred")
    return out


def graph_svg(target: Target) -> str | None:
    """The model's picture, where the target came from a declared model."""
    source = target.labels.source
    try:
        return source.graph().svg if source is not None else None
    except Exception:
        # A page without a picture is better than no page.
        return None


# -- datasets -----------------------------------------------------------------------------------


def dataset(
    target: Target,
    values: dict[str, np.ndarray],
    lead: tuple[str, ...] = ("chain", "draw"),
    *,
    shared: bool = True,
) -> xarray.Dataset:
    """Arrays by site as a Dataset with the model's dims and coords.

    Args:
        target: whose sites and coords these are.
        values: arrays by site, of shape ``(*lead, *shape)``. An array may lack the site's last
            axes (the log density of a multivariate draw), or have others (unconstrained values):
            axes that are not the site's are named after their place.
            A column of codes that has the name of a dim is called ``{name}_index``, since an xarray
            variable cannot share a name with a dim that it does not label.
        lead: names of the leading axes.
        shared: whether the other axes are the site's at all.
    """
    import xarray

    variables, coords = {}, {}
    for name, value in values.items():
        shape = value.shape[len(lead) :]
        dims = _axes(target, name, shape) if shared else _unnamed(name, len(shape))
        column = name not in target.sites and name in target.program.sizes
        variables[f"{name}_index" if column else name] = ((*lead, *dims), value)
        for d, n in zip(dims, shape, strict=True):
            if d in target.coords and len(target.coords[d]) == n:
                coords[d] = target.coords[d]
            else:
                coords.setdefault(d, np.arange(n))
    if lead == ("chain", "draw") and variables:
        first = next(iter(values.values()))
        coords["chain"], coords["draw"] = np.arange(first.shape[0]), np.arange(first.shape[1])
    return xarray.Dataset(variables, coords={k: (k, v) for k, v in coords.items()})


def _unnamed(name: str, rank: int) -> tuple[str, ...]:
    return tuple(f"{name}_dim_{i}" for i in range(rank))


def _axes(target: Target, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The dims of an array of a site (or of a column of data)."""
    site = target.sites.get(name)
    if site is None:
        dims: Any = target.program.data_dims.get(name, ())
    else:
        dims = site.dims
        if len(shape) < len(dims) and shape != site.shape[: len(shape)]:
            dims = ()
    dims = dims if len(dims) >= len(shape) else ()
    out = list(_unnamed(name, len(shape)))
    for i, (d, n) in enumerate(zip(dims, shape, strict=False)):
        known = target.coords.get(d) if d is not None else None
        if d is not None and (known is None or len(known) == n):
            out[i] = d
    return tuple(out)


def _stats(stats: dict[str, np.ndarray]) -> xarray.Dataset:
    import xarray

    return xarray.Dataset({k: (("chain", "draw"), v) for k, v in stats.items() if v.ndim == 2})


def _unconstrained(p: Posterior) -> xarray.Dataset:
    target = p.target
    values = target.program.flat.unravel_host(p._drawn.unconstrained)
    alike = {k for k, v in values.items() if v.ndim - 2 == len(target.sites[k].dims)}
    known = dataset(target, {k: v for k, v in values.items() if k in alike})
    rest = {k: v for k, v in values.items() if k not in alike}
    return known.merge(dataset(target, rest, shared=False)) if rest else known


def _log_prior(p: Posterior) -> xarray.Dataset:
    program = p.target.program

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        return dict(program.evaluate(program.flat.unravel(row), arrays).prior)

    flat = p._drawn.unconstrained
    out = map_draws(p.target, "log_prior", fn, flat.reshape(-1, flat.shape[-1]), p._stream(3))
    return dataset(p.target, {k: v.reshape(flat.shape[:2]) for k, v in out.items()}, shared=False)


def log_likelihood_values(p: Posterior) -> dict[str, np.ndarray]:
    """Log likelihood of each observation at each draw, by observed site."""
    if "log_likelihood" in p._cache:
        return p._cache["log_likelihood"]
    program = p.target.program

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        return program.pointwise(program.flat.unravel(row["z"]), row["values"], arrays)

    flat = p._drawn.unconstrained
    held = {k: v for k, v in p.values.items() if program.sites[k].kind in HELD}
    rows = {
        "z": flat.reshape(-1, flat.shape[-1]),
        "values": {k: v.reshape(-1, *v.shape[2:]) for k, v in held.items()},
    }
    size = sum(int(np.prod(s.shape)) for s in program.sites.values() if s.kind == "observed")
    out = map_draws(p.target, "log_likelihood", fn, rows, p._stream(4), size=size)
    out = {k: v.reshape(flat.shape[:2] + v.shape[1:]) for k, v in out.items()}
    p._cache["log_likelihood"] = out
    return out


def _log_likelihood(p: Posterior) -> xarray.Dataset:
    return dataset(p.target, log_likelihood_values(p))


def _posterior_predictive(p: Posterior) -> xarray.Dataset:
    from probkit.results._predict import simulated

    return dataset(p.target, simulated(p, p.target, p._stream(5), ("observed",)))


def _prior(p: Posterior) -> dict[str, np.ndarray]:
    if "prior" not in p._cache:
        p._cache["prior"] = prior_values(p.target, _PRIOR_DRAWS, p._stream(6))
    return p._cache["prior"]


def prior_values(target: Target, draws: int, key: np.ndarray) -> dict[str, np.ndarray]:
    """Draws of every site from the prior, shape ``(1, draw, *shape)``."""
    program = target.program
    size = sum(int(np.prod(s.shape)) for s in program.sites.values())

    def fn(key: Any, row: Any, arrays: dict) -> Any:
        return program.simulate(key, {}, arrays)

    rows = np.zeros((draws, 1), np.float32)
    out = map_draws(target, "prior", fn, rows, key, size=size)
    return {k: v[None] for k, v in out.items()}


def _prior_part(kinds: Iterable[str]) -> Callable[[Posterior], xarray.Dataset]:
    def make(p: Posterior) -> xarray.Dataset:
        sites = p.target.sites
        return dataset(p.target, {k: v for k, v in _prior(p).items() if sites[k].kind in kinds})

    return make


def _observed_data(p: Posterior) -> xarray.Dataset:
    return dataset(p.target, dict(p.target.labels.observed), ())


def _constant_data(p: Posterior) -> xarray.Dataset:
    return dataset(p.target, dict(p.target.labels.constants), ())


def _warmup(p: Posterior) -> xarray.Dataset:
    warmup = p._drawn.warmup
    if warmup is None:
        raise ValueError("warmup_posterior: this method has no warm-up")
    return dataset(p.target, constrained(p.target, warmup, p._stream(7)))


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "posterior": lambda p: dataset(p.target, p.values),
    "sample_stats": lambda p: _stats(p.stats),
    "warmup_posterior": _warmup,
    "warmup_sample_stats": lambda p: _stats(p._drawn.warmup_stats),
    "log_likelihood": _log_likelihood,
    "log_prior": _log_prior,
    "unconstrained_posterior": _unconstrained,
    "prior": _prior_part(("latent", "discrete", "deterministic")),
    "prior_predictive": _prior_part(("observed",)),
    "posterior_predictive": _posterior_predictive,
    "observed_data": _observed_data,
    "constant_data": _constant_data,
}


def _available(p: Posterior) -> list[str]:
    labels = p.target.labels
    names = ["posterior", "sample_stats", "log_prior", "unconstrained_posterior"]
    if p._drawn.warmup is not None and p._drawn.warmup.shape[1]:
        names += ["warmup_posterior", "warmup_sample_stats"]
    if any(s.kind == "observed" for s in p.target.sites.values()):
        names.append("log_likelihood")
    if labels.observed:
        names += ["posterior_predictive", "observed_data"]
    if labels.source is not None:
        names += ["prior", "prior_predictive"]
    if labels.constants:
        names.append("constant_data")
    return [k for k in _MAKERS if k in names]


def groups(p: Posterior, names: tuple[str, ...]) -> dict[str, xarray.Dataset]:
    """See `Posterior.groups`."""
    for name in names:
        if name not in _MAKERS:
            raise ValueError(
                f"groups: no group {name!r}.{nearest(name, _MAKERS)} "
                f"Groups: {listing(_MAKERS, 20)}."
            )
    out = {}
    for name in names or _available(p):
        key = f"group:{name}"
        if key not in p._cache:
            try:
                p._cache[key] = _MAKERS[name](p)
            except Exception as error:
                if names:
                    raise
                # One group that cannot be simulated (a flat prior, say) is left out, aloud.
                warnings.warn(
                    f"ArviZ group {name!r} was left out: {type(error).__name__}: {error}",
                    stacklevel=4,
                )
                continue
        if len(p._cache[key].variables):
            out[name] = p._cache[key]
    return out


# -- figures that need the log density ----------------------------------------------------------


def evidence(p: Posterior) -> Any:
    """See `Posterior.log_evidence`."""
    from probkit.results._evidence import Evidence, log_evidence

    weights = p.weights
    if p.approximation is not None and weights is None:
        own = p.approximation.log_evidence
        if own is None:
            raise ValueError(
                f"log_evidence: {type(p.method).__name__} gives points without a density, from "
                "which no evidence can be estimated; use pk.VI(), pk.Laplace() or pk.NUTS()"
            )
        figures = p.approximation.stats
        bound = ", a lower bound" if figures.get("elbo") == own else ""
        se, khat = (float(figures.get(k, np.nan)) for k in ("log_evidence_se", "k_hat"))
        return Evidence(own, se, type(p.method).__name__ + bound, khat)
    if weights is None:
        rng = np.random.default_rng(p._stream(8))
        flat = p._drawn.unconstrained.astype(float)
        return log_evidence(flat, lambda x: log_densities(p.target, x).astype(float), rng)
    found = weights.log_evidence
    return Evidence(found.value, found.se, "importance", weights.best.khat)


def loo_of(p: Posterior) -> Any:
    """See `Posterior.loo`: all observed sites together, imputed entries left out."""
    from probkit.results._psis import exact_loo, loo

    parts, kept = [], []
    for value in log_likelihood_values(p).values():
        flat = value.reshape(*value.shape[:2], -1)
        # (Missing by design at every draw; a term that is no number at some of them is told.)
        kept.append(~np.isnan(flat).all(axis=(0, 1)))
        parts.append(flat[..., kept[-1]])
    if not parts:
        raise ValueError(
            "loo: the model has no observed variable and no likelihood factor to leave out"
        )
    log_lik = np.concatenate(parts, axis=-1).astype(float)
    if p.approximation is None:
        return loo(log_lik)
    rows = _rows_left_out(p)
    if rows is not None and len(kept) == 1 and len(rows) == len(kept[0]):
        # An engine's own, by a closed form: nothing that draws would tell better.
        return exact_loo(rows[kept[0]], log_lik)
    return loo(log_lik, 1.0, p.stats.get("log_weight"))


def _rows_left_out(p: Posterior) -> np.ndarray | None:
    """Leave-one-out log densities by row of a Gaussian process with an observation at each."""
    fitted = p.approximation
    rows = None if fitted is None else fitted.stats.get("loo_i")
    if fitted is None or rows is None:
        return None
    source = p.target if fitted.source is None else fitted.source
    try:
        apart = source.gaussian_latent.rows_apart(source.arrays)
    except ValueError:
        try:
            apart = source.gaussian_latents.rows_apart(source.arrays)
        except ValueError:
            return None
    return rows if apart else None
