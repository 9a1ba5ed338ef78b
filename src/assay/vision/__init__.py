"""Methods for images of scenes: patches on real objects and what they do to detectors; captioners."""

from assay.data.isp import (
    Metadata,
    SimpleISP,
    UnprocessISP,
    demosaic_bilinear,
    demosaic_malvar,
    mosaic,
    shot_and_read_noise,
)
from assay.vision.captioner import Captioner
from assay.vision.color_spaces import from_lalphabeta, to_lalphabeta
from assay.vision.conv_ae import ConvAE, ImageGenerator
from assay.vision.detection import (
    Matches,
    attack_success_rate,
    average_precision,
    f1_threshold,
    fnr_threshold,
    match,
)
from assay.vision.fmr import FMREvaluator, FMRReport, fmr_score, sparse_mask
from assay.vision.geometry import corners, get_transform_matrix, move_points, warp
from assay.vision.grid_detector import GridDetector, fit_detector
from assay.vision.hf_captioner import HFCaptioner
from assay.vision.keypoints import keypoints_from_mask
from assay.vision.latent_perturber import LatentPerturber
from assay.vision.oracles import CLIPZeroShot, Ensemble
from assay.vision.patch_bench import FittedPatchBenchmark, PatchBenchmark, PatchReport, PatchScore
from assay.vision.patch_mask import patch_mask
from assay.vision.patch_renderer import PatchRenderer
from assay.vision.pca_autoencoder import PCAAutoencoder
from assay.vision.realism import realism_error
from assay.vision.reap_files import load_reap
from assay.vision.relight import fit_relight, relight
from assay.vision.scenes import Scenes, generate_scenes, joined_images, polygon_sign
from assay.vision.tiny_captioner import TinyCaptioner, TinyViT
from assay.vision.vqgan import HFVQModel, TamingVQGAN

__all__ = [
    "CLIPZeroShot",
    "ConvAE",
    "Ensemble",
    "FMREvaluator",
    "FMRReport",
    "HFVQModel",
    "ImageGenerator",
    "LatentPerturber",
    "PCAAutoencoder",
    "TamingVQGAN",
    "fmr_score",
    "sparse_mask",
    "Captioner",
    "FittedPatchBenchmark",
    "GridDetector",
    "HFCaptioner",
    "Matches",
    "Metadata",
    "PatchBenchmark",
    "PatchRenderer",
    "PatchReport",
    "PatchScore",
    "Scenes",
    "SimpleISP",
    "TinyCaptioner",
    "TinyViT",
    "UnprocessISP",
    "attack_success_rate",
    "average_precision",
    "corners",
    "demosaic_bilinear",
    "demosaic_malvar",
    "f1_threshold",
    "fit_detector",
    "fit_relight",
    "fnr_threshold",
    "from_lalphabeta",
    "generate_scenes",
    "get_transform_matrix",
    "joined_images",
    "keypoints_from_mask",
    "load_reap",
    "match",
    "mosaic",
    "move_points",
    "patch_mask",
    "polygon_sign",
    "realism_error",
    "relight",
    "shot_and_read_noise",
    "to_lalphabeta",
    "warp",
]
