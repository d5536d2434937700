"""Run the README's first example, write what it prints into the README, and draw its picture.

Run it from the root of the repository when the example or the numbers change::

    python docs/refresh_readme.py
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import probkit as pk

ROOT = Path(__file__).resolve().parent.parent
#: The first Python block, the one that shows what it prints, and what lies between them.
EXAMPLE = re.compile(r"^(```python\n)(.*?)(^```\n+```\n)(.*?)(^```)", flags=re.M | re.S)


def run_example(code: str) -> tuple[dict[str, Any], str]:
    """The example's names and what it printed."""
    scope: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, scope)
    return scope, printed.getvalue().rstrip() + "\n"


def draw(posterior: pk.Posterior, data: dict[str, Any], path: Path) -> None:
    """Reported effects with two standard errors; posterior means with 50 % and 94 % intervals."""
    theta = posterior.draws["theta"].stack(sample=("chain", "draw"))
    names = theta["school"].values.tolist()
    low, inner_low, inner_high, high = (
        theta.quantile(q, "sample").values for q in (0.03, 0.25, 0.75, 0.97)
    )
    mean = theta.mean("sample").values
    y, sigma = np.array(data["y"]), np.array(data["sigma"])
    rows = np.arange(len(names))
    figure = Figure(figsize=(7.2, 3.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    above, below = rows - 0.16, rows + 0.16
    axes.hlines(above, y - 2 * sigma, y + 2 * sigma, color="#b8b8b8", lw=1.5)
    axes.plot(y, above, "o", color="#8a8a8a", ms=5, label="reported, with 2 standard errors")
    axes.hlines(below, low, high, color="#2f6fab", lw=1.5)
    axes.hlines(below, inner_low, inner_high, color="#2f6fab", lw=4)
    label = "posterior: mean, 50 % and 94 % intervals"
    axes.plot(mean, below, "o", color="#12395c", ms=5, label=label)
    axes.axvline(0.0, color="#d0d0d0", lw=1, zorder=0)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    axes.set_xlabel("effect of coaching (points)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(frameon=False, loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(path, facecolor="white")


def main() -> None:
    """Refresh README.md and docs/_static/schools.png."""
    readme = ROOT / "README.md"
    found = EXAMPLE.search(text := readme.read_text())
    assert found is not None, "README.md: no Python block followed by a block of output"
    scope, printed = run_example(found[2])
    start, end = found.span(4)
    readme.write_text(text[:start] + printed + text[end:])
    draw(scope["posterior"], scope["data"], ROOT / "docs" / "_static" / "schools.png")
    print(printed)


if __name__ == "__main__":
    main()
