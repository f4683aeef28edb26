"""Reading checkpoints: every way in which a folder can be wrong ends in one line that says what and where."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdiff.build.checkpoint import Checkpoint, load_checkpoint
from fastdiff.build.weights import weight_files
from fastdiff.errors import CheckpointError
from tests.checkpoints import SCHEDULER, bpe, copy_checkpoint, make_checkpoint, read_json, write_json

PARTS = ("text_encoder", "unet", "vae")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return copy_checkpoint(tiny_checkpoint, tmp_path / "checkpoint")


def load_all(folder: Path) -> Checkpoint:
    checkpoint = load_checkpoint(folder)
    for part in PARTS:
        checkpoint.load(part)
    return checkpoint


def refused(folder: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_all(folder)
    assert "\n" not in str(caught.value)


def change(file: Path, **values: Any) -> None:
    write_json(file, {**read_json(file), **values})


def test_describes_the_model(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    spec = checkpoint.spec
    assert (spec.latent_channels, spec.vae_scale_factor, spec.size_multiple) == (4, 4, 8)
    assert (spec.default_height, spec.default_width) == (32, 32)
    assert (spec.max_tokens, spec.hidden_size) == (77, 32)
    assert (spec.scaling_factor, spec.shift_factor) == (0.18215, 0.0)
    assert checkpoint.scheduler == SCHEDULER
    assert checkpoint.vocab_size == len(bpe()[0])
    assert not checkpoint.shipped
    assert set(checkpoint.tokenizer_files()) >= {"vocab.json", "merges.txt", "tokenizer_config.json"}


@pytest.mark.parametrize("part", PARTS)
def test_weights_are_float32_in_evaluation_mode(tiny_checkpoint: Path, part: str) -> None:
    module = load_checkpoint(tiny_checkpoint).load(part)
    assert not module.training
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in module.parameters())


def test_half_precision_is_widened(tiny_checkpoint: Path, tmp_path: Path) -> None:
    half = load_checkpoint(make_checkpoint(tmp_path / "half", fp16=True)).load("unet").state_dict()
    for name, tensor in load_checkpoint(tiny_checkpoint).load("unet").state_dict().items():
        assert half[name].dtype == torch.float32
        assert torch.equal(half[name], tensor.half().float())


def test_loading_is_silent(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_all(tiny_checkpoint)
    assert capfd.readouterr() == ("", "")


def test_hash_covers_every_file_that_is_read(folder: Path) -> None:
    hashes = {load_checkpoint(folder).sha256()}
    for name in ("unet/config.json", UNET, "tokenizer/merges.txt", "scheduler/scheduler_config.json"):
        file = folder / name
        raw = file.read_bytes()
        file.write_bytes(raw + b" ")
        hashes.add(load_checkpoint(folder).sha256())
        file.write_bytes(raw)
    assert len(hashes) == 5
    (folder / "README.md").write_text("not read by a build")
    assert load_checkpoint(folder).sha256() in hashes


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "does not exist: give a diffusers folder")


def test_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, "is empty")


def test_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(CheckpointError, match="scenes"):
        load_checkpoint("scnes")


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    refused(tmp_path / "model.safetensors", "no readable safetensors file")


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        UNET,
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
    ],
)
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, rf"{Path(name).name}.* (is|are) missing")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b'"text"', b"[" * 100_000], ids=lambda raw: repr(raw[:9])
)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "tokenizer/vocab.json"])
def test_unreadable_json(folder: Path, name: str, raw: bytes) -> None:
    (folder / name).write_bytes(raw)
    refused(folder, Path(name).name)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("text_encoder/config.json", "hidden_size"),
        ("unet/config.json", "cross_attention_dim"),
        ("unet/config.json", "in_channels"),
        ("vae/config.json", "latent_channels"),
        ("vae/config.json", "block_out_channels"),
        ("scheduler/scheduler_config.json", "num_train_timesteps"),
        ("scheduler/scheduler_config.json", "beta_start"),
        ("scheduler/scheduler_config.json", "_class_name"),
    ],
)
def test_missing_config_key(folder: Path, name: str, key: str) -> None:
    document = read_json(folder / name)
    del document[key]
    write_json(folder / name, document)
    refused(folder, f"lacks {key}")


def test_trained_betas_need_no_others(folder: Path) -> None:
    betas = {"trained_betas": [0.1] * 10, "num_train_timesteps": 10, "_class_name": "DDIMScheduler"}
    write_json(folder / "scheduler/scheduler_config.json", betas)
    assert load_checkpoint(folder).scheduler == {**betas, "clip_sample": False, "steps_offset": 1}


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline: only StableDiffusionPipeline"),
        (
            "model_index.json",
            {"unet": ["diffusers", "UNet3D"]},
            "gives UNet3D as unet: only UNet2DConditionModel",
        ),
        ("model_index.json", {"vae": None}, "only AutoencoderKL"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 and gives 4 channels"),
        ("unet/config.json", {"cross_attention_dim": 48}, "is 48, hidden_size of the text encoder is 32"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type to 'text_time'"),
        ("unet/config.json", {"block_out_channels": 7}, "wrong type"),
        ("unet/config.json", {"down_block_types": ["Nonsense", "Nonsense"]}, "refuses it"),
        ("unet/config.json", {"block_out_channels": [32, 96]}, "unet"),
        ("text_encoder/config.json", {"hidden_size": "wide"}, "wrong type"),
        ("text_encoder/config.json", {"num_hidden_layers": 3}, "lack|missing|refuses"),
        ("text_encoder/config.json", {"num_hidden_layers": 1}, "unknown"),
        ("text_encoder/config.json", {"vocab_size": 20}, "the tokenizer has token"),
        ("vae/config.json", {"latent_channels": 8}, "channels"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor 0 and shift_factor 0, wanted a number"),
        ("vae/config.json", {"shift_factor": float("nan")}, "shift_factor nan, wanted a number above 0 and"),
        ("scheduler/scheduler_config.json", {"prediction_type": "x"}, r"scheduler_config\.json: .*'x'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, r"scheduler_config\.json: .*'x'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": -3}, r"_config\.json: .*-3"),
        ("scheduler/scheduler_config.json", {"beta_start": float("nan")}, r"_config\.json: .*nan"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_config_that_does_not_fit(folder: Path, name: str, values: dict[str, Any], words: str) -> None:
    change(folder / name, **values)
    refused(folder, words)


@pytest.mark.parametrize("keep", [0, 4, 8, 1000, -1])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    raw = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(raw[:keep])
    refused(folder, rf"model\.safetensors is truncated or corrupted \({len(raw[:keep])} bytes")


def test_corrupted_header(folder: Path) -> None:
    raw = bytearray((folder / UNET).read_bytes())
    raw[8:40] = b"\x00" * 32
    (folder / UNET).write_bytes(raw)
    refused(folder, "truncated or corrupted")


def edit_weights(file: Path, edit: Any) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_weights_of_another_shape(folder: Path) -> None:
    edit_weights(folder / UNET, lambda tensors: tensors.update({"conv_in.weight": torch.zeros(32, 4, 5, 5)}))
    refused(folder, r"conv_in\.weight")


def test_missing_weight(folder: Path) -> None:
    edit_weights(folder / UNET, lambda tensors: tensors.pop("conv_in.weight"))
    refused(folder, r"lack conv_in\.weight")


def test_unknown_weight(folder: Path) -> None:
    edit_weights(folder / UNET, lambda tensors: tensors.update({"lora.weight": torch.zeros(1)}))
    refused(folder, r"unknown lora\.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(folder: Path, value: float) -> None:
    edit_weights(folder / UNET, lambda tensors: tensors["conv_in.bias"].fill_(value))
    refused(folder, r"conv_in\.bias holds values that are not finite")


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_pickles_are_refused_and_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / UNET).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, r"only pickled weights \(diffusion_pytorch_model\.bin\).*convert with diffusers'")
    assert not Path("exploded").exists()


def test_folder_of_a_pickled_single_file(tmp_path: Path) -> None:
    (tmp_path / "sd-v1-5.ckpt").write_bytes(b"x")
    refused(tmp_path, r"holds sd-v1-5\.ckpt, a pickle")


def test_variant_file_names(folder: Path) -> None:
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part / f"{stem}.safetensors").rename(folder / part / f"{stem}.fp16.safetensors")
        assert [file.name for file in weight_files(folder / part, part)] == [f"{stem}.fp16.safetensors"]
    load_all(folder)


@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_sharded_weights(folder: Path, tiny_checkpoint: Path, part: str, stem: str) -> None:
    shard(folder / part, stem)
    original = load_checkpoint(tiny_checkpoint).load(part).state_dict()
    for name, tensor in load_checkpoint(folder).load(part).state_dict().items():
        assert torch.equal(tensor, original[name])
    (folder / part / f"{stem}-00002-of-00002.safetensors").unlink()
    refused(folder, "00002-of-00002.safetensors is missing")


def test_index_of_shards_stays_in_its_folder(folder: Path) -> None:
    (folder / UNET).unlink()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    write_json(index, {"weight_map": {"conv_in.weight": "../../elsewhere.safetensors"}})
    refused(folder, "no safetensors file of that folder")
    write_json(index, {"weight_map": []})
    refused(folder, "no index of shards")


def shard(folder: Path, stem: str) -> None:
    """Split the weights into two files with an index, as the libraries do above a size."""
    single = folder / f"{stem}.safetensors"
    tensors = load_file(single)
    single.unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index.json", index)


def test_vocabulary_from_tokenizer_json(folder: Path, tiny_checkpoint: Path) -> None:
    """Newer libraries write one file instead of vocabulary and merges."""
    from transformers import CLIPTokenizer

    CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer").save_pretrained(folder / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()
    document = read_json(folder / "tokenizer/tokenizer.json")
    for token in document["added_tokens"]:
        document["model"]["vocab"].pop(token["content"], None)  # some writers list these only once
    write_json(folder / "tokenizer/tokenizer.json", document)
    files = load_checkpoint(folder).tokenizer_files()
    vocabulary, merges = bpe()
    assert json.loads(files["vocab.json"]) == vocabulary
    assert files["merges.txt"].decode().splitlines()[1:] == [" ".join(pair) for pair in merges]


@pytest.mark.parametrize("merges", [b"#version: 0.2\na b c\n", b"#version: 0.2\nzz qq\n", b"\xff"])
def test_merges_that_a_prompt_could_not_be_cut_with(folder: Path, merges: bytes) -> None:
    (folder / "tokenizer/tokenizer.json").unlink(missing_ok=True)  # it would be read in their place
    (folder / "tokenizer/merges.txt").write_bytes(merges)
    refused(folder, "(merge 1|merges.txt cannot be read).*: download the checkpoint again")


def test_window_is_the_smaller_of_tokenizer_and_text_encoder(folder: Path) -> None:
    change(folder / "tokenizer/tokenizer_config.json", model_max_length=20)
    assert load_checkpoint(folder).spec.max_tokens == 20
    change(folder / "tokenizer/tokenizer_config.json", model_max_length=1000000000000000019884624838656)
    assert load_checkpoint(folder).spec.max_tokens == 77
