"""`import probkit` is light: what it may not load, and that nothing is computed by it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = (
    "arviz",
    "beartype",
    "blackjax",
    "formulaic",
    "funsor",
    "gpjax",
    "h5netcdf",
    "lineax",
    "matplotlib",
    "narwhals",
    "optimistix",
    "pandas",
    "scipy.stats",
    "tqdm.auto",
    "xarray",
)


def in_fresh_process(code: str) -> str:
    """What a new interpreter prints, without the type checks of this one."""
    environment = {k: v for k, v in os.environ.items() if k != "PROBKIT_TYPECHECK"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.smoke
def test_import_loads_nothing_heavy():
    # What NumPyro itself loads is no fault of ours.
    code = f"""
import sys, numpyro.distributions
before = set(sys.modules)
import probkit
print(*[m for m in {HEAVY!r} if m in sys.modules and m not in before])
"""
    assert in_fresh_process(code) == ""


def test_declaring_a_model_loads_nothing_heavy():
    code = f"""
import sys, numpyro.distributions
before = set(sys.modules)
import probkit as pk
pk.Model(mu=pk.dist.Normal(0, 1), y=pk.rv(lambda mu: pk.dist.Normal(mu, 1), dims="row"))
pk.NUTS(), pk.Laplace(), pk.fit, pk.Target
print(*[m for m in {HEAVY!r} if m in sys.modules and m not in before])
"""
    assert in_fresh_process(code) == ""


@pytest.mark.smoke
def test_import_leaves_jax_as_it_was():
    code = """
import jax, probkit
assert not jax.config.jax_enable_x64
# Importing must not start a backend: the caller may still choose the platform and the devices.
jax.config.update("jax_num_cpu_devices", 2)
print(jax.device_count("cpu"))
"""
    assert in_fresh_process(code) == "2"


def test_public_names_are_sorted_and_exist():
    import probkit

    names = list(probkit.__all__)
    assert names == sorted(names)
    assert all(getattr(probkit, name) is not None for name in names)
    assert set(names) <= set(dir(probkit))
