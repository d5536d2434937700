import numpyro.distributions as dist

from . import estimators as estimators
from ._fit import fit as fit
from ._fit import prior_predictive as prior_predictive
from .core import Batches as Batches
from .core import Checkpoint as Checkpoint
from .core import Inference as Inference
from .core import Progress as Progress
from .core import Status as Status
from .core import Target as Target
from .core import Thin as Thin
from .core import TimeLimit as TimeLimit
from .core import run as run
from .inference import CVI as CVI
from .inference import EP as EP
from .inference import HMC as HMC
from .inference import NUTS as NUTS
from .inference import SGLD as SGLD
from .inference import SVGD as SVGD
from .inference import SVGP as SVGP
from .inference import TSVGP as TSVGP
from .inference import VI as VI
from .inference import ExactGaussian as ExactGaussian
from .inference import GPExact as GPExact
from .inference import GPLaplace as GPLaplace
from .inference import HybridEP as HybridEP
from .inference import Laplace as Laplace
from .inference import Marginal as Marginal
from .inference import Pathfinder as Pathfinder
from .inference import SparseHybridEP as SparseHybridEP
from .models import BernoulliProbit as BernoulliProbit
from .models import Model as Model
from .models import deterministic as deterministic
from .models import factor as factor
from .models import gp as gp
from .models import kernels as kernels
from .models import markov as markov
from .models import module as module
from .models import rv as rv
from .models import size as size
from .models._formula import formula as formula
from .results import Check as Check
from .results import Posterior as Posterior
from .results import Verdict as Verdict

__all__ = ["dist"]
__version__: str
