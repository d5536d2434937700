"""probkit: declarative probabilistic models on JAX, one result from every inference method."""

from __future__ import annotations

from typing import Any

import lazy_loader
from numpyro import distributions as dist  # noqa: F401

from probkit._version import __version__ as __version__

# What there is stands in __init__.pyi; it is imported when it is first used.
_attribute, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*_names, "__version__", "dist"])  # pyright: ignore[reportUnsupportedDunderAll]

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


def __getattr__(name: str) -> Any:
    if name in _names:
        return _attribute(name)
    from probkit.core import nearest

    hint = f" For {name}, {_ELSEWHERE[name]}." if name in _ELSEWHERE else nearest(name, __all__)
    raise AttributeError(f"probkit has no {name!r}.{hint}")


def __dir__() -> list[str]:
    return list(__all__)
