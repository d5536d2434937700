"""The README's first example runs as it stands and prints what the README says it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.smoke
def test_the_first_example_runs(capsys):
    code = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.M | re.S)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    scope: dict = {}
    exec(code, scope)
    printed = capsys.readouterr().out
    shown = re.findall(r"^```\n(.*?)^```", README.read_text(), flags=re.M | re.S)[1]
    assert scope["posterior"].check().ok
    assert printed.startswith("OK")
    # Figures differ in their last digits from processor to processor, not by more.
    means = scope["posterior"].summary()["mean"]
    for name, mean in re.findall(r"^(mu|tau|theta\[[^]]*\])\s+(-?[\d.]+)", shown, flags=re.M):
        # 0.6 is seven Monte Carlo standard errors: a false alarm less than once in 1e10 runs.
        assert abs(float(mean) - means[name]) < 0.6


def test_every_python_block_compiles():
    for code in re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.M | re.S):
        compile(code, "README.md", "exec")
