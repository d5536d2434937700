"""Kernels for Gaussian processes: pure functions k(x, y) of two points.

Every kernel is an immutable object that is called with two points (numbers or vectors), has finite
derivatives with respect to its parameters everywhere, and can be added and multiplied. `pk.gp`
takes these, GPJax's own kernel objects, and plain functions of two points alike.
"""

import lazy_loader

# What there is stands in __init__.pyi; it is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
