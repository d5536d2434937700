"""Every public function and class explains itself with an example, and the example runs."""

from __future__ import annotations

import doctest
import inspect

import pytest

import probkit

PUBLIC = {
    name: value
    for name in probkit.__all__
    if (inspect.isclass(value := getattr(probkit, name)) or inspect.isfunction(value))
}


def examples(value: object, name: str) -> list[doctest.DocTest]:
    """The examples of an object and of its public methods."""
    found = doctest.DocTestFinder(exclude_empty=True).find(value, name)
    private = [t for t in found if any(part.startswith("_") for part in t.name.split(".")[1:])]
    return [t for t in found if t.examples and t not in private]


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = examples(PUBLIC[name], name)
    # What is abstract cannot be used; CONTRIBUTING.md has its example (test_contributing.py).
    assert tests or inspect.isabstract(PUBLIC[name]), f"{name}: no example (>>> ...) in docstring"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    for test in tests:
        runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
        failed, _ = runner.run(test, clear_globs=False)
        assert not failed, f"{test.name}: an example of its docstring gives another answer"
