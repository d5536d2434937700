"""Which options of `VI` go together: the family's name, and the static half of a fit."""

from __future__ import annotations

from typing import Any

from probkit.core import check_choice, check_count
from probkit.inference.vi._engine import Recipe
from probkit.inference.vi._families import FAMILIES
from probkit.inference.vi._family import Family
from probkit.inference.vi._sample_average import SMOOTH

#: The options of `VI`.
NAMES = (
    "family",
    "objective",
    "gradient",
    "scale",
    "draws",
    "starts",
    "particles",
    "max_steps",
    "tolerance",
    "step_size",
    "samples",
    "alpha",
    "tempering",
    "batch_size",
    "dim",
    "rank",
    "components",
    "df",
    "layers",
    "width",
    "weights",
    "kappa",
    "guide",
    "inputs",
    "optimizer",
)
OPTIMIZERS = ("adam", "saa")


def family_for(objective: str, family: str | None, given: dict[str, Any]) -> str:
    """The family's name, once the options that only some methods use are known to fit it."""
    emphasised = objective == "data_emphasised"
    guided = given["guide"] is not None
    for name, value in given.items():
        right = emphasised if name in ("weights", "kappa") else guided
        if value is not None and not right:
            needed = "objective='data_emphasised'" if name in ("weights", "kappa") else "guide"
            raise ValueError(f"VI({name}={value!r}): only of use with {needed}, which is not given")
    if not emphasised and not guided:
        check_choice("VI(family)", "flow" if family is None else family, FAMILIES)
        return "flow" if family is None else family
    if emphasised and guided or guided and objective != "elbo":
        raise ValueError(f"VI(guide): fitted by objective='elbo', found {objective!r}")
    name = "amortised" if guided else "isotropic"
    if family not in (None, name):
        why = "a guide" if guided else "objective='data_emphasised'"
        raise ValueError(
            f"VI(family={family!r}): {why} has a family of its own ({name}); leave `family` out"
        )
    return name


def check_saa(name: str, given: dict[str, Any]) -> None:
    """Raise a ValueError unless fixed draws can fit this family with these options."""
    if name not in SMOOTH:
        raise ValueError(
            f"VI(optimizer='saa'): fixed draws fit the Gaussian families "
            f"{', '.join(map(repr, SMOOTH))}; found family={name!r} (choose one, or "
            "optimizer='adam')"
        )
    allowed: dict[str, tuple] = {
        "objective": ("elbo",),
        "gradient": (None, "reparam"),
        "batch_size": (None,),
        "tempering": (0,),
        "step_size": (None,),
    }
    for option, values in allowed.items():
        if given[option] not in values:
            raise ValueError(
                f"VI({option}={given[option]!r}): not of use with optimizer='saa', which maximises "
                "the ELBO of fixed draws by L-BFGS; leave it out, or use optimizer='adam'"
            )


def recipe_for(
    family: Family,
    name: str,
    objective: str,
    gradient: str,
    scale: str,
    particles: Any,
    samples: Any,
) -> Recipe:
    """The static half, once the options are known to go together."""
    count = check_count("VI(particles)", particles, least=2)
    group = 1
    if objective in ("iwelbo", "renyi"):
        group = check_count("VI(samples)", samples, least=2)
        count = group * -(-count // group)
    if name == "mixture":
        if objective != "elbo" or gradient == "score":
            raise ValueError(
                f"VI(family='mixture'): fitted by stratified draws, which only objective='elbo' "
                f"with gradient='stl' or 'reparam' allows; found {objective!r}, {gradient!r}"
            )
        parts = family.components  # type: ignore[attr-defined]
        count = parts * -(-count // parts)
    sparse = name in ("lowrank", "structured", "mixture", "flow", "coupling", "autoregressive")
    prox = objective == "elbo" and gradient == "reparam" and scale == "linear" and not sparse
    return Recipe(family, objective, gradient, count, group, prox)
