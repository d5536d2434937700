"""probkit: declarative probabilistic models on JAX, one result from every inference method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpyro import distributions as dist

from probkit._version import __version__
from probkit.core import Batches, Checkpoint, Inference, Progress, Status, Target, Thin, TimeLimit
from probkit.models import (
    BernoulliProbit,
    Model,
    deterministic,
    factor,
    gp,
    kernels,
    markov,
    module,
    rv,
    size,
)

if TYPE_CHECKING:
    from probkit._fit import fit, prior_predictive
    from probkit.core import run
    from probkit.inference import (
        CVI,
        EP,
        HMC,
        NUTS,
        SGLD,
        SVGD,
        VI,
        ExactGaussian,
        GPExact,
        GPLaplace,
        HybridEP,
        Laplace,
        Pathfinder,
    )
    from probkit.models._formula import formula
    from probkit.results import Check, Posterior, Verdict

# Methods and results load when they are first used: importing the package stays light.
_LAZY = {
    "CVI": "probkit.inference",
    "Check": "probkit.results",
    "EP": "probkit.inference",
    "ExactGaussian": "probkit.inference",
    "GPExact": "probkit.inference",
    "GPLaplace": "probkit.inference",
    "HMC": "probkit.inference",
    "HybridEP": "probkit.inference",
    "Laplace": "probkit.inference",
    "NUTS": "probkit.inference",
    "Pathfinder": "probkit.inference",
    "Posterior": "probkit.results",
    "SGLD": "probkit.inference",
    "SVGD": "probkit.inference",
    "VI": "probkit.inference",
    "Verdict": "probkit.results",
    "fit": "probkit._fit",
    "formula": "probkit.models._formula",
    "prior_predictive": "probkit._fit",
    "run": "probkit.core",
}

# Where users of other packages look first.
_ELSEWHERE = {
    "compare": "use arviz.compare on posterior.to_arviz() of each",
    "infer": "use pk.fit(model, data, method=...)",
    "loo": "use posterior.loo()",
    "plot_ppc": "use arviz.plot_ppc(posterior.to_arviz())",
    "plot_trace": "use posterior.report(path), or arviz.plot_trace(posterior.to_arviz())",
    "sample": "use pk.fit(model, data, method=pk.NUTS())",
    "sample_posterior_predictive": "use posterior.predict(data)",
    "sample_prior_predictive": "use pk.prior_predictive(model, data)",
    "summary": "use posterior.summary()",
    "to_arviz": "use posterior.to_arviz()",
}

__all__ = [
    "HybridEP",
    "GPLaplace",
    "GPExact",
    "EP",
    "CVI",
    "HMC",
    "NUTS",
    "SGLD",
    "SVGD",
    "VI",
    "Batches",
    "BernoulliProbit",
    "Check",
    "Checkpoint",
    "ExactGaussian",
    "Inference",
    "Laplace",
    "Model",
    "Pathfinder",
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
    "kernels",
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

    hint = f" For {name}, {_ELSEWHERE[name]}." if name in _ELSEWHERE else nearest(name, __all__)
    raise AttributeError(f"probkit has no {name!r}.{hint}")


def __dir__() -> list[str]:
    return sorted(__all__)
