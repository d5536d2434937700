"""Raw samplers for the comparison of effective draws per second, each as its users run it best.

A maker takes a `Case` and returns ``fit(seed)``, which returns the reported values as host arrays
of shape (chain, draw, ...). NumPyro and blackjax are put into one jitted function of the seed and
the data, so that a second call compiles nothing (their own front ends recompile). All run 4 chains
of 1000 + 1000: in JAX vectorised or, ``turns=True``, one after the other in the compiled program
(vectorised chains wait for the longest trajectory of the four, which can cost more than it gains
on a CPU); in parallel threads in nutpie.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

CHAINS, WARMUP, DRAWS = 4, 1000, 1000

Fit = Callable[[int], dict[str, np.ndarray]]


def probkit(case: Any, **options: Any) -> Fit:
    """``pk.fit`` from the data to the draws in the model's own space."""
    import probkit as pk

    method = pk.NUTS(draws=DRAWS, warmup=WARMUP, chains=CHAINS, **options)
    plain = case.target() if case.model is None else None

    def fit(seed: int) -> dict[str, np.ndarray]:
        model, data = (plain, None) if plain is not None else (case.model, case.data)
        bind = {} if plain is not None else case.bind
        return pk.fit(model, data, method=method, seed=seed, progress=False, **bind).values

    return fit


def numpyro(case: Any, dense: bool = False, turns: bool = False) -> Fit:
    """NumPyro's NUTS: a model function, or the hand-written density as a potential."""
    import jax
    from numpyro.infer import MCMC, NUTS

    options: dict[str, Any] = {"dense_mass": dense}

    def run(key: Any, start: Any, data: Any) -> Any:
        if case.numpyro is None:
            kernel = NUTS(potential_fn=lambda z: -case.hand(z, data), **options)
        else:
            kernel = NUTS(case.numpyro, **options)
        mcmc = MCMC(
            kernel,
            num_warmup=WARMUP,
            num_samples=DRAWS,
            num_chains=CHAINS,
            chain_method="sequential" if turns else "vectorized",
            progress_bar=False,
        )
        if case.numpyro is None:
            mcmc.run(key, init_params=start)
            raw = mcmc.get_samples(group_by_chain=True)
            return raw if isinstance(raw, dict) else {"x": raw}
        mcmc.run(key, **data)
        return _named(mcmc.get_samples(group_by_chain=True))

    compiled = jax.jit(run)

    def fit(seed: int) -> dict[str, np.ndarray]:
        key = jax.random.key(seed)
        start = jax.vmap(lambda k: _start(k, case))(jax.random.split(key, CHAINS))
        return _host(compiled(key, start, case.data))

    return fit


def _named(draws: dict) -> dict:
    """Values under the names and in the space that all contestants report."""
    out = dict(draws)
    if "z" in out:
        z = out.pop("z")
        name = "level" if "beta" in out else "theta"
        out[name] = out["mu"][..., None] + out["tau"][..., None] * z
    return out


def blackjax(case: Any, low_rank: bool = False, turns: bool = False) -> Fit:
    """blackjax's window adaptation (diagonal or low rank) and its NUTS, by hand."""
    import jax

    bj: Any = importlib.import_module("blackjax")

    adaptation = bj.window_adaptation_low_rank if low_rank else bj.window_adaptation

    def run(keys: Any, data: Any) -> Any:
        def log_density(z: Any) -> Any:
            return case.hand(z, data)

        def chain(key: Any) -> Any:
            start, adapt, draw = jax.random.split(key, 3)
            warmup = adaptation(bj.nuts, log_density)
            (state, tuned), _ = warmup.run(adapt, _start(start, case), WARMUP)
            step = bj.nuts(log_density, **tuned).step

            def once(state: Any, key: Any) -> Any:
                state, _ = step(key, state)
                return state, state.position

            z = jax.lax.scan(once, state, jax.random.split(draw, DRAWS))[1]
            return jax.vmap(lambda x: case.values(x, data))(z)

        return jax.lax.map(chain, keys) if turns else jax.vmap(chain)(keys)

    compiled = jax.jit(run)

    def fit(seed: int) -> dict[str, np.ndarray]:
        return _host(compiled(jax.random.split(jax.random.key(seed), CHAINS), case.data))

    return fit


def _start(key: Any, case: Any) -> Any:
    """A point uniform in (-2, 2), NumPyro's and Stan's default."""
    import jax

    leaves, tree = jax.tree.flatten(case.example)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree,
        [
            jax.random.uniform(k, x.shape, x.dtype, -2.0, 2.0)
            for k, x in zip(keys, leaves, strict=True)
        ],
    )


def _host(draws: Any) -> dict[str, np.ndarray]:
    import jax

    return {k: np.asarray(v) for k, v in jax.device_get(draws).items()}


# -- nutpie --------------------------------------------------------------------------------


def nutpie(name: str, low_rank: bool = False) -> Fit:
    """nutpie on a PyMC model compiled by numba; needs no JAX."""
    make = {
        "schools": _pymc_schools,
        "affairs": _pymc_affairs,
        "gauss100": _pymc_gauss,
        "process": _pymc_process,
    }[name]
    library = importlib.import_module("nutpie")
    pymc = importlib.import_module("pymc")
    state: dict[str, Any] = {}

    def fit(seed: int) -> dict[str, np.ndarray]:
        if "compiled" not in state:
            state["compiled"] = library.compile_pymc_model(make(pymc), backend="numba")
        trace = library.sample(
            state["compiled"],
            draws=DRAWS,
            tune=WARMUP,
            chains=CHAINS,
            seed=seed,
            progress_bar=False,
            low_rank_modified_mass_matrix=low_rank,
        )
        found = trace.posterior
        # Besides the variables it returns their unconstrained twins, named with two underscores.
        return _named({k: found[k].to_numpy() for k in found.data_vars if "__" not in k})

    return fit


def _pymc_schools(pm: Any) -> Any:
    from benchmarks import _data

    data = _data.schools()
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
        z = pm.Normal("z", shape=8)
        pm.Normal("y", mu + tau * z, data["sigma"], observed=data["y"])
    return model


def _pymc_affairs(pm: Any) -> Any:
    from benchmarks import _data

    data = _data.affairs()
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 2), pm.HalfNormal("tau", 1)
        beta, z = pm.Normal("beta", shape=6), pm.Normal("z", shape=36)
        logits = (mu + tau * z)[data["couple"]] + pm.math.dot(data["x"].astype(float), beta)
        pm.Bernoulli("y", logit_p=logits, observed=data["y"])
    return model


def _pymc_gauss(pm: Any) -> Any:
    from benchmarks import _data

    precision = _data.precision()["precision"].astype(float)
    with pm.Model() as model:
        x = pm.Flat("x", shape=len(precision))
        pm.Potential("density", -0.5 * pm.math.dot(x, pm.math.dot(precision, x)))
    return model


def _pymc_process(pm: Any) -> Any:
    from benchmarks import _data

    data = _data.sunspots()
    gap = np.abs(data["time"][:, None] - data["time"][None, :]) * np.sqrt(3.0)
    with pm.Model() as model:
        mean = pm.Normal("mean")
        length, amplitude = pm.LogNormal("length", 0, 1), pm.LogNormal("amplitude", 0, 1)
        noise = pm.LogNormal("noise", -1, 1)
        r = gap / length
        cov = amplitude**2 * (1 + r) * pm.math.exp(-r) + noise**2 * np.eye(len(gap))
        pm.MvNormal("y", mean * np.ones(len(gap)), cov, observed=data["y"])
    return model
