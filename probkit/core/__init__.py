"""Target, contract, run, status, keys: what every other floor stands on."""

from probkit.core._callbacks import Callback as Callback
from probkit.core._callbacks import Checkpoint as Checkpoint
from probkit.core._callbacks import Progress as Progress
from probkit.core._callbacks import TimeLimit as TimeLimit
from probkit.core._check import Check as Check
from probkit.core._check import guarded as guarded
from probkit.core._check import judged as judged
from probkit.core._errors import check_between as check_between
from probkit.core._errors import check_choice as check_choice
from probkit.core._errors import check_count as check_count
from probkit.core._errors import check_options as check_options
from probkit.core._errors import listing as listing
from probkit.core._errors import nearest as nearest
from probkit.core._inference import Approximation as Approximation
from probkit.core._inference import Batches as Batches
from probkit.core._inference import Draws as Draws
from probkit.core._inference import Inference as Inference
from probkit.core._keys import key_data as key_data
from probkit.core._keys import wrap as wrap_key  # noqa: F401
from probkit.core._latent import GaussianLatent as GaussianLatent
from probkit.core._run import Run as Run
from probkit.core._run import run as run
from probkit.core._status import Status as Status
from probkit.core._target import Batch as Batch
from probkit.core._target import Labels as Labels
from probkit.core._target import Program as Program
from probkit.core._target import Site as Site
from probkit.core._target import Target as Target
from probkit.core._target import Terms as Terms
from probkit.core._target_check import TargetReport as TargetReport
from probkit.core._trees import Flat as Flat
from probkit.core._weights import Estimate as Estimate
from probkit.core._weights import Weights as Weights
from probkit.core._weights import importance_checks as importance_checks
from probkit.core._weights import weigh as weigh
from probkit.core._wrappers import Thin as Thin
