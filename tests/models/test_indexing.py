"""Indices that leave their axis are found when data are bound; those that do not are left alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import probkit as pk
from probkit import dist

IDS = np.arange(30) % 10
Y = np.zeros(30)
COORDS = {"firm": [f"f{i}" for i in range(10)], "kind": ["u", "v", "w"]}


def bind(fn, **data):
    model = pk.Model(
        a=pk.rv(dist.Normal(0.0, 1.0), dims="firm"),
        b=pk.rv(dist.Normal(0.0, 1.0), dims=("firm", "kind")),
        y=pk.rv(fn, dims="row"),
    )
    return model.bind({"y": Y, **data}, coords=COORDS)


@pytest.mark.parametrize(
    ("fn", "data"),
    [
        (lambda a, i: dist.Normal(a[i], 1.0), {"i": IDS}),
        (lambda a, i: dist.Normal(a[i - 1], 1.0), {"i": IDS + 1}),
        (lambda a, i: dist.Normal(a[i], 1.0), {"i": IDS - 10}),
        (lambda a, i: dist.Normal(a[i], 1.0), {"i": IDS - 3}),
        (lambda b, i, j: dist.Normal(b[i, j], 1.0), {"i": IDS, "j": IDS % 3}),
        (lambda a, i: dist.Normal(a[jnp.minimum(i, 9)], 1.0), {"i": IDS + 5}),
        (lambda b, j: dist.Normal(b[3, j], 1.0), {"j": IDS % 3}),
        (lambda a, i: dist.Normal(jnp.eye(10)[i] @ a + jnp.arange(30), 1.0), {"i": IDS}),
    ],
)
def test_indices_within_their_axis_pass(fn, data):
    assert bind(fn, **data).program.flat.size == 40


@pytest.mark.parametrize(
    ("fn", "data", "words"),
    [
        (lambda a, i: dist.Normal(a[i], 1.0), {"i": IDS + 1}, "'i', whose values run from 1 to 10"),
        (lambda a, i: dist.Normal(a[i], 1.0), {"i": IDS - 12}, "from -12 to -3"),
        (lambda a, i: dist.Normal(a[i + 2], 1.0), {"i": IDS}, "from 0 to 9"),
        (lambda a, i: dist.Normal(jnp.take(a, i), 1.0), {"i": IDS + 1}, "length 10"),
        (lambda b, i, j: dist.Normal(b[i, j], 1.0), {"i": IDS, "j": IDS % 4}, "length 3"),
    ],
)
def test_indices_beyond_their_axis_are_refused(fn, data, words):
    with pytest.raises(ValueError, match=f"site 'y'.*{words}"):
        bind(fn, **data)


def test_new_data_are_compared_too():
    target = bind(lambda a, i: dist.Normal(a[i], 1.0), i=IDS)
    with pytest.raises(ValueError, match="'i'"):
        target.labels.rebind({"i": IDS + 1}, like=target)


def test_a_response_under_another_name_is_warned_of():
    model = pk.Model(m=dist.Normal(0.0, 1.0), y=pk.rv(lambda m, x: dist.Normal(m * x, 1.0)))
    with pytest.warns(UserWarning, match="nothing is observed.*'outcome'"):
        model.bind({"x": 1.0, "outcome": 2.0})
