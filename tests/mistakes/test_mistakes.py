"""The corpus of user mistakes: each is an error that says where, what, and what to do about it."""

from __future__ import annotations

import re

import pytest

from tests.mistakes import binding, declaring, fitting
from tests.mistakes.table import Mistake

CORPUS = [*declaring.CORPUS, *binding.CORPUS, *fitting.CORPUS]


def test_the_corpus_is_large_enough() -> None:
    assert len({m.name for m in CORPUS}) == len(CORPUS) >= 60


@pytest.mark.parametrize("mistake", CORPUS, ids=lambda m: m.name)
def test_mistake(mistake: Mistake) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        mistake.make()
    message = str(caught.value)
    assert type(caught.value).__name__ != "TypeCheckError", "the tests' own type checks came first"
    for part in ("where", "what", "remedy"):
        pattern = getattr(mistake, part)
        assert re.search(pattern, message, re.DOTALL), f"{part} {pattern!r} is not in:\n{message}"


def test_nothing_computed_is_lost() -> None:
    """After all mistakes with a posterior, it is what it was, and predicts."""
    posterior = fitting.fitted()
    before = posterior.summary()
    for mistake in fitting.CORPUS:
        if mistake.name.startswith(("predicting", "scoring", "summary", "unknown_group")):
            with pytest.raises((ValueError, TypeError)):
                mistake.make()
    assert posterior.summary().equals(before)
    found = posterior.predict({"g": ["v"], "x": [1.0]}).predictions["y"]
    assert found.shape == (1, 20, 1)
