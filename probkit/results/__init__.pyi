from ._posterior import Posterior as Posterior
from ._prior import prior_groups as prior_groups
from ._verdict import Check as Check
from ._verdict import Verdict as Verdict
