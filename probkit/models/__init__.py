"""The declarative model layer: a Model is a graph, and `bind` makes a Target of it and data."""

from probkit.models import kernels as kernels
from probkit.models._bind import bind as bind
from probkit.models._centring import describe_centring as describe_centring
from probkit.models._gp import gp as gp
from probkit.models._markov import markov as markov
from probkit.models._model import Model as Model
from probkit.models._nodes import deterministic as deterministic
from probkit.models._nodes import factor as factor
from probkit.models._nodes import module as module
from probkit.models._nodes import rv as rv
from probkit.models._nodes import size as size
from probkit.models._probit import BernoulliProbit as BernoulliProbit
