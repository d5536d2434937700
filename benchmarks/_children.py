"""Programs that are measured from their first instruction: ``python -m benchmarks._children NAME``.

What a user would write for eight schools, 4 chains of 1000 + 1000, and nothing imported before.
``cold_*`` goes on to the printed verdict; ``warm_*`` stops when the draws are there and prints the
seconds since the library's import.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def _probkit() -> Any:
    import probkit as pk
    from probkit import dist

    clocks = time.perf_counter(), time.process_time()
    _persistent_cache()
    model = pk.Model(
        mu=dist.Normal(0, 5),
        tau=dist.HalfCauchy(5),
        theta=pk.rv(lambda mu, tau: dist.Normal(mu, tau), dims="school"),
        y=pk.rv(lambda theta, sigma: dist.Normal(theta, sigma), dims="school"),
    )
    posterior = pk.fit(model, {"y": Y, "sigma": SIGMA}, method=pk.NUTS(), seed=0)
    return posterior, clocks


def _numpyro() -> Any:
    import jax
    import numpyro
    from jax import numpy as jnp
    from numpyro import distributions as dist
    from numpyro.infer import MCMC, NUTS

    clocks = time.perf_counter(), time.process_time()
    _persistent_cache()

    def model(sigma, y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("school", 8):
            z = numpyro.sample("z", dist.Normal(0, 1))
            theta = numpyro.deterministic("theta", mu + tau * z)
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    mcmc = MCMC(
        NUTS(model),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), jnp.array(SIGMA), jnp.array(Y))
    return jax.device_get(mcmc.get_samples(group_by_chain=True)), clocks


def _blackjax() -> Any:
    import blackjax
    import jax
    from jax import numpy as jnp
    from jax.scipy.stats import cauchy, norm

    clocks = time.perf_counter(), time.process_time()
    _persistent_cache()
    y, sigma = jnp.array(Y), jnp.array(SIGMA)

    def log_density(x):
        mu, log_tau, z = x["mu"], x["log_tau"], x["z"]
        tau = jnp.exp(log_tau)
        prior = norm.logpdf(mu, 0, 5) + cauchy.logpdf(tau, 0, 5) + jnp.log(2.0) + log_tau
        theta = mu + tau * z
        return prior + norm.logpdf(z).sum() + norm.logpdf(y, theta, sigma).sum()

    def chain(key):
        start, adapt, draw = jax.random.split(key, 3)
        x = jax.random.uniform(start, (10,), minval=-2.0, maxval=2.0)
        x = {"mu": x[0], "log_tau": x[1], "z": x[2:]}
        warmup = blackjax.window_adaptation(blackjax.nuts, log_density)
        run: Any = warmup.run
        (state, tuned), _ = run(adapt, x, 1000)
        step: Any = blackjax.nuts(log_density, **tuned).step

        def once(state: Any, key: Any) -> Any:
            state, _ = step(key, state)
            return state, state.position

        return jax.lax.scan(once, state, jax.random.split(draw, 1000))[1]

    x = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 4))
    tau = jnp.exp(x["log_tau"])
    theta = x["mu"][..., None] + tau[..., None] * x["z"]
    return jax.device_get({"mu": x["mu"], "tau": tau, "theta": theta}), clocks


def _persistent_cache() -> None:
    """JAX's own cache, where the caller asks for it."""
    folder = os.environ.get("BENCHMARK_JAX_CACHE")
    if folder:
        import jax

        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def _summary(draws: Any) -> None:
    import arviz

    print(arviz.summary(arviz.from_dict(posterior=draws)))


def main(name: str) -> None:
    """Run one program to its end."""
    kind, library = name.split("_")
    programs = {"probkit": _probkit, "numpyro": _numpyro, "blackjax": _blackjax}
    found, (wall, cpu) = programs[library]()
    if kind == "warm":
        if library == "probkit":
            found = found.values
        size = found["theta"].shape
        clocks = [time.perf_counter() - wall, time.process_time() - cpu, size]
        print(json.dumps(clocks))
    elif library == "probkit":
        print(found.check())
        if kind == "table":
            print(found.summary())
    else:
        _summary(found)


if __name__ == "__main__":
    main(sys.argv[1])
