"""probkit: declarative probabilistic models on JAX, one result from every inference method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpyro import distributions as dist

from probkit._version import __version__
from probkit.core import Batches, Checkpoint, Inference, Progress, Status, Target, Thin, TimeLimit
from probkit.models import Model, deterministic, factor, gp, markov, module, rv, size

if TYPE_CHECKING:
    from probkit._fit import fit, prior_predictive
    from probkit.core import run
    from probkit.inference import HMC, NUTS, SGLD, ExactGaussian, Laplace
    from probkit.models._formula import formula
    from probkit.results import Check, Posterior, Verdict

# Methods and results load when they are first used: importing the package stays light.
_LAZY = {
    "Check": "probkit.results",
    "ExactGaussian": "probkit.inference",
    "HMC": "probkit.inference",
    "Laplace": "probkit.inference",
    "NUTS": "probkit.inference",
    "Posterior": "probkit.results",
    "SGLD": "probkit.inference",
    "Verdict": "probkit.results",
    "fit": "probkit._fit",
    "formula": "probkit.models._formula",
    "prior_predictive": "probkit._fit",
    "run": "probkit.core",
}

__all__ = [
    "HMC",
    "NUTS",
    "SGLD",
    "Batches",
    "Check",
    "Checkpoint",
    "ExactGaussian",
    "Inference",
    "Laplace",
    "Model",
    "Posterior",
    "Progress",
    "Status",
    "Target",
    "Thin",
    "TimeLimit",
    "Verdict",
    "__version__",
    "deterministic",
    "dist",
    "factor",
    "fit",
    "formula",
    "gp",
    "markov",
    "module",
    "prior_predictive",
    "run",
    "rv",
    "size",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    from probkit.core import nearest

    raise AttributeError(f"probkit has no {name!r}.{nearest(name, __all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
