"""Kernels: each against a closed form or a Monte Carlo of what it stands for."""

from __future__ import annotations

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from probkit.models import kernels
from probkit.models.kernels import cross_covariance, diagonal

D = 3
W = np.array([[1.0, 0.2], [-0.5, 0.7]])


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def network(x):
    return jnp.tanh(jnp.asarray([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]]) @ x)


#: Every kernel of points with D coordinates, as a function of two positive parameters.
KERNELS = {
    "ArcCosine0": lambda a, b: kernels.ArcCosine(0, a, b, 0.5),
    "ArcCosine1": lambda a, b: kernels.ArcCosine(1, a, b, 0.5),
    "ArcCosine2": lambda a, b: kernels.ArcCosine(2, a, b, 0.5),
    "ArcCosine3": lambda a, b: kernels.ArcCosine(3, a, b, 0.5),
    "ChangePoint": lambda a, b: kernels.ChangePoint(
        kernels.RBF(a), kernels.Matern32(b, 2.0), location=0.1, width=b
    ),
    "Columns": lambda a, b: kernels.Columns(kernels.RBF(a, b), [0, 2]),
    "Constant": lambda a, b: kernels.RBF(a) + b,
    "Deep": lambda a, b: kernels.Deep(network, kernels.RBF(a, b)),
    "Linear": lambda a, b: kernels.Linear(a) + kernels.Linear(b),
    "Matern12": lambda a, b: kernels.Matern12(a, b),
    "Matern32": lambda a, b: kernels.Matern32(a, b),
    "Matern52": lambda a, b: kernels.Matern52(a, b),
    "Matern92": lambda a, b: kernels.Matern92(a, b),
    "NNGP erf": lambda a, b: kernels.NNGP(2, "erf", a, b),
    "NNGP relu": lambda a, b: kernels.NNGP(3, "relu", a, b),
    "NTK erf": lambda a, b: kernels.NTK(2, "erf", a, b),
    "NTK relu": lambda a, b: kernels.NTK(3, "relu", a, b),
    "Periodic": lambda a, b: kernels.Periodic(a, b),
    "Polynomial": lambda a, b: kernels.Polynomial(2, a, b),
    "PoweredExponential": lambda a, b: kernels.PoweredExponential(a, 1.3, b),
    "RBF": lambda a, b: kernels.RBF(a, b),
    "RationalQuadratic": lambda a, b: kernels.RationalQuadratic(a, b),
    "SpectralMixture": lambda a, b: kernels.SpectralMixture(
        jnp.stack([a, b]), 0.2 * jnp.ones((2, D)), 0.1
    ),
    "SpectralMixture t": lambda a, b: kernels.SpectralMixture(
        jnp.stack([a, b]), 0.2 * jnp.ones((2, D)), 0.1, df=3
    ),
    "Tanimoto": lambda a, b: a * kernels.Tanimoto(b),
    "White": lambda a, b: kernels.RBF(a) * kernels.White(b),
}


def points(name: str, n: int = 12) -> np.ndarray:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, D))
    x[1] = x[0]  # two equal points
    x[2] = 0.0
    x[3] = x[0] + 1e-9
    return np.abs(x) if name == "Tanimoto" else x


@pytest.mark.parametrize("name", KERNELS)
def test_symmetric_positive_and_smooth_in_its_parameters(name):
    x = jnp.asarray(points(name))
    make = KERNELS[name]

    mix = jnp.asarray(np.random.default_rng(5).normal(size=(len(x), len(x))))

    def mixed(p):
        gram = cross_covariance(make(p[0], p[1]), x, x)
        return jnp.sum(gram * mix), gram

    both = jax.jit(jax.value_and_grad(mixed, has_aux=True))
    p = jnp.asarray([0.8, 1.3])
    (_, gram), slope = both(p)
    gram = np.asarray(gram)
    np.testing.assert_allclose(gram, gram.T, rtol=0, atol=1e-14 * np.abs(gram).max())
    assert np.linalg.eigvalsh(gram).min() > -1e-12 * np.abs(gram).max()
    step = 1e-5
    for i in range(2):
        move = step * np.eye(2)[i]
        change = float(both(p + move)[0][0] - both(p - move)[0][0]) / (2 * step)
        size = np.abs(gram).sum()
        assert float(slope[i]) == pytest.approx(change, rel=1e-5, abs=1e-7 * size)


