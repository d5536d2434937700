"""Estimators with scikit-learn's conventions, on top of models and methods (extra ``sklearn``)."""

import lazy_loader

# What there is stands in __init__.pyi; it is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
