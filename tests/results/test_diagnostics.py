"""Diagnostics, Pareto smoothing and leave-one-out against ArviZ and closed forms."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
from scipy.stats import norm, rankdata

from probkit.results import _diagnostics as d
from probkit.results._psis import importance_ess, loo, psis

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz as az


def _ar(rng, chains, draws, rho, shape=()):
    noise = rng.normal(size=(chains, draws, *shape))
    out = np.empty_like(noise)
    out[:, 0] = noise[:, 0]
    for t in range(1, draws):
        out[:, t] = rho * out[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return out


def _cases():
    rng = np.random.default_rng(3)
    cases = {
        "independent": rng.normal(size=(4, 250)),
        "odd": rng.normal(size=(4, 251)),
        "slow": _ar(rng, 4, 500, 0.97),
        "antithetic": _ar(rng, 4, 500, -0.8),
        "cauchy": rng.standard_cauchy(size=(4, 400)),
        "far_from_zero": 1e6 + _ar(rng, 3, 300, 0.5),
        "tiny": 1e-9 * _ar(rng, 3, 300, 0.5),
        "separated": rng.normal(size=(4, 200)) + 3 * np.arange(4)[:, None],
        "unequal_spread": rng.normal(size=(4, 200)) * np.array([1, 1, 1, 8.0])[:, None],
        "counts": rng.poisson(3.0, size=(4, 300)).astype(float),
        "binary": (rng.random((4, 300)) < 0.3).astype(float),
        "stuck": np.vstack([rng.normal(size=(3, 200)), np.full((1, 200), 0.3)]),
        "levels": np.repeat(np.arange(4.0), 100).reshape(4, 100),
        "constant": np.full((4, 100), 0.1),
        "nan": np.where(rng.random((4, 100)) < 0.01, np.nan, rng.normal(size=(4, 100))),
    }
    for length in range(4, 13):
        cases[f"draws_{length}"] = rng.normal(size=(4, length))
    return cases


CASES = _cases()
PEERS = {
    "rhat": (d.rhat, lambda x: az.rhat(x)),
    "ess_bulk": (d.ess_bulk, lambda x: az.ess(x, method="bulk")),
    "ess_tail": (d.ess_tail, lambda x: az.ess(x, method="tail")),
    "ess_mean": (d.ess_mean, lambda x: az.ess(x, method="mean")),
    "mcse_mean": (d.mcse_mean, lambda x: az.mcse(x, method="mean")),
    "mcse_sd": (d.mcse_sd, lambda x: az.mcse(x, method="sd")),
}


def _peer(function, x):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return np.asarray(function(x))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("case", CASES)
def test_equal_to_arviz(name, case):
    ours, theirs = PEERS[name]
    x = CASES[case]
    expected = _peer(theirs, x)
    if (name, case) == ("mcse_sd", "tiny"):
        # ArviZ takes squares that spread by less than 1e-15 for a constant: compare it in a unit
        # in which they do not.
        expected = 1e-9 * _peer(theirs, 1e9 * x)
    np.testing.assert_allclose(ours(x), expected, rtol=1e-8)


@pytest.mark.parametrize("name", [n for n in PEERS if n != "rhat"])
def test_one_chain_equals_arviz(name):
    ours, theirs = PEERS[name]
    for case in ("slow", "cauchy", "constant", "draws_5"):
        x = CASES[case][:1]
        np.testing.assert_allclose(ours(x), _peer(theirs, x), rtol=1e-8)


def test_one_chain_has_the_split_rhat():
    rng = np.random.default_rng(0)
    assert d.rhat(rng.normal(size=(1, 1000))) < 1.01
    assert d.rhat(rng.normal(size=(1, 1000)) + np.linspace(0, 3, 1000)) > 1.2
    x = _ar(rng, 1, 400, 0.9).reshape(2, 200)
    parts = []
    for values in (x, abs(x - np.median(x))):
        z = norm.ppf((rankdata(values).reshape(2, 200) - 0.375) / 400.25)
        within = z.var(axis=1, ddof=1).mean()
        parts.append(np.sqrt(199 / 200 + z.mean(axis=1).var(ddof=1) / within))
    assert d.rhat(x.reshape(1, 400)) == pytest.approx(max(parts), rel=1e-10)


def test_vectorised_equals_one_by_one(monkeypatch):
    x = _ar(np.random.default_rng(1), 4, 101, 0.6, (3, 5))
    whole = d.diagnose(x)
    monkeypatch.setattr(d, "_BLOCK", 4 * 101 * 2)
    for name, value in d.diagnose(x).items():
        np.testing.assert_array_equal(value, whole[name])
        assert value.shape == (3, 5)
    for i in range(3):
        for j in range(5):
            one = d.diagnose(x[:, :, i, j])
            for name, value in one.items():
                np.testing.assert_allclose(value, whole[name][i, j], rtol=1e-12)
    np.testing.assert_allclose(whole["r_hat"], d.rhat(x))
    np.testing.assert_allclose(whole["ess_tail"], d.ess_tail(x))


def test_float32_and_integers_are_taken_as_float64():
    x = CASES["slow"].astype(np.float32)
    assert d.ess_bulk(x) == d.ess_bulk(x.astype(np.float64))
    counts = CASES["counts"]
    assert d.ess_bulk(counts.astype(int)) == d.ess_bulk(counts)


def test_too_few_draws_and_bad_shapes():
    assert np.isnan(d.rhat(np.zeros((4, 3, 2)))).all()
    assert np.isnan(d.ess_bulk(np.zeros((0, 30)))).all()
    assert d.ess_bulk(np.zeros((4, 30, 0))).shape == (0,)
    with pytest.raises(ValueError, match=r"\(chain, draw"):
        d.rhat(np.zeros(10))
    with pytest.raises(ValueError, match=r"\(chain, draw"):
        d.ebfmi(np.zeros(10))


def test_infinite_draws_do_not_raise_or_warn():
    x = CASES["independent"].copy()
    x[0, 3] = np.inf
    out = d.diagnose(x)
    assert np.isfinite(out["r_hat"]) and np.isfinite(out["ess_bulk"])
    assert np.isnan(out["ess_mean"])


@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_ess_of_an_autoregression(rho):
    """Closed form N (1 - rho)/(1 + rho). The estimate's spread over seeds is about 4 %."""
    x = _ar(np.random.default_rng(5), 4, 5000, rho)
    expected = x.size * (1 - rho) / (1 + rho)
    assert d.ess_mean(x) == pytest.approx(expected, rel=0.2)


