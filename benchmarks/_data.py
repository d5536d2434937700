"""The data of the benchmarks: real where real data serve, from statsmodels; NumPy arrays only."""

from __future__ import annotations

from typing import Any

import numpy as np

COVARIATES = ("rate_marriage", "age", "yrs_married", "children", "religious", "educ")


def schools() -> dict[str, np.ndarray]:
    """Eight schools (Rubin 1981): effects ``y`` and their standard errors ``sigma``, shape (8,)."""
    return {
        "y": np.array([28, 8, -3, 7, -1, 1, 18, 12], np.float32),
        "sigma": np.array([15, 10, 16, 11, 9, 11, 10, 18], np.float32),
    }


def affairs() -> dict[str, np.ndarray]:
    """Fair's survey of 1974: ``x`` (6366, 6) standardised, ``couple`` codes of 36, ``y`` 0 or 1."""
    from statsmodels.datasets import fair

    frame: Any = fair.load_pandas().data
    x = frame[list(COVARIATES)].to_numpy()
    couple = (frame["occupation"] - 1) * 6 + frame["occupation_husb"] - 1
    return {
        "x": ((x - x.mean(0)) / x.std(0)).astype(np.float32),
        "couple": couple.to_numpy().astype(np.int32),
        "y": (frame["affairs"].to_numpy() > 0).astype(np.int32),
    }


def visits() -> dict[str, np.ndarray]:
    """The RAND health insurance experiment: ``x`` (20190, 9) standardised, ``y`` log visits."""
    from statsmodels.datasets import randhie

    frame: Any = randhie.load_pandas().data
    x = frame.drop(columns="mdvis").to_numpy(float)
    y = np.log1p(frame["mdvis"].to_numpy(float))
    return {"x": ((x - x.mean(0)) / x.std(0)).astype(np.float32), "y": y.astype(np.float32)}


def precision(size: int = 100, odd: int = 8) -> dict[str, np.ndarray]:
    """The precision matrix of a correlated Gaussian.

    ``odd`` eigenvalues of the covariance are spread from 1e-3 to 1e3, the others are 1, and a
    random rotation hides the axes.
    """
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
    values = np.ones(size)
    values[:odd] = np.logspace(-3, 3, odd)
    return {"precision": ((rotation / values) @ rotation.T).astype(np.float32)}


def sunspots(rows: int = 200) -> dict[str, np.ndarray]:
    """The last ``rows`` years of sunspot numbers: ``time`` in decades, ``y`` standardised root."""
    from statsmodels.datasets import sunspots as source

    every: Any = source.load_pandas().data
    frame = every.iloc[-rows:]
    root = np.sqrt(frame["SUNACTIVITY"].to_numpy())
    return {
        "time": (frame["YEAR"].to_numpy() - frame["YEAR"].min()) / 10.0,
        "y": (root - root.mean()) / root.std(),
    }
