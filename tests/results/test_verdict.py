"""Verdict, checks and summary."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

from probkit.results._psis import Loo, loo
from probkit.results._summary import STATS, hdi, summarise
from probkit.results._verdict import Check, Verdict, importance_checks, loo_checks, mcmc_checks

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz as az


def _rng(seed=0):
    return np.random.default_rng(seed)


def _good(seed=0):
    rng = _rng(seed)
    draws = {"mu": rng.normal(size=(4, 500)), "theta": rng.normal(size=(4, 500, 8))}
    stats = {
        "diverging": np.zeros((4, 500), dtype=bool),
        "energy": rng.normal(size=(4, 500)),
        "reached_max_treedepth": np.zeros((4, 500), dtype=bool),
    }
    return draws, stats


def test_good_chains_pass():
    verdict = Verdict(tuple(mcmc_checks(*_good())))
    assert verdict.ok and not verdict.failed and not verdict.unjudged
    assert {c.name for c in verdict.checks} == {
        *("r_hat", "ess_bulk", "ess_tail", "mcse", "divergences", "e_bfmi", "tree_depth"),
        *("non_finite", "stuck_chains"),
    }
    text = str(verdict)
    assert text.startswith("OK: nothing found wrong (R-hat 1.00")
    assert "0 divergences" in text.splitlines()[0]
    assert "FAIL" not in text


def test_false_alarms():
    """Independent draws must not be called bad: none in 60 runs of 9 components, which a rate of
    false alarms of 8 % would fail with probability 0.993."""
    assert all(Verdict(tuple(mcmc_checks(*_good(seed)))).ok for seed in range(100, 160))


def test_the_worst_component_is_named():
    draws, stats = _good()
    draws["theta"][0, :, 3] += 2.0
    stats["diverging"][2, :7] = True
    stats["diverging"][1, 0] = True
    stats["reached_max_treedepth"][1] = True
    stats["energy"][3] = np.cumsum(stats["energy"][3])
    verdict = Verdict(tuple(mcmc_checks(draws, stats)))
    assert not verdict.ok
    assert verdict["r_hat"].where == "theta[3]" and verdict["r_hat"].value > 1.2
    assert verdict["divergences"].value == 8
    assert verdict["divergences"].where == "8 of 2000 draws, most in chain 2"
    assert verdict["e_bfmi"].where == "chain 3"
    assert verdict["tree_depth"].value == 0.25
    named = {c.name for c in verdict.failed}
    assert {"r_hat", "ess_bulk", "divergences", "e_bfmi", "tree_depth"} <= named
    assert all(c.advice for c in verdict.failed)
    text = str(verdict)
    assert text.startswith(f"NOT OK: {len(named)} of 9 checks failed")
    assert "theta[3]" in text and "target_accept" in text
    assert max(map(len, text.splitlines())) <= 100


def test_labels_and_html():
    draws, stats = _good()
    draws["theta"][0, :, 3] += 2.0
    names = [f"<{i}>" for i in range(8)]
    checks = mcmc_checks(draws, stats, labels=lambda s, i: f"{s}[{names[i[0]]}]" if i else s)
    verdict = Verdict(tuple(checks), status="the time limit was reached")
    assert verdict["r_hat"].where == "theta[<3>]"
    page = verdict._repr_html_()
    assert "theta[&lt;3&gt;]" in page and "<3>" not in page and "time limit" in page
    assert "run: the time limit" in str(verdict)

    def broken(site, index):
        raise RuntimeError("no names")

    assert mcmc_checks(draws, stats, labels=broken)[0].where == "theta[3]"


def test_getitem_names_the_nearest():
    verdict = Verdict(tuple(mcmc_checks(*_good())))
    assert "r_hat" in verdict and "rhat" not in verdict
    with pytest.raises(KeyError, match="Did you mean 'r_hat'"):
        verdict["rhat"]


def test_an_empty_verdict_is_not_ok():
    assert not Verdict(()).ok
    unjudged = Check("r_hat", None, float("nan"), 1.01, "", "needs draws")
    assert not Verdict((unjudged,)).ok
    assert "nothing could be judged" in str(Verdict((unjudged,)))
    both = Verdict((unjudged, Check("divergences", True, 0.0, 0.0)))
    assert both.ok and "1 not judged" in both.headline()


def test_constants_are_left_out_and_said():
    draws, stats = _good()
    corr = np.ones((4, 500, 2, 2), dtype=np.float32)
    corr[..., 0, 1] = corr[..., 1, 0] = 0.5 * np.tanh(draws["mu"])
    corr[..., 1, 1] += np.float32(1.2e-7) * _rng(3).integers(0, 2, (4, 500))
    draws["corr"] = corr
    verdict = Verdict(tuple(mcmc_checks(draws, stats)))
    assert verdict.ok and not verdict.unjudged
    assert "never varies, not judged: corr[0, 0], corr[1, 1]" in verdict["r_hat"].advice
    alone = Verdict(tuple(mcmc_checks({"c": np.ones((4, 500))})))
    assert alone["r_hat"].ok is None and "never varies" in alone["r_hat"].advice
    assert not alone["stuck_chains"].ok and alone["stuck_chains"].value == 4
    assert not alone.ok


def test_stuck_chains():
    draws, stats = _good()
    draws = {name: value.copy() for name, value in draws.items()}
    for value in draws.values():
        value[2] = value[2, 0]
    draws["fixed"] = np.full((4, 500), 2.0)
    # A discrete site that rests on one value in a chain is no witness.
    draws["k"] = np.zeros((4, 500), dtype=int)
    draws["k"][0, 0] = 1
    check = Verdict(tuple(mcmc_checks(draws, stats)))["stuck_chains"]
    assert check.ok is False and check.value == 1 and check.where == "chain 2"
    draws["mu"][2] = _rng(9).normal(size=500)
    assert Verdict(tuple(mcmc_checks(draws, stats)))["stuck_chains"].ok


def test_non_finite_draws():
    draws, stats = _good()
    draws["theta"][1, 7, 2] = np.nan
    draws["theta"][1, 8, 2] = np.inf
    verdict = Verdict(tuple(mcmc_checks(draws, stats)))
    assert verdict["non_finite"].value == 2 and verdict["non_finite"].where == "theta[2]"
    assert verdict["r_hat"].ok and "not finite, not judged: theta[2]" in verdict["r_hat"].advice


def test_one_chain_and_few_draws():
    draws = {"mu": _rng().normal(size=(1, 1000))}
    verdict = Verdict(tuple(mcmc_checks(draws)))
    assert verdict.ok and verdict["ess_bulk"].threshold == 100.0
    drift = {"mu": draws["mu"] + np.linspace(0, 4, 1000)}
    assert Verdict(tuple(mcmc_checks(drift)))["r_hat"].ok is False
    few = Verdict(tuple(mcmc_checks({"mu": np.arange(12.0).reshape(4, 3)})))
    assert few["r_hat"].ok is False and "at least 4 draws" in few["r_hat"].advice


@pytest.mark.parametrize(
    "draws",
    [
        {},
        {"a": np.zeros(3)},
        {"a": np.array([["x"] * 8] * 4)},
        {"a": np.zeros((0, 10))},
        {"a": np.zeros((4, 0))},
        {"a": np.zeros((4, 10, 0))},
        {"a": _rng().normal(size=(4, 30)), "b": _rng().normal(size=(2, 30))},
        {"a": np.full((4, 30), np.nan)},
        {"a": _rng().normal(size=(4, 30)) * 1j},
    ],
    ids=(
        ["none", "one_axis", "text", "no_chains", "no_draws", "no_components"]
        + ["other_length", "all_nan", "complex"]
    ),
)
def test_never_raises(draws):
    bad = {"diverging": "no", "energy": np.zeros(3), "reached_max_treedepth": None}
    for stats in (None, bad):
        verdict = Verdict(tuple(mcmc_checks(draws, stats)))
        assert not verdict.ok
        assert str(verdict) and verdict._repr_html_()
    for values in draws.values():
        assert importance_checks(values[:0])[0].ok is None
    strange = Loo(0.0, 0.0, 0.0, np.zeros(0), np.zeros(0))
    assert loo_checks(strange)[0].ok is None
    assert "nan" not in str(Verdict(tuple(loo_checks(strange))))


def test_an_odd_site_does_not_hide_the_others():
    draws, stats = _good()
    draws["name"] = np.array([["x"] * 500] * 4)
    verdict = Verdict(tuple(mcmc_checks(draws, stats)))
    assert verdict["r_hat"].ok and "not read: name" in verdict["r_hat"].advice


def test_importance_checks():
    rng = _rng()
    good = Verdict(tuple(importance_checks(0.3 * rng.normal(size=2000))))
    assert good.ok and "k-hat" in good.headline()
    bad = importance_checks(-1.5 * np.log(rng.random(2000)))
    assert bad[0].ok is False and bad[0].value > 0.7 and bad[0].advice
    assert importance_checks(np.zeros(100))[0].value == 0.0
    broken = importance_checks(np.r_[np.nan, np.zeros(99)])
    assert broken[0].ok is False and "1 of 100" in broken[0].advice and broken[1].ok is False
    assert importance_checks(np.full(100, -np.inf))[0].ok is False
    assert importance_checks(np.zeros(0))[0].ok is None


def test_loo_checks():
    rng = _rng()
    mu = rng.normal(size=(4, 500, 1)) * 0.3
    y = rng.normal(size=12)
    assert loo_checks(loo(-0.5 * (y - mu) ** 2))[0].ok
    y[5] = 40.0
    check = loo_checks(loo(-0.5 * (y - mu) ** 2))[0]
    assert check.ok is False and "worst observation 5" in check.where
    named = loo_checks(loo(-0.5 * (y - mu) ** 2), labels=lambda i: f"row {i[0]}")[0]
    assert "worst row 5" in named.where


def test_a_figure_is_told_from_its_threshold():
    text = str(Verdict((Check("r_hat", False, 1.0100049, 1.01),)))
    assert "1.0100049  (needs < 1.01)" in text


def test_nothing_heavy_is_imported():
    code = (
        "import sys, probkit.results._verdict as v, probkit.results._summary, numpy as np\n"
        "before = set(sys.modules)\n"
        "print(v.Verdict(tuple(v.mcmc_checks({'a': np.random.default_rng(0)"
        ".normal(size=(4, 300))}))))\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "heavy = {'arviz', 'xarray', 'pandas', 'matplotlib', 'blackjax'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'scipy' not in new, new\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OK")


def test_summary_equals_arviz():
    rng = _rng(8)
    draws = {"mu": rng.normal(size=(4, 300)), "theta": rng.gamma(2.0, size=(4, 300, 3))}
    draws["slow"] = np.cumsum(rng.normal(size=(4, 300)), axis=1)
    ours = summarise(draws)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = az.summary(az.from_dict(posterior=draws), round_to="none", hdi_prob=0.94)
    # xarray's releases order the variables of a new data set differently.
    assert sorted(ours.index) == sorted(theirs.index)
    theirs = theirs.loc[ours.index]
    assert ours.columns[0] == "mean"
    theirs = theirs.rename(columns={"hdi_3%": "hdi94_low", "hdi_97%": "hdi94_high"})
    assert list(ours.columns) == list(theirs.columns)
    np.testing.assert_allclose(ours.to_numpy(), theirs.to_numpy(dtype=float), rtol=1e-8)


def test_summary_options():
    draws = {"a": _rng().normal(size=(2, 50, 2, 3)), "n": _rng().integers(0, 5, size=(2, 50))}
    table = summarise(draws, lambda s, i: f"{s}.{i}", 0.5, ("median", "eti"))
    assert list(table.columns) == ["median", "eti50_low", "eti50_high"]
    assert table.index[1] == "a.(0, 1)" and len(table) == 7
    flat = draws["a"][:, :, 1, 2].ravel()
    np.testing.assert_allclose(
        table.loc["a.(1, 2)"], [np.median(flat), *np.quantile(flat, [0.25, 0.75])]
    )
    assert list(summarise(draws, stats=STATS).columns)[:3] == ["mean", "sd", "median"]
    short = summarise({"a": np.ones((1, 2))})
    assert short.loc["a", "mean"] == 1.0 and np.isnan(short.loc["a", "r_hat"])
    assert summarise({}).empty
    missing = np.ones((1, 20))
    missing[0, 3] = np.nan
    assert np.isnan(hdi(missing)).all()


def test_constants_beside_components_that_vary_have_no_row() -> None:
    rng = np.random.default_rng(0)
    corr = np.ones((2, 50, 2, 2))
    corr[..., 0, 1] = corr[..., 1, 0] = rng.uniform(-1, 1, (2, 50))
    codes = np.stack([np.zeros((2, 50), int), rng.integers(0, 2, (2, 50))], axis=-1)
    draws = {"corr": corr, "still": np.ones((2, 50, 2)), "codes": codes}
    table = summarise(draws)
    assert list(table.index) == [
        *("corr[0, 1]", "corr[1, 0]"),
        *("still[0]", "still[1]", "codes[0]", "codes[1]"),
    ]
    assert table.attrs["constant"] == ["corr[0, 0]", "corr[1, 1]"]
    assert len(summarise(draws, constants=True)) == 8


def test_summary_mistakes():
    x = _rng().normal(size=(2, 50))
    with pytest.raises(TypeError, match="Did you mean 'ess_bulk'"):
        summarise({"a": x}, stats=("ess_bulkk",))
    with pytest.raises(ValueError, match="hdi_prob"):
        summarise({"a": x}, hdi_prob=94.0)
    with pytest.raises(ValueError, match="'a'.*found"):
        summarise({"a": x[0]})
    with pytest.raises(TypeError, match="'a'"):
        summarise({"a": x.astype(str)})
