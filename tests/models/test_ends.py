"""Shares that are exactly 0 or 1, which most beta distributions give no density."""

from __future__ import annotations

import numpy as np
import pytest

import probkit as pk

shares = pk.Model(
    m=pk.dist.Uniform(0, 1),
    y=pk.rv(lambda m: pk.dist.BetaProportion(m, 5.0), dims="row"),
)


def test_shares_at_the_ends_are_told():
    with pytest.warns(UserWarning, match=r"site 'y': 2 .*exactly 0 or 1 .*\(1,\).*BetaProportion"):
        shares.bind({"y": np.array([0.5, 0.0, 1.0, 0.2])})


def test_shares_inside_and_missing_ones_are_not():
    shares.bind({"y": np.array([0.5, np.nan, 0.999, 0.2])})
