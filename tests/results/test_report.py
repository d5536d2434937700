"""The report: complete, self-contained, safe, honest about what is missing; and its command."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from scipy.special import ndtr

from probkit.__main__ import main
from probkit.results._netcdf import save_groups
from probkit.results._report import MAX_ROWS, write_report
from probkit.results._report_data import ReportData, verdict_from_json, verdict_to_json
from probkit.results._report_html import fixed, number
from probkit.results._report_mpl import house_style, smooth_density
from probkit.results._report_predictive import (
    loo_pit,
    matched_predictions,
    statistics_rows,
    uniform_band,
)
from probkit.results._verdict import Check, Verdict

SCHOOLS = ["Choate", "Deerfield", "Andover"]


def normal_groups(chains: int = 4, draws: int = 300, seed: int = 0) -> dict[str, xr.Dataset]:
    """Exact posterior of y_i ~ N(mu, 1), flat mu: every group in closed form."""
    rng = np.random.default_rng(seed)
    y = rng.normal(1.0, 1.0, size=50)
    lead = ("chain", "draw")
    mu = rng.normal(y.mean(), 50**-0.5, size=(chains, draws))
    theta = rng.normal(size=(chains, draws, 3))
    lik = -0.5 * (y - mu[..., None]) ** 2 - 0.5 * np.log(2 * np.pi)
    stats = {
        "diverging": (lead, rng.random((chains, draws)) < 0.02),
        "energy": (lead, rng.normal(size=(chains, draws))),
        "step_size": (lead, np.full((chains, draws), 0.25)),
        "tree_depth": (lead, np.full((chains, draws), 3)),
    }
    replicates = rng.normal(mu[..., None], 1.0, size=(chains, draws, 50))
    return {
        "posterior": xr.Dataset(
            {"mu": (lead, mu), "theta": ((*lead, "school"), theta)},
            coords={"school": SCHOOLS},
            attrs={"sampling_time": 1.25},
        ),
        "sample_stats": xr.Dataset(stats),
        "log_likelihood": xr.Dataset({"y": ((*lead, "row"), lik)}),
        "posterior_predictive": xr.Dataset({"y": ((*lead, "row"), replicates)}),
        "observed_data": xr.Dataset({"y": ("row", y)}),
    }


def tiny_groups() -> dict[str, xr.Dataset]:
    """One scalar and its divergences: a page with a single picture."""
    groups = normal_groups()
    return {"posterior": groups["posterior"][["mu"]], "sample_stats": groups["sample_stats"]}


class Reader(HTMLParser):
    """Text by section, ids, tags left open, and every address the page asks for."""

    VOID = ("meta", "br", "img", "hr", "input", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.sections: dict[str, str] = {}
        self._section = "top"
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        found = dict(attrs)
        if tag in ("section", "div") and found.get("id"):
            self.ids.append(found["id"])
            self._section = found["id"]
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()
        if tag == "section":
            self._section = "top"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.sections[self._section] = self.sections.get(self._section, "") + data


def report(tmp_path, groups, **options) -> tuple[str, Reader]:
    path = write_report(groups, tmp_path / "r.html", **options)
    assert path == tmp_path / "r.html"
    text = path.read_text(encoding="utf-8")
    assert "could not be made" not in text
    reader = Reader(text)
    assert reader.open == []
    return text, reader


def test_a_full_report_has_every_part(tmp_path):
    text, page = report(tmp_path, normal_groups(), attrs={"sampler": "nuts"}, title="Exact")
    assert page.ids[:2] == ["verdict", "summary"]
    assert page.ids[2:] == ["graph", "trace", "pairs", "energy", "ppc", "loo", "facts"]
    assert "NOT OK" in page.sections["verdict"]
    assert "target_accept" in page.sections["verdict"], "a failed check comes with its advice"
    assert "theta[Deerfield]" in page.sections["summary"]
    assert text.count("<svg") == 4 + 1 + 1 + 1 + 2
    assert "Left out" in page.sections["graph"]
    for name in ("trace", "pairs", "energy", "ppc", "loo"):
        assert "eft out" not in page.sections[name], page.sections[name]
    for fact in ("sampler", "nuts", "sampling_time", "1.25", "chain 3", "log_likelihood"):
        assert fact in page.sections["facts"]


def test_nothing_comes_from_outside_and_only_our_script_runs(tmp_path):
    text, page = report(tmp_path, tiny_groups(), graph_svg="<svg><script>bad()</script></svg>")
    assert all(a.startswith(("#", "data:")) for a in page.addresses)
    assert "url(http" not in text and "@import" not in text
    policy = re.search(r'Security-Policy" content="([^"]*)"', text)
    assert policy and "default-src 'none'" in policy[1]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts]
    assert [d in policy[1] for d in digests] == [False, True], "the graph's script may not run"


def test_pictures_follow_the_page_and_leave_matplotlib_alone(tmp_path):
    import matplotlib

    matplotlib.rcParams["text.usetex"] = True  # would fail without TeX if it were heeded
    matplotlib.rcParams["axes.facecolor"] = "black"
    try:
        text, _ = report(tmp_path, tiny_groups())
        assert matplotlib.rcParams["text.usetex"] is True
    finally:
        matplotlib.rcdefaults()
    assert "var(--ink)" in text
    for placeholder in ("#010203", "#040506", "#070809", "#0a0b0c"):
        assert placeholder not in text
    with house_style():
        assert matplotlib.rcParams["text.parse_math"] is False
    assert matplotlib.rcParams["text.parse_math"] is True


def test_the_report_does_not_import_pyplot(tmp_path):
    code = (
        "import sys, numpy as np, xarray as xr; from probkit.results._report import write_report;"
        "x = xr.Dataset({'mu': (('chain', 'draw'), np.random.default_rng(0).normal(size=(2, 9)))});"
        f"write_report({{'posterior': x}}, {str(tmp_path / 'r.html')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules and 'arviz' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_a_posterior_is_enough(tmp_path):
    groups = {"posterior": normal_groups()["posterior"]}
    text, page = report(tmp_path, groups)
    assert "OK: nothing found wrong" in page.sections["verdict"]
    assert "no group sample_stats" in page.sections["energy"]
    assert "no group posterior_predictive or observed_data" in page.sections["ppc"]
    assert "no group log_likelihood" in page.sections["loo"]
    assert "does not say which draws diverged" in page.sections["pairs"]
    assert text.count("<svg") == 5


def test_one_chain_has_no_ranks(tmp_path):
    for chain in (0, [0]):
        one = tiny_groups()["posterior"].isel(chain=chain, drop=True)
        _, page = report(tmp_path, {"posterior": one})
        assert "there is one" in page.sections["trace"]
        assert "1 chain of 300 draws" in page.sections["top"]


def test_names_are_text_wherever_they_come_from(tmp_path):
    evil = "<script>alert('x')</script>$x_1$"
    rng = np.random.default_rng(0)
    lead = ("chain", "draw")
    draws = xr.Dataset(
        {evil: ((*lead, "g"), rng.normal(size=(2, 50, 2)))},
        coords={"g": ["<b>", "山 é"]},
        attrs={"<i>": "</table><img src=x>"},
    )
    replicated = xr.Dataset({evil: ((*lead, "g"), rng.normal(size=(2, 50, 2)))})
    observed = xr.Dataset({evil: ("g", rng.normal(size=2))})
    groups = {
        "posterior": draws,
        "posterior_predictive": replicated,
        "observed_data": observed,
        "log_likelihood": -(replicated**2),
    }
    text, page = report(tmp_path, groups, title=evil)
    assert "<script>alert" not in text and "<img" not in text and "<b>" not in text
    assert f"{evil}[山 é]" in page.sections["summary"]
    assert len(page.scripts) == 1


def test_large_models_show_the_worst_and_say_so(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 100, 500))
    x[0, :, 371] += 5.0
    draws = xr.Dataset(
        {"x": (("chain", "draw", "i"), x), "mu": (("chain", "draw"), rng.normal(size=(4, 100)))}
    )
    _, page = report(tmp_path, {"posterior": draws})
    assert f"{MAX_ROWS} components with the worst R-hat and ESS, of 501" in page.sections["summary"]
    assert "x[371]" in page.sections["summary"] and "x[371]" in page.sections["verdict"]
    assert re.search(r"x\[371\].*mu", page.sections["trace"].replace("\n", " "))


def test_odd_draws_do_not_break_the_page(tmp_path):
    rng = np.random.default_rng(2)
    lead = ("chain", "draw")
    broken = rng.normal(size=(3, 60))
    broken[1, 5] = np.nan
    broken[2, 6] = np.inf
    draws = xr.Dataset(
        {
            "broken": (lead, broken),
            "never": (lead, np.full((3, 60), np.nan)),
            "still": (lead, np.full((3, 60), 2.0)),
            "flag": (lead, rng.random((3, 60)) < 0.5),
            "count": (lead, rng.poisson(3, (3, 60))),
            "heavy": (lead, rng.standard_cauchy((3, 60)) * 1e6),
            "words": (lead, np.full((3, 60), "a")),
            "empty": ((*lead, "none"), np.zeros((3, 60, 0))),
        }
    )
    stats = xr.Dataset({"energy": (lead, np.full((3, 60), 1.0)), "diverging": (lead, broken > 1)})
    text, page = report(tmp_path, {"posterior": draws, "sample_stats": stats})
    assert "not draws of numbers: words, empty" in re.sub(r"\s+", " ", text)
    assert "energies do not vary" in page.sections["energy"]
    assert "not finite" in page.sections["verdict"]


def test_few_draws_make_a_page(tmp_path):
    _, page = report(tmp_path, normal_groups(chains=2, draws=2))
    assert "2 draws" in page.sections["top"]


def test_other_libraries_names_of_statistics_are_known():
    groups = {"posterior": normal_groups()["posterior"]}
    ones = (("chain", "draw"), np.ones((4, 300)))
    groups["sample_stats"] = xr.Dataset({"depth": ones, "mean_tree_accept": ones, "lp__": ones})
    assert {"tree_depth", "acceptance_rate", "lp"} <= set(ReportData(groups).stats)


def test_the_verdict_shown_is_given_or_saved_or_judged(tmp_path):
    groups = {"posterior": tiny_groups()["posterior"]}
    mine = Verdict((Check("k_hat", False, 0.9, 0.7, "the tail", "use NUTS"),), "time limit")
    saved = {"verdict": verdict_to_json(mine)}
    assert verdict_from_json(saved["verdict"]) == mine
    for options in ({"verdict": mine}, {"attrs": saved}):
        _, page = report(tmp_path, groups, **options)
        assert "Use NUTS." in page.sections["verdict"] and "time limit" in page.sections["verdict"]
        assert "k_hat" not in page.sections["facts"]
    text, page = report(tmp_path, groups, attrs={"verdict": "scrambled"})
    assert "judged anew" in text and "OK" in page.sections["verdict"]


def test_nan_figures_survive_the_text_of_a_verdict():
    lost = Verdict((Check("r_hat", None, float("nan"), 1.01, "", "one draw"),))
    assert np.isnan(verdict_from_json(verdict_to_json(lost)).checks[0].value)


def test_the_graph_is_shown(tmp_path):
    graph = '<?xml version="1.0"?><svg viewBox="0 0 9 9"><title>graph</title></svg>'
    groups = {"posterior": tiny_groups()["posterior"]}
    for options in ({"graph_svg": graph}, {"attrs": {"model_graph": graph}}):
        text, _ = report(tmp_path, groups, **options)
        assert '<svg viewBox="0 0 9 9">' in text and "<?xml" not in text


def test_errors_say_what_is_missing(tmp_path, monkeypatch):
    groups = normal_groups()
    with pytest.raises(ValueError, match="expected a group 'posterior', found 'sample_stats'"):
        write_report({"sample_stats": groups["sample_stats"]}, tmp_path / "r.html")
    with pytest.raises(ValueError, match=r"no variable .* has draws; .* found a\(i\) float64"):
        write_report({"posterior": xr.Dataset({"a": ("i", [1.0])})}, tmp_path / "r.html")
    with pytest.raises(FileNotFoundError, match="does not exist; make it first"):
        write_report(groups, tmp_path / "none" / "r.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'probkit\[plots\]'"):
        write_report(groups, tmp_path / "r.html")


def test_loo_pit_matches_the_closed_form():
    groups = normal_groups(draws=5000)
    y = groups["observed_data"]["y"].values
    rest = (y.sum() - y) / 49
    exact = ndtr((y - rest) / np.sqrt(1 + 1 / 49))
    # 20,000 nearly equal weights: sd of a PIT <= .5/sqrt(20000) = .0035; .02 is over 5 sd.
    np.testing.assert_allclose(loo_pit(ReportData(groups), "y"), exact, atol=0.02)


def test_loo_pit_leaves_imputed_rows_out_by_their_labels():
    groups = normal_groups()
    rows = {"row": np.arange(50)}
    for name in ("posterior_predictive", "observed_data", "log_likelihood"):
        groups[name] = groups[name].assign_coords(rows)
    full = loo_pit(ReportData(groups), "y")
    groups["log_likelihood"] = groups["log_likelihood"].isel(row=slice(5, None))
    np.testing.assert_allclose(loo_pit(ReportData(groups), "y"), full[5:])
    groups["log_likelihood"] = groups["log_likelihood"].drop_vars("row").rename(row="other")
    with pytest.raises(ValueError, match="the log likelihood has sizes"):
        loo_pit(ReportData(groups), "y")


def test_the_band_holds_95_percent_of_uniform_curves():
    grid = np.linspace(0, 1, 202)[1:-1]
    rng = np.random.default_rng(3)
    for count in (8, 60):
        low, high = uniform_band(count, grid)
        assert np.all(low <= grid + 1e-12) and np.all(grid <= high + 1e-12)
        values = np.sort(rng.random((600, count)), axis=1)
        curves = np.stack([np.searchsorted(v, grid, side="right") for v in values]) / count
        share = np.mean(np.all((low - 1e-9 <= curves) & (curves <= high + 1e-9), axis=1))
        # sd of the share .009, of the simulated quantile .007: five together are .057; ties
        # of small counts can only widen the band.
        assert 0.893 < share <= 1.0
        shifted = np.all((low <= curves**2) & (curves**2 <= high), axis=1).mean()
        assert shifted < share


def test_predictions_are_matched_by_dims_and_holes_left_out():
    lead = ("chain", "draw")
    rng = np.random.default_rng(4)
    drawn = rng.poisson(2, size=(2, 50, 3, 4))
    seen = np.arange(12.0).reshape(4, 3)
    seen[1, 2] = np.nan
    groups = {
        "posterior": xr.Dataset({"a": (lead, rng.normal(size=(2, 50)))}),
        "posterior_predictive": xr.Dataset(
            {"y": ((*lead, "c", "r"), drawn), "short": ((*lead, "k"), rng.normal(size=(2, 50, 2)))}
        ),
        "observed_data": xr.Dataset(
            {"y": (("r", "c"), seen), "short": ("l", [1.0, 2.0, 3.0]), "lonely": ("l", np.ones(3))}
        ),
    }
    (found,), notes = matched_predictions(ReportData(groups))
    assert found.observed.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    np.testing.assert_array_equal(found.replicates[:, 2], drawn[:, :, 2, 0].ravel())
    assert found.labels[-1] == "y[3, 2]"
    assert any("lonely has no" in n for n in notes) and any("observed shape" in n for n in notes)
    mean = statistics_rows(found)[0]
    assert mean[1] == found.observed.mean() and mean[4] < 0.05


@pytest.mark.parametrize("kind", ["binary", "counts", "many", "constant", "single"])
def test_every_kind_of_outcome_has_a_picture(tmp_path, kind):
    rng = np.random.default_rng(5)
    size = {"many": 3000, "single": 1}.get(kind, 45)
    drawn = {
        "binary": lambda: rng.integers(0, 2, (2, 40, size)),
        "counts": lambda: rng.poisson(4, (2, 40, size)),
        "constant": lambda: np.ones((2, 40, size)) * 0.5,
    }.get(kind, lambda: rng.normal(size=(2, 40, size)))()
    groups = {
        "posterior": normal_groups(2, 40)["posterior"][["mu"]],
        "posterior_predictive": xr.Dataset({"y": (("chain", "draw", "i"), drawn)}),
        "observed_data": xr.Dataset({"y": ("i", drawn[0, 0])}),
        "log_likelihood": xr.Dataset(
            {"y": (("chain", "draw", "i"), -0.1 * rng.random((2, 40, size)))}
        ),
    }
    _, page = report(tmp_path, groups)
    assert ("2,000 of 3,000 observations" in page.sections["loo"]) == (kind == "many")


def test_densities_are_densities():
    rng = np.random.default_rng(6)
    grid, density = smooth_density(rng.normal(size=20000))
    exact = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
    assert abs(np.sum(density) * (grid[1] - grid[0]) - 1) < 1e-12
    assert np.abs(density - exact).max() < 0.03
    _, at_edge = smooth_density(rng.exponential(size=20000))
    assert at_edge[0] > 0.85, "no mass is lost over the edge of a positive variable"
    for odd in (np.array([0.0, 1.0]), np.r_[np.zeros(99), 1.0], rng.standard_cauchy(2000)):
        grid, density = smooth_density(odd)
        assert np.isfinite(density).all() and grid.shape == density.shape


def test_figures_are_written_for_reading():
    assert [number(v) for v in (3.0, 0.12341, 1234.4, np.nan, -np.inf)] == [
        "3", "0.1234", "1234", "–", "−∞",
    ]  # fmt: skip
    assert [fixed(1.23456, 0.5), fixed(1234.5, 100.0), fixed(-0.001, 3.0), fixed(2.0, 0.0)] == [
        "1.235", "1234", "0.00", "2",
    ]  # fmt: skip


def test_the_command_writes_a_report(tmp_path, capsys):
    path = save_groups(tiny_groups(), tmp_path / "a.nc")
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 0
    assert "NOT OK" in capsys.readouterr().out
    assert "<title>a</title>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert main(["report", str(path), "--strict", "--title", "T"]) == 1
    assert "<h1>T</h1>" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_the_command_explains_what_it_cannot_use(tmp_path, capsys):
    (tmp_path / "text.nc").write_text("hello")
    no_posterior = save_groups({"prior": normal_groups()["posterior"]}, tmp_path / "prior.nc")
    for file, words in (
        (tmp_path / "none.nc", "does not exist"),
        (tmp_path / "text.nc", "not a netCDF-4 file"),
        (no_posterior, "expected a group 'posterior', found 'prior'"),
    ):
        assert main(["report", str(file)]) == 2
        assert words in capsys.readouterr().err
    good = save_groups(tiny_groups(), tmp_path / "a.nc")
    assert main(["report", str(good), "-o", str(good)]) == 2
    assert "is the input itself" in capsys.readouterr().err
    for wrong in ([], ["reprot"], ["report"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2


def test_info_and_version(capsys):
    from probkit._version import __version__

    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert f"probkit {__version__}" in out and "numpyro 0." in out and "devices: cpu:0" in out
    done = subprocess.run(
        [sys.executable, "-m", "probkit", "--version"], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == f"probkit {__version__}"
