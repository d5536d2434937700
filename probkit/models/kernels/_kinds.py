"""Whether the coordinate that says what a row is a value of names something that there is.

Points are known when a model is bound to data; later, in a compiled program, an index that is out
of range would silently be the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probkit.models.kernels._compose import ChangePoint, Columns
from probkit.models.kernels._kernel import Product, Sum
from probkit.models.kernels._outputs import ICM, LCM, Derivative


def check_kinds(kernel: Any, points: np.ndarray) -> None:
    """Raise a ValueError if an output or a derivative of points ``(n, d)`` does not exist."""
    if isinstance(kernel, Sum | Product):
        inner = (kernel.left, kernel.right)
    elif isinstance(kernel, ChangePoint):
        inner = (kernel.before, kernel.after)
    elif isinstance(kernel, LCM):
        inner = kernel.parts
    elif isinstance(kernel, Columns):
        inner, points = (kernel.kernel,), _chosen(kernel.columns, points)
    elif isinstance(kernel, ICM) and points.shape[1] > 1:
        _check(points[:, -1], "kernels.ICM", "output", "outputs", np.shape(kernel.weights)[0] - 1)
        inner, points = (kernel.kernel,), points[:, :-1]
    elif isinstance(kernel, Derivative) and points.shape[1] > 1:
        most = points.shape[1] - 1
        _check(points[:, -1], "kernels.Derivative", "kind", "kinds (0: the value)", most)
        inner, points = (kernel.kernel,), points[:, :-1]
    else:
        inner = ()
    for part in inner:
        check_kinds(part, points)


def _chosen(columns: Sequence[int] | int, points: np.ndarray) -> np.ndarray:
    """The columns of that number; those that there are not are the kernel's own affair."""
    wanted = [columns] if isinstance(columns, int) else list(columns)
    d = points.shape[1]
    return points[:, [c for c in wanted if -d <= c < d]]


def _check(found: np.ndarray, where: str, what: str, several: str, most: int) -> None:
    wrong = ~np.isin(found, np.arange(most + 1))
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{where}: expected {several} among 0 to {most} as the last coordinate of the points, "
            f"found {found[place]:g} at row {place} ({int(wrong.sum())} rows in all); count each "
            f"{what} from 0, and list its column last in at=[...]"
        )
