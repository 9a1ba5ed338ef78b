"""Generators: ``fit(data, *, seed)`` gives an object with ``sample(n, *, seed)``."""

from assay.generate.base import FittedGenerator, Generator
from assay.generate.class_pca import ClassPCA, class_pca
from assay.generate.denoiser import DenoiserMLP
from assay.generate.denoising import DenoisingScoreMatching
from assay.generate.edm import EDMPrecond, edm_sampler, edm_sigmas
from assay.generate.frechet import frechet_distance
from assay.generate.gan import (
    GANPair,
    GANTraining,
    StyleGANLike,
    discriminator_loss,
    generated,
    generator_loss,
    r1_penalty,
)
from assay.generate.pfgm import PFGMPP, FittedPFGMPP
from assay.generate.poisson import PerturbationKernel, pfgm_field, posterior_gap
from assay.generate.score import GaussianScore, NoisePrediction, wrap_diffusers
from assay.generate.score_unet import TinyScoreUNet
from assay.generate.tiny_t2i import TinyConditionNet, TinyT2I, TinyTextEncoder, WordTokenizer
from assay.generate.vpsde import VPSDE, DiscreteSchedule

__all__ = [
    "ClassPCA",
    "DenoiserMLP",
    "DenoisingScoreMatching",
    "DiscreteSchedule",
    "EDMPrecond",
    "FittedGenerator",
    "FittedPFGMPP",
    "GANPair",
    "GANTraining",
    "GaussianScore",
    "Generator",
    "NoisePrediction",
    "PFGMPP",
    "PerturbationKernel",
    "StyleGANLike",
    "TinyConditionNet",
    "TinyScoreUNet",
    "TinyT2I",
    "TinyTextEncoder",
    "VPSDE",
    "WordTokenizer",
    "class_pca",
    "discriminator_loss",
    "edm_sampler",
    "edm_sigmas",
    "frechet_distance",
    "generated",
    "generator_loss",
    "pfgm_field",
    "posterior_gap",
    "r1_penalty",
    "wrap_diffusers",
]
