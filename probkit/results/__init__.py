"""Posterior, diagnostics, the ArviZ bridge and the report."""

from probkit.results._posterior import Posterior as Posterior
from probkit.results._prior import prior_groups as prior_groups
from probkit.results._verdict import Check as Check
from probkit.results._verdict import Verdict as Verdict
