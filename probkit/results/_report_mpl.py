"""Pictures as inline SVG that follow the page's colours, in light, dark and print.

matplotlib is used through its objects and the Agg canvas, never through pyplot, so nothing of the
caller's figures, backend or style is touched or matters. Four colours are placeholders: in the
finished SVG they become the CSS variables ``--ink``, ``--muted``, ``--grid`` and ``--card`` of the
page. Dense marks (traces, clouds of points) are stored as a picture inside the SVG, so that a
file stays small; placeholders must not be used for those.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, CARD = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", CARD: "--card"}

# Distinct for colour-blind readers and of middling lightness, to be seen on white and on black.
CHAINS = ("#3d85c6", "#e0902a", "#2f9e77", "#c2649a", "#8f78d8", "#9a8f2b", "#3ba7b8", "#a8734f")
ACCENT, WARN = "#3d85c6", "#e5484d"


def require_matplotlib() -> None:
    """Raise an ImportError that names the extra, unless matplotlib can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the report draws its pictures with matplotlib, which is not installed: "
            "pip install 'probkit[plots]'"
        ) from error


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with matplotlib's defaults and this page's choices, whatever the caller has set."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "probkit",
                "text.parse_math": False,
                "font.size": 8.5,
                "axes.edgecolor": GRID,
                "axes.labelcolor": MUTED,
                "axes.titlecolor": INK,
                "axes.titlesize": 8.5,
                "axes.linewidth": 0.8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.facecolor": "none",
                "figure.facecolor": "none",
                "figure.dpi": 100,
                "savefig.dpi": 180,
                "text.color": INK,
                "xtick.color": GRID,
                "ytick.color": GRID,
                "xtick.labelcolor": MUTED,
                "ytick.labelcolor": MUTED,
                "xtick.labelsize": 7.5,
                "ytick.labelsize": 7.5,
                "grid.color": GRID,
                "legend.frameon": False,
                "legend.fontsize": 8,
                "legend.labelcolor": MUTED,
                "axes.prop_cycle": cycler(color=list(CHAINS)),
            }
        )
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, drawn by Agg where something must become pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def axes_at(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes whose box (left, bottom, width, height) is given in inches."""
    width, height = figure.get_size_inches()
    left, bottom, wide, high = box
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def to_svg(figure: Figure, alt: str) -> str:
    """The figure as an ``<svg>`` element that scales with the page, described by ``alt``."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text in the SVG, so a glyph that matplotlib's own font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, body = text.split(">", 1)
    width, height = figure.get_size_inches()
    box = f"0 0 {width * 72:g} {height * 72:g}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" role="img" aria-label="{html.escape(alt)}" '
        f'style="width:{width * 72 * 4 / 3:.0f}px"'
    )
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[A-Za-z0-9_.]+">', "<g>", body)
    body = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", "system-ui, sans-serif", body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, f"var({variable})")
    return f"{head}>{body}"


def smooth_density(values: NDArray, points: int = 256) -> tuple[NDArray, NDArray]:
    """A Gaussian kernel density estimate on a grid, reflected at the ends of the data.

    Binned and convolved, O(n + points^2). The bandwidth is Silverman's with the smaller of the
    standard deviation and the scaled interquartile range. Values must be finite and vary.
    """
    low, high = float(values.min()), float(values.max())
    spread = float(values.std())
    quartiles = np.quantile(values, [0.25, 0.75])
    robust = float(quartiles[1] - quartiles[0]) / 1.34
    width = 0.9 * (min(spread, robust) if robust > 0 else spread) * len(values) ** -0.2
    width = max(width, (high - low) / points)
    step = (high - low) / points
    grid = low + step * (np.arange(points) + 0.5)
    cells = np.clip(((values - low) / step).astype(int), 0, points - 1)
    counts = np.bincount(cells, minlength=points).astype(float)
    # Heavy tails make the bandwidth tiny beside the range; the padding never exceeds the data.
    reach = min(int(np.ceil(4 * width / step)), points)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / width) ** 2)
    padded = np.concatenate((counts[:reach][::-1], counts, counts[points - reach :][::-1]))
    density = np.convolve(padded, kernel / kernel.sum(), mode="valid")
    return grid, density / (density.sum() * step)


def is_discrete(values: NDArray) -> bool:
    """Whether finite values are whole numbers few enough to count one by one."""
    return bool(np.all(values == np.round(values)) and np.ptp(values) <= 60)


def quiet_ticks(
    axes: Axes, x: int | None = None, y: int | None = None, *, whole: bool = False
) -> None:
    """At most so many ticks on an axis; 0 removes them; ``whole`` allows whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    for axis, count in ((axes.xaxis, x), (axes.yaxis, y)):
        if count == 0:
            axis.set_ticks([])
        elif count is not None:
            steps = [1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10]
            locator = MaxNLocator(count, steps=steps, min_n_ticks=2, integer=whole)
            axis.set_major_locator(locator)