def test_the_diagonal_alone():
    x = jnp.asarray(points("RBF"))
    k = kernels.RBF(0.3) + kernels.ArcCosine(0)
    np.testing.assert_allclose(diagonal(k, x), jnp.diagonal(cross_covariance(k, x, x)), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "nu"), [("Matern12", 0.5), ("Matern32", 1.5), ("Matern52", 2.5), ("Matern92", 4.5)]
)
def test_matern_kernels_are_bessel_functions(name, nu):
    r = np.array([1e-3, 0.1, 0.7, 2.0, 9.0])
    u = np.sqrt(2 * nu) * r / 0.6
    want = 2 ** (1 - nu) / special.gamma(nu) * u**nu * special.kv(nu, u)
    k = getattr(kernels, name)(0.6)
    got = [float(k(0.0, v)) for v in r]
    np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("name", ["RBF", "Matern12", "Matern32", "Matern52"])
def test_kernels_of_gpjax_are_the_same(name):
    gpjax = pytest.importorskip("gpjax")
    x = jnp.asarray(points("RBF"))
    scales = jnp.asarray([0.7, 1.0, 2.0])
    theirs = getattr(gpjax.kernels, name)(lengthscale=scales, variance=1.7)
    ours = cross_covariance(getattr(kernels, name)(scales, 1.7), x, x)
    np.testing.assert_allclose(ours, theirs.cross_covariance(x, x), atol=1e-8)
    np.testing.assert_allclose(cross_covariance(kernels.RBF() * 0.0 + theirs, x, x), ours, 1e-7)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_arc_cosine_kernels_are_gaussian_expectations(order):
    def want(c):
        # 2 E[u^n v^n; u, v > 0] by polar coordinates: a radial and an angular integral.
        theta = math.acos(c)
        inner = lambda t: (math.cos(t) * math.cos(t - theta)) ** order  # noqa: E731
        angle = integrate.quad(inner, theta - math.pi / 2, math.pi / 2, epsabs=1e-13)[0]
        return 2 * angle * math.gamma(order + 1) * 2**order / (2 * math.pi)

    k = kernels.ArcCosine(order, bias_variance=0.0)
    for c in (-0.99, -0.4, 0.0, 0.3, 0.8, 1.0):
        x, y = jnp.asarray([1.0, 0.0]), jnp.asarray([c, math.sqrt(1 - c * c)])
        assert float(k(x, y)) == pytest.approx(want(c), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_network_kernels_are_those_of_wide_random_networks(activation):
    """Covariance and mean inner product of gradients of 400 random networks of width 256.

    The limits are five standard errors, plus 2 % for what the width leaves (of order 1/256).
    """
    x = jnp.asarray([[0.5, -1.0, 0.3], [1.2, 0.4, -0.6]])
    phi = jax.nn.relu if activation == "relu" else jax.scipy.special.erf
    width, count, s_w, s_b = 256, 400, math.sqrt(1.5), 0.3

    def net(parameters, point):
        u = point
        for i, (w, b) in enumerate(parameters):
            u = s_w / math.sqrt(len(u)) * w @ (u if i == 0 else phi(u)) + s_b * b
        return u[0]

    def one(key):
        shapes = [(width, 3), (width, width), (1, width)]
        parameters = []
        for i, s in enumerate(shapes):
            k1, k2 = jax.random.split(jax.random.fold_in(key, i))
            parameters.append(
                (jax.random.normal(k1, s, jnp.float32), jax.random.normal(k2, s[:1], jnp.float32))
            )
        values, slopes = zip(
            *(jax.value_and_grad(net)(parameters, v.astype(jnp.float32)) for v in x), strict=True
        )
        inner = lambda a, b: sum(  # noqa: E731
            jnp.vdot(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        )
        return jnp.stack(values), jnp.stack([inner(slopes[i], slopes[j]) for i, j in PAIRS])

    keys = jax.random.split(jax.random.key(0), count)
    values, tangents = (np.asarray(a, float) for a in jax.lax.map(one, keys))
    make = {"depth": 2, "activation": activation, "weight_variance": 1.5, "bias_variance": 0.09}
    process, tangent = kernels.NNGP(**make), kernels.NTK(**make)
    for place, (i, j) in enumerate(PAIRS):
        products = values[:, i] * values[:, j]
        want = float(process(x[i], x[j]))
        assert abs(products.mean() - want) < 5 * products.std() / math.sqrt(count) + 0.02 * want
        spread = tangents[:, place].std() / math.sqrt(count)
        want = float(tangent(x[i], x[j]))
        assert abs(tangents[:, place].mean() - want) < 5 * spread + 0.02 * abs(want)


PAIRS = [(0, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("df", [None, 1, 3, 5])
def test_a_spectral_mixture_is_the_fourier_integral_of_its_spectrum(df):
    weights, centres, scales = np.array([0.7, 1.4]), np.array([0.3, 0.9]), np.array([0.1, 0.25])
    k = kernels.SpectralMixture(*map(jnp.asarray, (weights, centres, scales)), df=df)
    one = stats.norm() if df is None else stats.t(df)
    for t in (0.2, 0.9):
        want = 0.0
        for w, m, s in zip(weights, centres, scales, strict=True):
            # E cos(2 pi t (m + s e)) = cos(2 pi t m) E cos(2 pi t s e)
            wave = integrate.quad(
                one.pdf, 0, np.inf, weight="cos", wvar=2 * math.pi * t * s, limit=400
            )[0]
            want += w * math.cos(2 * math.pi * t * m) * 2 * wave
        assert float(k(0.0, t)) == pytest.approx(want, abs=1e-7)


def test_outputs_mix_by_their_coregionalisation():
    x = np.column_stack([np.linspace(0, 2, 8), np.tile([0.0, 1.0], 4)])
    base = kernels.RBF(0.5)
    one = kernels.ICM(base, jnp.asarray(W), jnp.asarray([0.3, 0.4]))
    gram = np.asarray(cross_covariance(one, jnp.asarray(x), jnp.asarray(x)))
    mix = W @ W.T + np.diag([0.3, 0.4])
    code = x[:, 1].astype(int)
    inputs = np.exp(-0.5 * ((x[:, :1] - x[:, 0]) / 0.5) ** 2)
    np.testing.assert_allclose(gram, mix[np.ix_(code, code)] * inputs, rtol=1e-12)
    two = kernels.LCM([one, kernels.ICM(kernels.Matern32(), jnp.asarray([[1.0], [2.0]]))])
    more = np.asarray(cross_covariance(two, jnp.asarray(x), jnp.asarray(x)))
    assert np.linalg.eigvalsh(more).min() > 0
    assert more[0, 1] == pytest.approx(gram[0, 1] + 2 * float(kernels.Matern32()(*x[:2, 0])))


SMOOTH = {
    "RBF": kernels.RBF(0.7),
    "Matern32": kernels.Matern32(0.7),
    "Matern92": kernels.Matern92(0.7),
    "ArcCosine1": kernels.ArcCosine(1, 1.3, 0.7, 0.4),
    "ArcCosine2": kernels.ArcCosine(2, 1.3, 0.7, 0.4),
    "NNGP relu": kernels.NNGP(2, "relu", 1.2, 0.3),
    "NNGP erf": kernels.NNGP(2, "erf", 1.2, 0.3),
    "NTK erf": kernels.NTK(2, "erf", 1.2, 0.3),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_have_the_covariance_of_finite_differences(name):
    kernel = SMOOTH[name]
    step = 1e-4
    base = cross_covariance
    x = np.array([[0.1, 0.4], [0.5, -0.3], [0.1, 0.4]])
    kinds = np.array([0, 1, 2])
    rows = np.array([[*p, k] for p in x for k in kinds])
    got = np.asarray(base(kernels.Derivative(kernel), jnp.asarray(rows), jnp.asarray(rows)))
    # Each row as a combination of values of the process: f, or a central difference of it.
    places, mix = [], []
    for p in x:
        for k in kinds:
            if k == 0:
                places += [p, p]
                mix.append([1.0, 0.0])
            else:
                move = step * np.eye(2)[k - 1]
                places += [p + move, p - move]
                mix.append([0.5 / step, -0.5 / step])
    spread = np.zeros((len(rows), len(places)))
    for i, pair in enumerate(mix):
        spread[i, 2 * i : 2 * i + 2] = pair
    gram = np.asarray(base(kernel, jnp.asarray(np.array(places)), jnp.asarray(np.array(places))))
    want = spread @ gram @ spread.T
    # k'' has a cusp at zero distance for nu = 3/2, and for one layer of ReLU units.
    rough = 5e-3 if name in ("Matern32", "ArcCosine1", "NNGP relu") else 1e-5
    np.testing.assert_allclose(got, want, atol=rough * np.abs(want).max())
    # The two equal points make it singular, and no more than that.
    assert np.linalg.eigvalsh(got).min() > -1e-12 * got.max()


ROUGH = {
    "Matern12": kernels.RBF() + 2.0 * kernels.Matern12(),
    "White": kernels.RBF() + kernels.White(),
    "PoweredExponential": kernels.PoweredExponential(),
    "ArcCosine of order 0": kernels.Deep(network, kernels.ArcCosine(0)),
    "NTK with activation 'relu'": kernels.Columns(kernels.NTK(), [0]),
    "SpectralMixture with df=1": kernels.SpectralMixture(np.ones(1), np.ones(1), 1.0, df=1),
}


@pytest.mark.parametrize("name", ROUGH)
def test_processes_without_derivatives_are_refused(name):
    with pytest.raises(ValueError, match=f"found {name}"):
        kernels.Derivative(ROUGH[name])


def test_tanimoto_is_the_jaccard_index_of_sets():
    rng = np.random.default_rng(0)
    bits = rng.random((6, 20)) < 0.4
    bits[5] = False
    gram = np.asarray(cross_covariance(kernels.Tanimoto(), *[jnp.asarray(bits, float)] * 2))
    for i in range(6):
        for j in range(6):
            either = (bits[i] | bits[j]).sum()
            want = (bits[i] & bits[j]).sum() / either if either else 1.0
            assert gram[i, j] == pytest.approx(want)


def test_a_change_point_has_one_kernel_on_either_side():
    k = kernels.ChangePoint(kernels.RBF(0.5), kernels.Matern12(2.0, 3.0), 1.0, width=0.01)
    assert float(k(0.0, 0.3)) == pytest.approx(float(kernels.RBF(0.5)(0.0, 0.3)))
    assert float(k(2.0, 2.4)) == pytest.approx(float(kernels.Matern12(2.0, 3.0)(2.0, 2.4)))
    assert float(k(0.0, 2.0)) == pytest.approx(0.0, abs=1e-12)


def test_examples_of_the_documentation_run():
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner(verbose=False)
    count = 0
    for name in dir(kernels):
        if not name.startswith("_"):
            for test in finder.find(getattr(kernels, name), name):
                count += bool(test.examples)
                assert not runner.run(test).failed, test.name
    assert count >= 12


MISTAKES = {
    "class": (lambda: kernels.RBF() + kernels.Matern12, "call it: Matern12"),
    "text": (lambda: kernels.RBF() + "rbf", "found str"),
    "even df": (lambda: kernels.SpectralMixture(jnp.ones(1), jnp.ones(1), 1.0, df=4), "odd"),
    "shapes": (lambda: kernels.SpectralMixture(jnp.ones(2), jnp.ones(1), 1.0), r"\(Q,\)"),
    "order": (lambda: kernels.ArcCosine(order=-1), "order"),
    "depth": (lambda: kernels.NNGP(depth=0), "depth"),
    "activation": (lambda: kernels.NTK(activation="relo"), "relu"),
    "swapped": (lambda: kernels.Deep(3.0, kernels.RBF()), "Deep"),
    "no kind": (lambda: kernels.Derivative(kernels.RBF())(0.0, 1.0), "at="),
    "columns": (lambda: kernels.Columns(kernels.RBF(), 3)(jnp.ones(2), jnp.ones(2)), "at="),
    "weights": (lambda: kernels.ICM(kernels.RBF(), jnp.ones(2)), "outputs, rank"),
    "scales": (lambda: kernels.RBF(jnp.ones(2))(0.0, 1.0), "each of the points' 1 coord"),
    "more scales": (
        lambda: cross_covariance(kernels.Matern32(jnp.ones(3)), jnp.ones((4, 2)), jnp.ones((4, 2))),
        r"found shape \(3,\)",
    ),
    "empty": (lambda: kernels.LCM([]), "at least one"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name):
    make, words = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=words):
        make()