def test_ebfmi_equals_arviz():
    energy = _ar(np.random.default_rng(2), 4, 300, 0.8)
    np.testing.assert_allclose(d.ebfmi(energy), az.bfmi(energy), rtol=1e-12)
    assert np.isnan(d.ebfmi(np.ones((2, 50)))).all()


def test_psis_equals_arviz():
    rng = np.random.default_rng(4)
    for scale in (0.1, 1.0, 3.0, 8.0):
        for size in (20, 26, 100, 1000, 4001):
            for r_eff in (1.0, 0.3):
                raw = scale * rng.normal(size=(size, 3))
                ours, k = psis(raw, r_eff)
                theirs, k_theirs = az.psislw(raw.T.copy(), r_eff)
                np.testing.assert_allclose(ours, theirs.T, rtol=1e-8, atol=1e-10)
                np.testing.assert_allclose(k, k_theirs, rtol=1e-8)
    heavy = 400 * rng.normal(size=1000)
    np.testing.assert_allclose(psis(heavy)[1], az.psislw(heavy.copy())[1])


def test_psis_of_known_tails():
    """Weights u^-k have a Pareto tail of shape k. The fit's spread is about sqrt(1/190) (1 + k),
    shrunk to 1/2: a tolerance of 0.3 is 3.3 of it at k = .2 and 2.4 at k = .7 (seeded)."""
    u = np.random.default_rng(6).random(4000)
    for k in (0.2, 0.5, 0.7):
        assert psis(-k * np.log(u))[1] == pytest.approx(k, abs=0.3)
    assert psis(-2.0 * np.log(u))[1] > 1.0


