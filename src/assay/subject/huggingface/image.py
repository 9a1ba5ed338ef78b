"""Image classifiers: what the image processor does is part of the model, so that inputs are pixels in [0, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.data import Data
from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable
from assay.subject.huggingface.network import network, quiet, said, unhooked

AUTO = "AutoModelForImageClassification"
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
COMPARED = 8
LEVELS = 2.0  # of 255, by which resizing may differ: PIL rounds to bytes after each of its two passes


@rebuildable
class ImageClassifier(nn.Module):
    """Pixels (n, 1 or ch, h, w) in [0, 1] at the data's size to logits (n, c), differentiable throughout.

    ``config`` is the JSON text of a transformers config. Grey images are repeated to the network's channels; then they
    are resized to ``resize``, cut or padded about the centre to ``crop``, multiplied by ``scale`` and normalised.
    ``order`` names the network's output for each class of the data. Raises InputError for a config that cannot be built
    and for images with another number of channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: str,
        resize: tuple[int, int] | None = None,
        resample: str = "bilinear",
        crop: tuple[int, int] | None = None,
        scale: float = 1.0,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        order: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.inner = network(AUTO, config)
        self.channels: int = getattr(self.inner.config, "num_channels", 3)
        self.resize, self.resample, self.crop, self.scale = resize, resample, crop, scale
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)
        self.moments = (tuple(mean), tuple(std))  # unlike buffers that are not saved, part of the model's hash
        self.order = order

    def pixel_values(self, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n channels height width"]:
        """What the image processor would hand to the network."""
        if x.dim() != 4 or x.shape[1] not in (1, self.channels):
            raise InputError(f"images of shape {tuple(x.shape)}; expected (n, 1 or {self.channels}, h, w)")
        if self.resize is not None:
            for size in ((x.shape[2], self.resize[1]), self.resize):  # PIL clips what overshoots after either pass
                x = F.interpolate(x, size, mode=self.resample, antialias=True).clamp(0, 1)
        if self.crop is not None:
            top, left = (-((have - want) // 2) for have, want in zip(x.shape[2:], self.crop, strict=True))
            bottom, right = self.crop[0] - x.shape[2] - top, self.crop[1] - x.shape[3] - left
            x = F.pad(x, (left, right, top, bottom))
        return (x.expand(-1, self.channels, -1, -1) * self.scale - self.mean) / self.std

    def forward(self, x: Float[Tensor, "n ch h w"]) -> Float[Tensor, "n c"]:
        logits = self.inner(pixel_values=self.pixel_values(x)).logits
        return logits if self.order is None else logits[:, list(self.order)]

    def hidden_states(self, x: Float[Tensor, "n ch h w"]) -> tuple[Tensor, ...]:
        """The network's hidden states: the embeddings, then the output of every block or stage, in its own shapes."""
        with unhooked(self.inner):
            return self.inner(pixel_values=self.pixel_values(x), output_hidden_states=True).hidden_states


def processor_of(folder: Path, where: str) -> Any:
    """The image processor of a checkpoint's folder."""
    from transformers import AutoImageProcessor

    with quiet():
        try:
            return AutoImageProcessor.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        except Exception as error:  # what a damaged file raises depends on the processor
            raise InputError(
                f"{where}: no usable image processor ({said(error)}); expected preprocessor_config.json, which says "
                "how pixels are resized and normalised (processor.save_pretrained writes it)"
            ) from error


def steps(processor: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """The options of ``ImageClassifier`` that do to (height, width) images what an image processor does."""

    def asked(name: str) -> bool:
        return bool(getattr(processor, f"do_{name}", False))

    found: dict[str, Any] = {"resize": None, "crop": None}
    if asked("resize"):
        found |= _resized(processor, height, width, where)
    if asked("center_crop"):
        size = processor.crop_size
        found["crop"] = (int(size["height"]), int(size["width"]))
    found["scale"] = 255 * float(processor.rescale_factor) if asked("rescale") else 255.0
    if asked("normalize"):
        for key in ("mean", "std"):
            values = getattr(processor, f"image_{key}")
            found[key] = tuple(float(v) for v in (values if isinstance(values, list | tuple) else [values]))
    if found["resize"] == (height, width):
        found["resize"] = None
    return found


def _resized(processor: Any, height: int, width: int, where: str) -> dict[str, Any]:
    size = {k: v for k, v in dict(processor.size).items() if v is not None}
    resample = RESAMPLE.get(int(processor.resample)) if processor.resample is not None else "bilinear"
    if resample is None:
        raise InputError(
            f"{where}: its image processor resamples by PIL's filter {int(processor.resample)}; expected bilinear "
            "(2) or bicubic (3)"
        )
    if set(size) == {"height", "width"}:
        return {"resize": (int(size["height"]), int(size["width"])), "resample": resample}
    if set(size) != {"shortest_edge"}:
        raise InputError(f"{where}: its image processor resizes to {size}; expected height and width, or shortest_edge")
    edge, share = int(size["shortest_edge"]), getattr(processor, "crop_pct", None)
    if share and edge >= 384:  # ConvNeXT's processor squeezes large images and cuts small ones
        return {"resize": (edge, edge), "resample": resample}
    short = int(edge / share) if share else edge
    scaled = tuple(short if d == min(height, width) else int(short * d / min(height, width)) for d in (height, width))
    return {"resize": scaled, "resample": resample, "crop": (edge, edge) if share else None}


def check_pixels(model: ImageClassifier, processor: Any, data: Data, where: str) -> None:
    """Raise InputError unless ``model`` makes of some of the data's pixels what the image processor makes of them."""
    x = (data.x[:COMPARED] * 255).round()
    x = x.expand(-1, model.channels, -1, -1)
    images = [np.ascontiguousarray(i.permute(1, 2, 0).numpy().astype(np.uint8)) for i in x]
    with quiet():
        try:
            wanted = processor(images, return_tensors="np", input_data_format="channels_last")["pixel_values"]
        except Exception as error:  # a processor may raise anything on images that it was not made for
            shape = tuple(data.shape)
            raise InputError(
                f"{where}: its image processor fails on images of shape {shape} ({said(error)})"
            ) from error
    wanted = torch.from_numpy(np.asarray(wanted)).float()
    got = model.pixel_values(x / 255)
    if got.shape != wanted.shape:
        raise InputError(
            f"{where}: its image processor gives {tuple(wanted.shape[1:])} from images of shape {tuple(data.shape)}, "
            f"assay's form of it {tuple(got.shape[1:])}; expected a resize, a centre crop, a rescale, "
            "a normalisation"
        )
    allowed = 1e-3 if model.resize is None else LEVELS / 255 * model.scale
    difference = float(((got - wanted) * model.std).abs().max())
    if difference > allowed:
        raise InputError(
            f"{where}: its image processor and assay's form of it differ by {difference:.3g} on {data.name}; expected "
            "a resize, a centre crop, a rescale and a normalisation, nothing else"
        )
