"""Kernels for Gaussian processes: pure functions k(x, y) of two points.

Every kernel is an immutable object that is called with two points (numbers or vectors), has finite
derivatives with respect to its parameters everywhere, and can be added and multiplied. `pk.gp`
takes these, GPJax's own kernel objects, and plain functions of two points alike.
"""

from probkit.models.kernels._arccosine import ArcCosine as ArcCosine
from probkit.models.kernels._compose import ChangePoint as ChangePoint
from probkit.models.kernels._compose import Columns as Columns
from probkit.models.kernels._compose import Deep as Deep
from probkit.models.kernels._gpjax import Linear as Linear
from probkit.models.kernels._gpjax import Periodic as Periodic
from probkit.models.kernels._gpjax import Polynomial as Polynomial
from probkit.models.kernels._gpjax import PoweredExponential as PoweredExponential
from probkit.models.kernels._gpjax import RationalQuadratic as RationalQuadratic
from probkit.models.kernels._gpjax import White as White
from probkit.models.kernels._kernel import Constant as Constant
from probkit.models.kernels._kernel import Function as Function
from probkit.models.kernels._kernel import Kernel as Kernel
from probkit.models.kernels._kernel import Product as Product
from probkit.models.kernels._kernel import Sum as Sum
from probkit.models.kernels._kernel import cross_covariance as cross_covariance
from probkit.models.kernels._kernel import diagonal as diagonal
from probkit.models.kernels._networks import NNGP as NNGP
from probkit.models.kernels._networks import NTK as NTK
from probkit.models.kernels._outputs import ICM as ICM
from probkit.models.kernels._outputs import LCM as LCM
from probkit.models.kernels._outputs import Derivative as Derivative
from probkit.models.kernels._radial import RBF as RBF
from probkit.models.kernels._radial import Matern12 as Matern12
from probkit.models.kernels._radial import Matern32 as Matern32
from probkit.models.kernels._radial import Matern52 as Matern52
from probkit.models.kernels._radial import Matern92 as Matern92
from probkit.models.kernels._spectral import SpectralMixture as SpectralMixture
from probkit.models.kernels._tanimoto import Tanimoto as Tanimoto
