"""Inference methods: each keeps the contract of `probkit.core.Inference`."""

from probkit.inference.gaussian._exact import ExactGaussian as ExactGaussian
from probkit.inference.gaussian._gp_methods import CVI as CVI
from probkit.inference.gaussian._gp_methods import EP as EP
from probkit.inference.gaussian._gp_methods import GPExact as GPExact
from probkit.inference.gaussian._gp_methods import GPLaplace as GPLaplace
from probkit.inference.gaussian._gp_methods import HybridEP as HybridEP
from probkit.inference.gaussian._laplace import Laplace as Laplace
from probkit.inference.mcmc._hmc import HMC as HMC
from probkit.inference.mcmc._nuts import NUTS as NUTS
from probkit.inference.sgmcmc._sgld import SGLD as SGLD
from probkit.inference.vi._pathfinder import Pathfinder as Pathfinder
from probkit.inference.vi._svgd import SVGD as SVGD
from probkit.inference.vi._vi import VI as VI
