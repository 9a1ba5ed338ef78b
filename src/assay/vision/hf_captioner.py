"""A captioner of Hugging Face transformers: VisionEncoderDecoderModel with a ViT before a GPT-2, of any size."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable
from assay.vision.captioner import MEAN, STD, Captioner

SPREAD = 0.1  # of the first weights: with the default 0.02 a model this narrow takes long to start learning


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            "HFCaptioner: transformers is missing; expected it installed (pip install 'assay[hf]')"
        ) from error


@rebuildable
class HFCaptioner(Captioner):
    """``model``: a VisionEncoderDecoderModel with random weights (ViT and GPT-2 of ``width``, without dropout).

    ``layers`` of the encoder and one of the decoder, which reads all tokens of the encoder; the pooled output plays no
    part in training. Raises InputError where transformers (the extra ``hf``) is not installed.
    """

    def __init__(
        self,
        words: Sequence[str],
        length: int = 3,
        shape: tuple[int, int, int] = (1, 16, 16),
        patch: int = 4,
        width: int = 48,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__(words, length)
        hf = _transformers()
        if shape[1] != shape[2] or shape[1] % patch:
            raise InputError(f"HFCaptioner: images of {shape[1]} x {shape[2]}; expected squares, multiples of {patch}")
        encoder = hf.ViTConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=2 * width,
            image_size=shape[1],
            patch_size=patch,
            num_channels=shape[0],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=SPREAD,
        )
        special = {"bos_token_id": self.start, "eos_token_id": self.end}
        decoder = hf.GPT2Config(
            vocab_size=len(self.words) + 2,
            n_positions=length + 2,
            n_embd=width,
            n_layer=1,
            n_head=heads,
            add_cross_attention=True,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=SPREAD,
            **special,
        )
        joint = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        self.model = hf.VisionEncoderDecoderModel(joint)
        self.generation = special | {"decoder_start_token_id": self.start, "pad_token_id": self.start}
        self.generation |= {"max_new_tokens": length + 1, "do_sample": False}

    def forward(self, x: Float[Tensor, "n ch h w"], tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t v"]:
        return self.model(pixel_values=(x - MEAN) / STD, decoder_input_ids=tokens).logits

    def generate(self, x: Float[Tensor, "n ch h w"], beams: int) -> Int[Tensor, "n t"]:
        found = self.model.generate(pixel_values=(x - MEAN) / STD, num_beams=beams, **self.generation)[:, 1:]
        over = ((found == self.start) | (found == self.end)).cumsum(1) > 0  # it fills with the start token
        found = found.masked_fill(over, self.end)
        return F.pad(found, (0, self.length + 1 - found.shape[1]), value=self.end)
