"""The scripts above the package: the recipe writes its files, the comparison tells right from wrong."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from export import compare, controlnet, pixels, stable_diffusion, upscale
from tests.controls import make_controlnet
from tests.families import make_family


def test_recipe_writes_onnx(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "graphs"
    assert stable_diffusion.main([str(tiny_checkpoint), "-o", str(output), "--modules", "text_encoder"]) == 0
    onnx.checker.check_model(output / "text_encoder.onnx")
    printed = capsys.readouterr().out
    assert "text_encoder  fp32  input_ids int64 [batch, tokens]" in printed
    assert "linear 12" in printed, "two layers of four projections and two of the feed-forward network"


def test_recipe_without_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stable_diffusion.main([str(tmp_path / "nothing"), "-o", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_recipe_of_controlnets(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = make_controlnet(tmp_path / "net", tiny_checkpoint)
    words = [str(tiny_checkpoint), "-o", str(tmp_path / "graphs"), "--controlnet", str(net), "--modules"]
    assert controlnet.main([*words, "controlnet_embedding"]) == 0
    onnx.checker.check_model(tmp_path / "graphs" / "controlnet_embedding.onnx")
    assert "control_image float32 [batch, 3, 4*height, 4*width]" in capsys.readouterr().out
    assert controlnet.main([*words, "vae_decoder"]) == 2
    assert "is not among controlnet_embedding, controlnet, unet" in capsys.readouterr().err


def test_a_recipe_says_what_its_inputs_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = make_family("consistency", tmp_path / "checkpoint")
    assert pixels.main([str(checkpoint), "-o", str(tmp_path / "graphs")]) == 0
    onnx.checker.check_model(tmp_path / "graphs" / "unet.onnx")
    assert "class_labels: the number of a class" in capsys.readouterr().out
    assert upscale.main([str(checkpoint), "-o", str(tmp_path / "none")]) == 2
    assert "is of family pixels: this recipe is for upscale" in capsys.readouterr().err
    assert pixels.main([str(checkpoint), "-o", str(tmp_path / "none"), "--modules", "vae_decoder"]) == 2
    assert "has no module 'vae_decoder': it has unet" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore")  # diffusers deprecates names of arguments from version to version
def test_comparison_of_an_engine_with_its_checkpoint(
    tiny_engine: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_engine), str(tiny_checkpoint), "--steps", "2", "--guidance", "2"]
    assert compare.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["sampler", "ddim", "dpmpp_2m", "euler", "pndm"]


def test_psnr() -> None:
    assert compare.psnr([[0, 255]], [[0, 255]]) == float("inf")
    assert compare.psnr([[0, 0]], [[255, 255]]) == 0
    assert compare.psnr([[100.0]], [[101.0]]) == pytest.approx(48.13, abs=0.01)
