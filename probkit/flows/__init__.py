"""Bijections and flow distributions: pure functions on dictionaries of arrays."""

from probkit.flows._coupling import AffineCoupling as AffineCoupling
