"""fit: bind, run and wrap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probkit.core import (
    Callback,
    Checkpoint,
    Inference,
    Progress,
    Target,
    TimeLimit,
    check_options,
    key_data,
    run,
)
from probkit.results import Posterior

_OPTIONS = (
    "method",
    "coords",
    "seed",
    "dims",
    "reparam",
    "precision",
    "progress",
    "checkpoint",
    "checkpoint_every",
)


def fit(
    model: Any,
    data: Any = None,
    *more: Any,
    method: Inference | None = None,
    coords: Mapping[str, Any] | None = None,
    seed: Any = 0,
    dims: Mapping[str, Any] | None = None,
    reparam: Any = "auto",
    precision: str | None = None,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 30.0,
    resume: Any = None,
    time_limit: float | None = None,
    callbacks: Sequence[Callback] = (),
    devices: int | None = None,
    **unknown: Any,
) -> Posterior:
    """Fit a model to data: bind, run, wrap.

    Args:
        model: a `Model`, a model from NumPyro, or a `Target` (then ``data`` is None).
        data: a mapping of arrays, an xarray Dataset, or any data frame.
        method: the inference method; ``NUTS()`` by default.
        coords: labels by dim.
        seed: a whole number or a typed key.
        dims: dims of bare arrays in ``data``, by name.
        reparam: centring of hierarchical sites; see `Model.bind`.
        precision: ``"double"`` fits in float64; None is JAX's setting (float32 by default).
        progress: whether to show a progress bar; None shows one on a terminal.
        checkpoint: a folder to write the run's state to, every ``checkpoint_every`` seconds.
        resume: a checkpoint folder (or ``posterior.state``) to go on from.
        time_limit: seconds after which the run ends with what it has.
        callbacks: further callbacks.
        devices: devices to spread the chains over; all that divide their number by default.

    Returns:
        A `Posterior`.

    Raises:
        ValueError, TypeError: a fault in the model, the data or the options, with its site, what
            was expected, what was found, and the remedy.

    Example:
        >>> import probkit as pk
        >>> model = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1)))
        >>> posterior = pk.fit(model, {"y": 0.5}, method=pk.NUTS(draws=200), progress=False)
    """
    if more:
        raise TypeError(
            f"fit: expected a model and data by position, found {len(more)} more "
            f"({type(more[0]).__name__}); name the rest, for example method=pk.NUTS(), seed=1"
        )
    check_options("fit", unknown, (*_OPTIONS, "resume", "time_limit", "callbacks", "devices"))
    if method is None:
        from probkit.inference import NUTS

        method = NUTS()
    if not isinstance(method, Inference):
        called = f"call it: {method.__name__}()" if isinstance(method, type) else _named(method)
        raise TypeError(f"fit(method=): expected an inference method, found {method!r}; {called}")
    target = _target(model, data, coords=coords, dims=dims, reparam=reparam, precision=precision)
    hooks = [*callbacks]
    if progress or progress is None:
        hooks.append(Progress(disable=None if progress is None else not progress))
    # A limit that ends the run comes before the checkpoint, which then writes the end.
    if time_limit is not None:
        hooks.append(TimeLimit(time_limit))
    if checkpoint is not None:
        hooks.append(Checkpoint(checkpoint, checkpoint_every))
    key = key_data(seed)
    done = run(target, method, key, callbacks=hooks, resume=resume, devices=devices)
    # A resumed run goes on with the key of its checkpoint, whatever the seed.
    return Posterior(target, method, done, done.snapshot.key)


def _named(method: Any) -> str:
    """What to pass in the place of something that is no method: a method's name, perhaps."""
    import probkit.inference as methods

    known = {k.lower(): k for k in dir(methods) if k[0].isupper()}
    return f"pass pk.{known.get(str(method).lower(), 'NUTS')}()"


def _target(model: Any, data: Any, **options: Any) -> Target:
    if isinstance(model, Target):
        if data is not None:
            raise ValueError("fit: a Target holds its data already; pass data=None")
        return model
    if not hasattr(model, "bind"):
        raise TypeError(
            f"fit: expected a Model (or a Target) as the first argument, found "
            f"{type(model).__name__}; for a NumPyro function use pk.Model.from_numpyro(fn)"
        )
    return model.bind(data, **options)


def prior_predictive(
    model: Any,
    data: Any = None,
    *,
    draws: int = 500,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Any] | None = None,
    seed: Any = 0,
) -> Any:
    """Draws of every variable from the prior: an ArviZ object.

    Its groups are ``prior`` and ``prior_predictive`` (the variables found in ``data``, simulated).

    Example:
        >>> import probkit as pk
        >>> model = pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1)))
        >>> pk.prior_predictive(model, {"y": 0.5}, draws=100).prior["mu"].shape
        (1, 100)
    """
    from probkit.results import prior_groups

    return prior_groups(
        model.bind(data, coords=coords, dims=dims, reparam="off"), draws, key_data(seed)
    )
