"""Inference methods: each keeps the contract of `probkit.core.Inference`."""

from probkit.inference.gaussian._exact import ExactGaussian as ExactGaussian
from probkit.inference.gaussian._laplace import Laplace as Laplace
from probkit.inference.mcmc._hmc import HMC as HMC
from probkit.inference.mcmc._nuts import NUTS as NUTS
from probkit.inference.sgmcmc._sgld import SGLD as SGLD
