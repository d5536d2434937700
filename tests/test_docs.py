"""The reference page leaves nothing public out, and names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import probkit

API = Path(__file__).resolve().parent.parent / "docs" / "api.md"


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"^\.\. auto(?:class|function):: (\w+)", API.read_text(), flags=re.M)
    assert sorted(listed) == sorted(
        set(probkit.__all__) - {"__version__", "dist", "estimators", "kernels"}
    )
