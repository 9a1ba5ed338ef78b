"""A checkpoint to audit without a network: a tiny ViT, trained on scikit-learn's digits in under a minute."""

from __future__ import annotations

import sys

import torch
import transformers
from torch import Tensor, nn

from assay.data import load_data
from assay.training import Supervised

CONFIG = transformers.ViTConfig(
    image_size=8,
    patch_size=2,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    id2label={k: str(k) for k in range(10)},
    label2id={str(k): k for k in range(10)},
)


class Logits(nn.Module):
    """Grey pixels (n, 1, 8, 8) in [0, 1] to logits (n, 10), normalised as the image processor does it."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=(x.expand(-1, 3, -1, -1) - 0.5) / 0.5).logits


def main(folder: str, epochs: int = 30) -> None:
    """Train and write config.json, model.safetensors and preprocessor_config.json."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = Logits(transformers.ViTForImageClassification(CONFIG))
    trained = Supervised(epochs=epochs, batch_size=64, lr=2e-3).fit(model, load_data("digits:train"), seed=0)
    trained.get_submodule("model").save_pretrained(folder)  # type: ignore[operator]
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/digits-vit")
