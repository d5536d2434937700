"""Means over a normal of likelihoods that may be far narrower: against closed forms and SciPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as dist
from scipy import integrate, stats

import probkit as pk
from probkit.models._normal_mean import log_normal_mean

CENTRES, WIDTHS = (0.0, 1.3, 6.0), (1e-3, 1e-2, 0.1, 1.0, 30.0)


def _reference(log_density, centre, width):
    points = sorted({float(np.clip(centre + k * width, -9.9, 9.9)) for k in (-10, -1, 0, 1, 10)})
    value, _ = integrate.quad(
        lambda t: np.exp(log_density(t) - 0.5 * t * t) / np.sqrt(2 * np.pi),
        -10.0,
        10.0,
        points=[*points, -0.5, 0.5],
        limit=400,
        epsabs=0,
    )
    return np.log(value)


def test_against_closed_forms_and_quadrature():
    pairs = [(c, w) for c in CENTRES for w in WIDTHS]
    c, w = (np.array(v) for v in zip(*pairs, strict=True))

    def fn(t):
        normal = dist.Normal(c, w).log_prob(t)
        logit = jax.nn.log_sigmoid((t - c) / w)
        return {"normal": normal, "logit": logit, "t": dist.StudentT(4.0, c, w).log_prob(t)}

    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, jax.jit(lambda: log_normal_mean(fn, jnp.float64))())
    np.testing.assert_allclose(found["normal"], stats.norm(0, np.hypot(1, w)).logpdf(c), rtol=1e-9)
    for i, (centre, width) in enumerate(pairs):
        exact = _reference(
            lambda t, c=centre, w=width: -np.logaddexp(0, -(t - c) / w), centre, width
        )
        assert abs(found["logit"][i] - exact) < 1e-3 * width + 1e-6
        exact = _reference(stats.t(4, centre, width).logpdf, centre, width)
        # (The narrowest is at the end of the halvings.)
        assert abs(found["t"][i] - exact) < (1e-3 if width < 5e-3 else 1e-6)


def test_holes_and_impossible_values_pass_through():
    found = log_normal_mean(lambda t: jnp.array([jnp.nan, -jnp.inf]) + 0.0 * t, jnp.float32)
    assert np.isnan(found[0]) and found[1] == -np.inf


@pytest.mark.parametrize("noise", [0.01])
def test_log_predictive_of_a_process_with_little_noise(noise):
    x, new = np.linspace(0, 3, 8), np.array([0.4, 3.5, 5.0])
    y, y_new = np.sin(x), np.array([0.39, 0.0, 2.0])
    model = pk.Model(
        f=pk.gp(lambda: pk.kernels.RBF(0.8, 1.5), at="x"),
        y=pk.rv(lambda f, noise: dist.Normal(f, noise), dims="row"),
    )
    data = {"x": x, "y": y, "noise": np.array(noise)}
    posterior = pk.fit(model, data, method=pk.ExactGaussian(draws=2000), progress=False)

    def k(a, b):
        return 1.5 * np.exp(-0.5 * ((a[:, None] - b) / 0.8) ** 2)

    gram = k(x, x) + noise**2 * np.eye(8)
    mean = k(new, x) @ np.linalg.solve(gram, y)
    cov = k(new, new) - k(new, x) @ np.linalg.solve(gram, k(x, new))
    exact = stats.norm(mean, np.sqrt(np.diag(cov) + noise**2)).logpdf(y_new)
    found = posterior.log_predictive({"x": new, "y": y_new, "noise": np.array(noise)})
    # 2,000 draws of the function: a standard error of about .01.
    np.testing.assert_allclose(found.values, exact, atol=0.06)
