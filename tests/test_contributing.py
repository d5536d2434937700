"""The worked example of CONTRIBUTING.md is run as it stands there."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from probkit.core import Target, TimeLimit, run
from probkit.results._diagnostics import ess_bulk, ess_mean
from tests import registry, test_battery

GUIDE = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"


def blocks() -> list[str]:
    """The Python code of the guide, in its order: the method, its row, its use."""
    return re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), flags=re.M | re.S)


@pytest.fixture(scope="module")
def metropolis(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("guide") / "guide_metropolis.py"
    path.write_text(blocks()[0])
    spec = importlib.util.spec_from_file_location("guide_metropolis", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def target() -> Target:
    scale = jnp.array([0.5, 2.0])
    return Target.from_log_density(
        lambda z: -0.5 * jnp.sum(((z["x"] - 1.0) / scale) ** 2), {"x": np.zeros(2)}
    )


def test_the_method_finds_the_moments_of_a_gaussian(metropolis, target):
    output = run(target, metropolis.Metropolis(draws=8000, warmup=1000), 3).output
    x = output.unconstrained
    assert x.shape == (4, 8000, 2)
    ess = ess_bulk(x)
    assert (ess > 400).all()
    # Five standard errors, two means and two variances: a false alarm once in 400,000 runs.
    for power, expected in ((1, np.array([1.0, 1.0])), (2, np.array([0.25, 4.0]))):
        values = x if power == 1 else (x - 1.0) ** 2
        error = values.std((0, 1)) / np.sqrt(ess_mean(values))
        assert (abs(values.mean((0, 1)) - expected) < 5 * error).all()
    rate = output.stats["acceptance_rate"].mean()
    assert 0.15 < rate < 0.45


def test_it_stops_in_time_and_goes_on_bit_for_bit(metropolis, target):
    method = metropolis.Metropolis(draws=600, warmup=100)
    whole = run(target, method, 5)
    part = run(target, method, 5, callbacks=[TimeLimit(1e-6)])
    assert part.steps < whole.steps and not part.status.ok
    rest = run(target, method, 5, resume=part.snapshot)
    np.testing.assert_array_equal(rest.output.unconstrained, whole.output.unconstrained)


def test_a_misspelt_option_is_named(metropolis):
    with pytest.raises(TypeError, match="stepsize.*Did you mean 'step_size'"):
        metropolis.Metropolis(stepsize=1.0)


BATTERY = {
    name: test
    for name, test in vars(test_battery).items()
    if name.startswith("test_") and "row" in inspect.signature(test).parameters
}


@pytest.fixture(scope="module")
def row(metropolis) -> registry.Row:
    scope = {**vars(registry), "pk": SimpleNamespace(Metropolis=metropolis.Metropolis)}
    return eval(blocks()[1], scope)


@pytest.mark.parametrize("name", BATTERY)
def test_its_row_passes_the_battery(name, row, request):
    wanted = [
        p for p in inspect.signature(BATTERY[name]).parameters if p not in ("row", "transform")
    ]
    arguments = {p: request.getfixturevalue(p) for p in wanted}
    if "transform" in inspect.signature(BATTERY[name]).parameters:
        arguments["transform"] = "rotate"
    BATTERY[name](row=row, **arguments)


def test_its_use_prints_a_verdict(metropolis, capsys):
    exec(blocks()[2], {"Metropolis": metropolis.Metropolis})
    printed = capsys.readouterr().out
    assert "r_hat" in printed