def test_psis_of_constant_and_broken_weights():
    smooth, k = psis(np.full((100, 2), -3.7))
    assert (k == 0).all()
    np.testing.assert_allclose(np.exp(smooth), 0.01)
    assert psis(np.arange(5.0))[1] == np.inf
    for bad in (np.nan, np.inf):
        smooth, k = psis(np.r_[bad, np.zeros(99)])
        assert np.isnan(k) and np.isnan(smooth).all()
    assert np.isnan(psis(np.full(50, -np.inf))[1])
    zero = np.r_[np.full(50, -np.inf), np.random.default_rng(0).normal(size=200)]
    smooth, k = psis(zero)
    assert np.isfinite(k) and np.exp(smooth).sum() == pytest.approx(1)
    kept, _ = psis(zero + 5.0, normalize=False)
    assert kept.max() == pytest.approx(zero.max() + 5.0, abs=1.0)
    with pytest.raises(ValueError, match="r_eff"):
        psis(np.zeros((10, 3)), np.ones(2))
    with pytest.raises(ValueError, match="r_eff"):
        psis(np.zeros((10, 3)), 0.0)
    with pytest.raises(ValueError, match="at least one draw"):
        psis(np.zeros((0, 3)))


def test_importance_ess():
    assert importance_ess(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    assert importance_ess(np.r_[0.0, np.full(9, -np.inf)]) == 1.0


def _log_lik(seed=0, rows=30):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=rows)
    y[0] = 6.0
    mu = y.mean() + rng.normal(size=(4, 500, 1)) / np.sqrt(rows)
    return -0.5 * (y - mu) ** 2 - 0.5 * np.log(2 * np.pi), y


def test_loo_equals_arviz():
    log_lik, _ = _log_lik()
    data = az.from_dict(posterior={"mu": log_lik[..., 0]}, log_likelihood={"y": log_lik})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = az.loo(data, pointwise=True, reff=0.8)
    ours = loo(log_lik, r_eff=0.8)
    assert ours.elpd == pytest.approx(theirs.elpd_loo, rel=1e-8)
    assert ours.se == pytest.approx(theirs.se, rel=1e-8)
    assert ours.p_loo == pytest.approx(theirs.p_loo, rel=1e-7)
    assert ours.good_k == pytest.approx(theirs.good_k)
    np.testing.assert_allclose(ours.pointwise, theirs.loo_i.values, rtol=1e-8)
    np.testing.assert_allclose(ours.khat, theirs.pareto_k.values, rtol=1e-8)


def test_loo_equals_the_closed_form():
    """Normal mean with known variance and a flat prior: y_i given the rest is
    N(mean of the rest, 1 + 1/(n - 1)). p_loo is near 1 + the outlier's share."""
    log_lik, y = _log_lik()
    n = len(y)
    rest = (y.sum() - y) / (n - 1)
    variance = 1 + 1 / (n - 1)
    exact = -0.5 * (y - rest) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    result = loo(log_lik)
    np.testing.assert_allclose(result.pointwise, exact, atol=0.1)
    assert result.elpd == pytest.approx(exact.sum(), abs=0.1)
    assert loo(log_lik.reshape(4, 500, 5, 6)).khat.shape == (5, 6)
    assert "elpd_loo" in str(result)


def test_loo_with_a_missing_observation():
    log_lik, _ = _log_lik()
    log_lik[..., 3] = np.nan
    result = loo(log_lik)
    assert np.isnan(result.elpd) and np.isnan(result.khat[3]) and np.isfinite(result.khat[4])
    with pytest.raises(ValueError, match="observation"):
        loo(log_lik[..., 0])


def test_memory_is_bounded():
    """Blocks keep the working memory beyond the input (64 MB) at under 150 MB; all components at
    once take 390 MB."""
    x = np.tile(np.random.default_rng(0).normal(size=(4, 250, 1000)), 8)
    tracemalloc.start()
    d.ess_bulk(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
