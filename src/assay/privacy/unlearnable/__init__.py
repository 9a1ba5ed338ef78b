"""Data that are useless to train on: small displacements of the samples before they are published."""

from assay.privacy.unlearnable.base import Protected, Protector
from assay.privacy.unlearnable.bayes_error_unlearnable import BayesErrorUnlearnable, ProtectedByBayesError
from assay.privacy.unlearnable.error_min_noise import ErrorMinNoise
from assay.privacy.unlearnable.mixture import MixtureRow, mixture_protocol
from assay.privacy.unlearnable.random_noise import RandomNoise

__all__ = [
    "BayesErrorUnlearnable",
    "ErrorMinNoise",
    "MixtureRow",
    "Protected",
    "ProtectedByBayesError",
    "Protector",
    "RandomNoise",
    "mixture_protocol",
]
