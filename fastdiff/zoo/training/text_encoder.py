"""Stage 2: the text encoder, pre-trained to say where a caption's objects will be.

The role that image-text pairs have for CLIP is played here by the scenes themselves: from the encoder's
hidden
states a small cross-attending head, thrown away afterwards, predicts for each cell of a coarse grid the
probability of every colour and shape there, and for each object of the caption its colour, shape, size and
centre. So the hidden states bind attributes to objects and objects to places before the U-Net reads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fastdiff.zoo.training.captions import caption
from fastdiff.zoo.training.scene import BACKGROUNDS, COLOURS, NEUTRALS, SHAPES, Scene, random_scene
from fastdiff.zoo.training.tokenizer import WINDOW, train_tokenizer
from fastdiff.zoo.training.trainer import Settings, train

__all__ = ["HIDDEN", "encode", "train_text_encoder"]

HIDDEN = 192
GRID = 5
POOL = 60_000
COLOUR_INDEX = {c: i for i, c in enumerate(COLOURS)}
SHAPE_INDEX = {s: i for i, s in enumerate(SHAPES)}
NEUTRAL_INDEX = {n: i for i, n in enumerate(NEUTRALS)}


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained encoder."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        projection_dim=HIDDEN,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def encode(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids, int64 ``[B, WINDOW]``, padded as the pipeline pads."""
    ids = tokenizer(
        captions, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="pt"
    ).input_ids
    return torch.as_tensor(ids)


class LayoutHead(nn.Module):
    """Learnt queries (grid cells, three objects, background) that attend to the hidden states."""

    def __init__(self, width: int = HIDDEN) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(GRID * GRID + 4, width) * 0.02)
        layer = nn.TransformerDecoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(width))
        self.cell = nn.Linear(width, len(COLOURS) + len(SHAPES) + 2)
        self.slot = nn.Linear(width, len(COLOURS) + len(SHAPES) + 2 + 2)
        self.ground = nn.Linear(width, len(BACKGROUNDS) + 2 * len(NEUTRALS))

    def forward(self, hidden: Tensor, target: dict[str, Tensor]) -> Tensor:
        """The summed loss; ``hidden`` is ``[B, tokens, width]``."""
        x = self.decoder(self.queries.expand(len(hidden), -1, -1), hidden)
        cells, slots, ground = x[:, : GRID * GRID], x[:, GRID * GRID : -1], x[:, -1]
        colour, shape = self.cell(cells).split([len(COLOURS) + 1, len(SHAPES) + 1], -1)
        loss = functional.cross_entropy(colour.flatten(0, 1), target["cell_colour"].flatten())
        loss = loss + functional.cross_entropy(shape.flatten(0, 1), target["cell_shape"].flatten())
        colour, shape, size, centre = self.slot(slots).split([len(COLOURS), len(SHAPES), 2, 2], -1)
        present = target["slot_colour"] >= 0
        for logits, label in ((colour, "slot_colour"), (shape, "slot_shape"), (size, "slot_size")):
            loss = loss + 0.5 * functional.cross_entropy(logits[present], target[label][present])
        loss = loss + 5 * functional.mse_loss(centre[present], target["slot_centre"][present])
        kind, first, second = self.ground(ground).split([len(BACKGROUNDS), len(NEUTRALS), len(NEUTRALS)], -1)
        for logits, label in ((kind, "kind"), (first, "first"), (second, "second")):
            loss = loss + 0.3 * functional.cross_entropy(logits, target[label])
        return loss


def _targets(scenes: list[Scene]) -> dict[str, Tensor]:
    n = len(scenes)
    cell_colour = np.full((n, GRID, GRID), len(COLOURS))
    cell_shape = np.full((n, GRID, GRID), len(SHAPES))
    slot = {k: np.full((n, 3), -1) for k in ("colour", "shape", "size")}
    centre = np.zeros((n, 3, 2), np.float32)
    line = (np.arange(GRID) + 0.5) / GRID
    for i, scene in enumerate(scenes):
        for o in scene.drawing_order():
            near = (line[:, None] - o.y) ** 2 + (line[None, :] - o.x) ** 2 <= (o.radius + 0.02) ** 2
            cell_colour[i][near], cell_shape[i][near] = COLOUR_INDEX[o.colour], SHAPE_INDEX[o.shape]
        for k, o in enumerate(scene.objects):
            slot["colour"][i, k], slot["shape"][i, k] = COLOUR_INDEX[o.colour], SHAPE_INDEX[o.shape]
            slot["size"][i, k], centre[i, k] = int(o.size == "large"), (o.x, o.y)
    grounds = [s.background for s in scenes]
    arrays = {
        "cell_colour": cell_colour,
        "cell_shape": cell_shape,
        **{f"slot_{k}": v for k, v in slot.items()},
        "slot_centre": centre,
        "kind": np.array([BACKGROUNDS.index(b.kind) for b in grounds]),
        "first": np.array([NEUTRAL_INDEX[b.first] for b in grounds]),
        "second": np.array([NEUTRAL_INDEX[b.second] for b in grounds]),
    }
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


def train_text_encoder(run: Path, settings: Settings) -> CLIPTextModel:
    """Learn the vocabulary, pre-train the encoder, write ``run/tokenizer`` and ``run/text_encoder``."""
    torch.manual_seed(settings.seed)
    tokenizer = train_tokenizer(run / "tokenizer")
    rng = np.random.default_rng(202 + settings.seed)
    scenes = [random_scene(rng) for _ in range(POOL)]
    ids = torch.cat(
        [encode(tokenizer, [caption(s, rng) for s in scenes[i : i + 5000]]) for i in range(0, POOL, 5000)]
    )
    targets = _targets(scenes)
    device = settings.device
    model, head = text_encoder(tokenizer).to(device), LayoutHead().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(POOL, (settings.batch,), generator=generator)
        with torch.autocast(device, torch.bfloat16):
            hidden = model(ids[index].to(device)).last_hidden_state
            value: Tensor = head(hidden, {k: v[index].to(device) for k, v in targets.items()})
        return value.float()

    train("text_encoder", run, nn.ModuleDict({"text_encoder": model, "head": head}), loss, settings)
    model.save_pretrained(run / "text_encoder")
    return model
