"""Statuses: every code has advice in words, and knows whether it is a fault."""

from __future__ import annotations

import pytest

from probkit.core import Status


@pytest.mark.parametrize("status", list(Status))
def test_every_status_has_a_message(status):
    assert len(status.message.split()) >= 5
    assert status.ok == (status is Status.OK)
    assert Status(int(status)) is status


def test_every_fault_gives_advice():
    advice = ("allow", "run ", "pass", "give", "use", "kept")
    for status in Status:
        assert status.ok or any(word in status.message for word in advice), status


def test_ok_is_zero_and_codes_differ():
    assert Status.OK == 0
    assert len({s.message for s in Status}) == len(Status)
