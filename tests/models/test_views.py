"""The table and the picture of a model."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import probkit as pk
from probkit import dist
from probkit.models._layers import layers_of, place

NORMAL = dist.Normal


def schools() -> pk.Model:
    return pk.Model(
        mu=NORMAL(0, 5),
        tau=dist.HalfCauchy(5),
        theta=pk.rv(lambda mu, tau: NORMAL(mu, tau), dims="school"),
        y=pk.rv(lambda theta, sigma: NORMAL(theta, sigma), dims="school"),
    )


def levels() -> pk.Model:
    return pk.Model(
        m=NORMAL(0, 1),
        s=dist.HalfNormal(1),
        a_state=pk.rv(lambda m, s: NORMAL(m, s), dims="state"),
        a_county=pk.rv(lambda a_state, s, state_of: NORMAL(a_state[state_of], s), dims="county"),
        mean=pk.deterministic(lambda a_county, county: a_county[county], dims="house"),
        y=pk.rv(lambda mean, s: NORMAL(mean, s), dims="house"),
    )


def large() -> pk.Model:
    return pk.Model(
        mu_a=NORMAL(0, 1),
        tau_a=dist.HalfNormal(1),
        mu_b=NORMAL(0, 1),
        tau_b=dist.HalfNormal(1),
        a=pk.rv(lambda mu_a, tau_a: NORMAL(mu_a, tau_a), dims="firm"),
        b=pk.rv(lambda mu_b, tau_b: NORMAL(mu_b, tau_b), dims="firm"),
        pace=dist.HalfNormal(1),
        drift=pk.markov(lambda x, pace: NORMAL(x, pace), init=NORMAL(0, 1), dims="year"),
        weights=pk.rv(dist.Dirichlet(jnp.ones(3)), event_dims="part"),
        z=pk.rv(lambda weights: dist.Categorical(weights), dims="obs"),
        shift=pk.rv(NORMAL(0, 1), dims="part"),
        noise=dist.HalfNormal(1),
        mean=pk.deterministic(
            lambda a, b, firm, year, drift, x, z, shift: a[firm] + b[firm] * x + shift[z],
            dims="obs",
        ),
        soft=pk.factor(lambda a: -a.sum()),
        y=pk.rv(lambda mean, noise: NORMAL(mean, noise), dims="obs"),
    )


MODELS = {"schools": schools, "levels": levels, "large": large}


def test_the_table_reads_as_on_paper():
    assert str(schools()).splitlines() == [
        "mu     ~ Normal(0, 5)",
        "tau    ~ HalfCauchy(5)",
        "theta  ~ f(mu, tau)          [school]",
        "y      ~ f(theta, sigma)     [school]",
    ]


def test_the_table_tells_the_kinds_of_nodes_apart():
    lines = str(large()).splitlines()
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["mean"].split()[1] == "="
    assert by_name["soft"].split()[1] == "|="
    assert by_name["drift"].split("~")[1].split() == ["Markov(pace)", "[year]"]
    assert by_name["weights"].endswith("[; part]")
    marked = pk.Model(a=NORMAL(0, 1), like=pk.factor(lambda a: -a, likelihood=True))
    assert str(marked).splitlines()[1] == "like  |= f(a)  likelihood"


def test_modules_are_one_line_and_their_arrays():
    net = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    text = str(pk.Model(net=pk.module(net, prior=NORMAL(0, 1))))
    assert "net         = module of 2 arrays" in text


def test_the_html_table_is_escaped():
    model = pk.Model(**{"a<b": NORMAL(0, 1)})
    assert "a&lt;b" in model._repr_html_() and "a<b" not in model._repr_html_()


@pytest.mark.parametrize("name", MODELS)
def test_the_picture_is_valid_and_holds_every_node(name, tmp_path):
    model = MODELS[name]()
    picture = model.graph()
    root = ET.fromstring(picture.svg)
    assert root.tag.endswith("svg")
    texts = {t.text for t in root.iter() if t.tag.endswith("text")}
    columns = {p for n in model.nodes.values() for p in n.parents if p.isidentifier()}
    assert set(model.nodes) | columns <= texts | {"firm", "year"}
    assert picture._repr_svg_() == picture.svg
    assert picture.save(tmp_path / "g.svg").read_text(encoding="utf-8") == picture.svg


@pytest.mark.parametrize("name", MODELS)
def test_no_two_nodes_of_a_picture_overlap(name):
    root = ET.fromstring(MODELS[name]().graph().svg)
    boxes = []
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        shape = group[1]
        get = {k: float(v) for k, v in shape.attrib.items() if re.fullmatch(r"-?[\d.]+", v)}
        if shape.tag.endswith("ellipse"):
            x, y, w, h = get["cx"], get["cy"], 2 * get["rx"], 2 * get["ry"]
        else:
            w, h = get["width"], get["height"]
            x, y = get["x"] + w / 2, get["y"] + h / 2
        boxes.append((x, y, w, h))
    assert len(boxes) > 3
    for (a, b, w, h), (c, d, u, v) in itertools.combinations(boxes, 2):
        assert abs(a - c) >= (w + u) / 2 or abs(b - d) >= (h + v) / 2


def test_edges_go_down_and_boxes_do_not_overlap():
    names = list("abcdefgh")
    edges = [("a", "c"), ("b", "c"), ("c", "e"), ("d", "e"), ("e", "f"), ("a", "f"), ("g", "h")]
    layer = layers_of(names, edges)
    assert all(layer[u] < layer[v] for u, v in edges)
    assert layer["d"] == layer["e"] - 1
    boxes = {"c": "p", "e": "p", "d": "q", "f": "q"}
    x, _, blocks = place(names, edges, boxes, dict.fromkeys(names, 40.0), 20.0, 10.0)
    assert set(x) == set(names)
    for one, other in itertools.combinations(blocks, 2):
        if one.meets(other, 0):
            assert abs(one.x - other.x) >= (one.width + other.width) / 2
