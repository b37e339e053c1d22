"""Writes a ViT of 2 layers with random weights and its image processor, and a folder of 24 PNG files.

python tiny_vit.py MODEL PICTURES
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

model, pictures = (Path(argument) for argument in sys.argv[1:])
torch.manual_seed(0)
shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ViTModel(ViTConfig(image_size=32, patch_size=8, **shape)).save_pretrained(model)
ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(model)

pictures.mkdir()
for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (24, 40, 48, 3), np.uint8)):
    Image.fromarray(pixels).save(pictures / f"{number:02}.png")
