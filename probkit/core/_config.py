"""JAX's settings, read in one place: attributes made at run time, which types cannot see."""

from __future__ import annotations

from typing import Any

import jax


def setting(name: str) -> Any:
    """The present value of a JAX setting, for instance ``setting("jax_enable_x64")``."""
    return getattr(jax.config, name)
