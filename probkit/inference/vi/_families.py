"""The families by name."""

from __future__ import annotations

from dataclasses import dataclass

from probkit.inference.vi._family import Family
from probkit.inference.vi._flow import Flow
from probkit.inference.vi._gaussian import Affine, LowRank
from probkit.inference.vi._mixture import Mixture
from probkit.inference.vi._structured import Structured

FAMILIES = (
    "flow",
    "auto",
    "meanfield",
    "fullrank",
    "lowrank",
    "structured",
    "student_t",
    "laplace",
    "mixture",
    "coupling",
    "autoregressive",
)

#: What methods with an engine of their own call theirs.
OWN_ENGINES = ("isotropic", "amortised")


@dataclass(frozen=True)
class Shape:
    """The options of the families; each uses those that it has. See `VI`."""

    scale: str = "linear"
    rank: int = 4
    components: int = 4
    df: float = 5.0
    layers: int = 4
    width: int = 32


def family_named(name: str, shape: Shape) -> Family:
    """The family of a name; "auto" begins with the simplest."""
    if name in ("meanfield", "auto", *OWN_ENGINES):
        return Affine(False, shape.scale)
    if name == "lowrank":
        return LowRank(shape.rank, shape.scale)
    if name in ("fullrank", "laplace"):
        return Affine(True, shape.scale)
    if name == "structured":
        return Structured(shape.scale)
    if name == "student_t":
        return Affine(True, shape.scale, shape.df)
    if name == "mixture":
        return Mixture(shape.components, shape.scale)
    if name == "flow":
        return Flow(shape.layers, shape.width)
    from probkit.inference.vi._flowjax import FlowJax

    return FlowJax(name, shape.layers, shape.width)
