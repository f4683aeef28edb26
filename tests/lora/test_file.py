"""LoRA files: every layout gives the same updates, and what cannot be used is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastdiff.errors import InputError
from fastdiff.lora import LowRank, read_lora
from fastdiff.lora.original_blocks import original_paths
from tests.lora.made_up import LAYOUTS, layers_of, random_updates, write_lora

SHAPES = {
    "unet": {
        "conv_in": (8, 4, 3, 3),
        "time_embedding.linear_1": (16, 8),
        "down_blocks.0.attentions.0.proj_in": (8, 8, 1, 1),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (8, 8),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (8, 8),
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj": (64, 8),
        "down_blocks.0.resnets.0.conv1": (8, 8, 3, 3),
    },
    "text_encoder": {
        "encoder.layers.0.self_attn.q_proj": (6, 6),
        "encoder.layers.0.self_attn.out_proj": (6, 6),
        "encoder.layers.0.mlp.fc1": (12, 6),
    },
}
Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
MODULES = {module: random_updates(shapes, rank=3, seed=1, alpha=2.0) for module, shapes in SHAPES.items()}


def assert_same(found: LowRank, wanted: LowRank, label: str) -> None:
    assert found.shape == wanted.shape, label
    np.testing.assert_allclose(found.matrix(), wanted.matrix(), rtol=1e-5, atol=1e-6, err_msg=label)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "a.safetensors", MODULES, layout)
    lora = read_lora(file, SHAPES)
    assert lora.layers == sum(map(len, SHAPES.values()))
    for module, layers in MODULES.items():
        assert lora.modules[module].keys() == layers.keys()
        for path, update in layers.items():
            assert_same(lora.modules[module][path], update, f"{module} {path}")


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight", "text_encoder"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_{}.weight", "text_encoder_2"),
        ("lora_te2_text_projection.lora_{}.weight", "text_encoder_2"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.{}.weight", "text_encoder_2"),
    ],
)
def test_two_text_encoders(key: str, module: str, tmp_path: Path) -> None:
    """The same layers under names of their own; SDXL's second has a projection behind it."""
    shapes = {
        "text_encoder": {"encoder.layers.0.mlp.fc1": (12, 6)},
        "text_encoder_2": {"encoder.layers.0.mlp.fc1": (12, 6), "text_projection": (12, 6)},
    }
    tensors = {
        key.format("down"): np.ones((1, 6), np.float32),
        key.format("up"): np.ones((12, 1), np.float32),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    modules = read_lora(tmp_path / "a.safetensors", shapes).modules
    (path,) = modules[module]
    assert modules.keys() == {module}
    assert path == ("text_projection" if "projection" in key else "encoder.layers.0.mlp.fc1")


def test_peft_of_the_unet_alone(tmp_path: Path) -> None:
    """As PEFT saves it: another prefix, the adapter's name in the keys, and no alphas at all."""
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    update = MODULES["unet"][path]
    keys = {"A": update.down, "B": update.up}
    stem = f"base_model.model.{path}.lora_"
    save_file({f"{stem}{k}.default.weight": v for k, v in keys.items()}, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors", SHAPES)
    assert_same(lora.modules["unet"][path], LowRank(update.down, update.up, 1.0), path)


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"lora_alpha": 6}, 2.0),
        ({"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1.5}}, 0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"attn1.to_k": 1.5}}, 2.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / 3**0.5),
    ],
)
def test_options_of_peft(options: dict[str, Any], scale: float, tmp_path: Path) -> None:
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    update = MODULES["unet"][path]
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in options.items()})}
    tensors = {f"unet.{path}.lora_A.weight": update.down, f"unet.{path}.lora_B.weight": update.up}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert read_lora(tmp_path / "a.safetensors", SHAPES).modules["unet"][path].scale == pytest.approx(scale)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_number_formats(dtype: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    rng = np.random.default_rng(0)
    tensors = {
        f"{Q}.lora_down.weight": torch.from_numpy(rng.standard_normal((2, 8))).to(getattr(torch, dtype)),
        f"{Q}.lora_up.weight": torch.from_numpy(rng.standard_normal((8, 2))).to(getattr(torch, dtype)),
    }
    save_tensors(tensors, tmp_path / "a.safetensors")
    (update,) = read_lora(tmp_path / "a.safetensors", SHAPES).modules["unet"].values()
    assert np.array_equal(update.down, tensors[f"{Q}.lora_down.weight"].float().numpy())
    assert np.array_equal(update.up, tensors[f"{Q}.lora_up.weight"].float().numpy())
    assert update.scale == 1.0


def test_matrix_for_a_convolution_of_one_tap(tmp_path: Path) -> None:
    """Checkpoints of one family have a projection as a matrix or as a convolution; files of either fit."""
    rng = np.random.default_rng(0)
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    down, up = (rng.standard_normal(s).astype(np.float32) for s in ((2, 8), (8, 2)))
    save_file({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, tmp_path / "a.safetensors")
    save_file(
        {f"{Q}.lora_down.weight": down[..., None, None], f"{Q}.lora_up.weight": up[..., None, None]},
        tmp_path / "b.safetensors",
    )
    (of_convolution,) = read_lora(tmp_path / "a.safetensors", SHAPES).modules["unet"].values()
    (of_matrix,) = read_lora(tmp_path / "b.safetensors", SHAPES).modules["unet"].values()
    assert of_convolution.shape == (8, 8, 1, 1)
    assert of_matrix.shape == (8, 8)
    assert np.array_equal(of_convolution.matrix().reshape(8, 8), of_matrix.matrix())


def sdxl_structure() -> dict[str, tuple[int, ...]]:
    """A U-Net of SDXL's structure, with one transformer per block and few channels."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            attention_head_dim=(4, 8, 8),
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
            norm_num_groups=8,
            use_linear_projection=True,
        )
    return layers_of(unet)


def test_original_block_names() -> None:
    """diffusers' converters take the names of the original code to the same layers."""
    from diffusers.loaders import lora_conversion_utils as theirs

    class Config:
        layers_per_block = 2

    shapes = sdxl_structure()
    named = original_paths(shapes)
    assert set(named.values()) == set(shapes)
    state = {f"lora_unet_{name.replace('.', '_')}.lora_down.weight": path for name, path in named.items()}
    blocks = theirs._maybe_map_sgm_blocks_to_diffusers(dict(state), Config())
    assert sorted(blocks.values()) == sorted(named.values())
    for key, path in blocks.items():
        converted = theirs._convert_unet_lora_key(key).removesuffix(".weight").removesuffix(".down")
        plain = converted.replace(".processor", "").removesuffix(".lora").removesuffix("_lora")
        if plain.endswith(".to_out"):
            plain += ".0"
        # diffusers spells what has no block to be in, and projections inside feed-forwards, with dots
        assert plain.replace("_", ".") == path.replace("_", "."), key


def test_original_blocks_in_a_file(tmp_path: Path) -> None:
    shapes = {"unet": sdxl_structure()}
    named = original_paths(shapes["unet"])
    name = next(name for name, path in named.items() if path.endswith("up_blocks.0.upsamplers.0.conv"))
    assert name == "output_blocks.2.2.conv"
    wanted = {
        "input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
        ),
        "input_blocks_7_0_in_layers_2": "down_blocks.2.resnets.0.conv1",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
        "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
        "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
        "label_emb_0_2": "add_embedding.linear_2",
    }
    tensors = {}
    for name, path in wanted.items():
        shape = shapes["unet"][path]
        tensors[f"lora_unet_{name}.lora_down.weight"] = np.ones((1, *shape[1:]), np.float32)
        tensors[f"lora_unet_{name}.lora_up.weight"] = np.ones((shape[0], 1), np.float32)
    save_file(tensors, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors", shapes)
    assert set(lora.modules["unet"]) == set(wanted.values())


GOOD = {
    f"{Q}.lora_down.weight": np.ones((2, 8), np.float32),
    f"{Q}.lora_up.weight": np.ones((8, 2), np.float32),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lora_unet_mid_block_nothing.lora_down.weight": np.ones((2, 8))},
            "matches no layer of this engine",
        ),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": np.ones(())}, "matches no layer"),
        ({f"{Q}.dora_scale": np.ones((1, 8))}, "is DoRA, which is not supported"),
        ({f"{Q}.lora_mid.weight": np.ones((2, 2, 3, 3))}, "CP decomposition"),
        ({f"{Q}.hada_w1_a": np.ones((2, 2))}, "is LoHa"),
        ({f"{Q}.lokr_w1": np.ones((2, 2))}, "is LoKr"),
        ({f"{Q}.diff": np.ones((8, 8))}, "differences of whole weights"),
        ({"unet.conv_in.lora_B.bias": np.ones(8)}, "LoRA with biases"),
        ({"unet.conv_in.lora_A.default.bias": np.ones(8)}, "LoRA with biases"),
        ({"unet.conv_in.lora_magnitude_vector": np.ones(8)}, "is DoRA"),
        ({f"{Q}.oft_blocks": np.ones((2, 2))}, "is OFT"),
        ({"model.diffusion_model.out.2.weight": np.ones((2, 2))}, "is no key of a LoRA"),
        ({f"{Q}.lora_down.weight": np.ones((3, 8))}, "wanted [rank, in] and [out, rank]"),
        ({f"{Q}.lora_down.weight": np.ones((0, 8)), f"{Q}.lora_up.weight": np.ones((8, 0))}, "wanted [rank"),
        ({f"{Q}.lora_down.weight": np.ones((2, 9))}, "do not fit the layer's weight [8, 8]"),
        ({f"{Q}.lora_down.weight": np.ones((2, 8, 3, 3))}, "do not fit the layer's weight"),
        ({f"{Q}.lora_up.weight": np.ones((9, 2))}, "do not fit the layer's weight"),
        ({f"{Q}.lora_up.weight": np.full((8, 2), np.nan)}, "values that are not finite"),
        ({f"{Q}.alpha": np.full((), np.inf)}, "values that are not finite"),
        ({f"{Q}.alpha": np.ones(3)}, "wanted one number"),
        ({f"{Q}.alpha": np.zeros(())}, "is 0: kohya's scripts mean the rank"),
        ({f"{Q}.lora_up.weight": None}, "has no up matrix beside it"),
        ({f"{Q}.lora_down.weight": None, f"{Q}.lora_up.weight": None, f"{Q}.alpha": np.ones(())}, "no down"),
        ({f"{Q}.lora_down.weight": None, f"{Q}.lora_up.weight": None}, "has no tensors"),
        ({f"{Q}.lora_down.weight": np.ones((2, 8), np.int32)}, "has dtype I32: wanted F32"),
        (
            {
                "unet." + next(p for p in SHAPES["unet"] if p.endswith("to_q")) + ".lora_A.weight": np.ones(
                    (2, 8)
                )
            },
            "are the same layer's",
        ),
    ],
)
def test_refusals(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    file = tmp_path / "a.safetensors"
    save_file({k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in tensors.items()}, file)
    with pytest.raises(InputError) as caught:
        read_lora(file, SHAPES)
    text = str(caught.value)
    assert message in text
    assert str(file) in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "wanted an object"),
        ('{"unet.use_dora": true}', "has DoRA"),
        ('{"unet.lora_bias": true}', "has biases"),
        ('{"unet.lora_alpha": "x"}', "wanted a finite number"),
        ('{"unet.alpha_pattern": [1]}', "wanted an object"),
        ('{"unet.alpha_pattern": {"a": null}}', "wanted a finite number"),
        ('{"unet.alpha_pattern": {"(": 1}}', "wanted the path of a layer"),
    ],
)
def test_refused_options(metadata: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file(GOOD, file, {"lora_adapter_metadata": metadata})
    with pytest.raises(InputError, match=r"a\.safetensors") as caught:
        read_lora(file, SHAPES)
    assert message in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_lora(file, SHAPES)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_lora(tmp_path, SHAPES)
    save_file(GOOD, file)
    whole = file.read_bytes()
    for damaged in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], b"\xff" * 100, whole + b"\0"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="is no intact safetensors file"):
            read_lora(file, SHAPES)
