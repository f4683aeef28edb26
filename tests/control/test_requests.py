"""What a call may ask of an engine's controlling networks, and what its metadata says of it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastdiff
from fastdiff.config import ModelSpec
from fastdiff.control.pictures import clip_pixels, pixels
from fastdiff.control.request import ControlRequest, check_control
from fastdiff.control.spec import ControlNetSpec, ControlSpec, FeatureSpec, IpAdapterSpec, T2IAdapterSpec
from fastdiff.errors import FastdiffWarning, InputError
from fastdiff.image import read_metadata
from fastdiff.pictures import read_picture
from fastdiff.request import check_request
from tests.controls import picture
from tests.engines import MODEL

LEVELS = (FeatureSpec(32, 1), FeatureSpec(64, 2))
NET = ControlNetSpec("net", 3, 32, False)
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("control_image", "control_scale", "control_start", "control_end")),
    "guess_mode": False,
    **dict.fromkeys(("adapter_image", "adapter_scale", "adapter_end", "ip_image", "ip_scale", "ip_embeds")),
}
PICTURE = picture(1)


def model(**control: Any) -> ModelSpec:
    from dataclasses import replace

    return replace(MODEL, control=ControlSpec(**control))


NETS = model(residuals=LEVELS, controlnets=(NET, NET))
ONE = model(residuals=LEVELS, controlnets=(NET,))
ADAPTER = model(t2i_adapters=(T2IAdapterSpec("adapter", 3, LEVELS),))
IP = model(ip_adapter=IpAdapterSpec("ip", (20,), 4, 32))
BLIND = model(ip_adapter=IpAdapterSpec("ip", (17, 20), 4, 0))


def check(spec: ModelSpec, prompt: Any = "a", **given: Any) -> ControlRequest:
    request = check_request(
        spec,
        prompt=prompt,
        negative="",
        steps=4,
        sampler="ddim",
        guidance=3.0,
        seed=0,
        num=1,
        height=None,
        width=None,
        eta=None,
    )
    return check_control(spec, request, {**NOTHING, **given})


def test_intervals_in_which_no_step_lies() -> None:
    """Steps count where all of them lies inside; the words name the interval of the network that is idle."""
    request: Any = SimpleNamespace(steps=4)
    late = check(NETS, control_image=[PICTURE, PICTURE], control_start=[0.8, 0.0])
    assert late.idle(request, 4) == ["control_start 0.8 and control_end 1"]
    assert late.idle(request, 8) == []
    assert check(NETS, control_image=[None, PICTURE], control_start=[0.8, 0.0]).idle(request, 4) == []
    assert check(ADAPTER, adapter_image=PICTURE, adapter_end=0.2).idle(request, 4) == ["adapter_end 0.2"]
    assert check(ADAPTER, adapter_image=PICTURE, adapter_end=0.25).idle(request, 4) == []


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        (MODEL, {"control_image": PICTURE}, "has no ControlNet; build it with --controlnet"),
        (MODEL, {"adapter_image": PICTURE}, "has no T2I-Adapter; build it with --t2i-adapter"),
        (MODEL, {"ip_image": PICTURE}, "has no IP-Adapter; build it with --ip-adapter"),
        (MODEL, {"ip_embeds": np.zeros((1, 20))}, "ip_embeds: this engine has no IP-Adapter"),
        (ONE, {"control_scale": 0.5}, "control_scale without control_image"),
        (ONE, {"control_start": 0.5}, "control_start without control_image"),
        (ONE, {"control_end": 0.5}, "control_end without control_image"),
        (ONE, {"guess_mode": True}, "guess_mode without control_image"),
        (ADAPTER, {"adapter_scale": 1.0}, "adapter_scale without adapter_image"),
        (ADAPTER, {"adapter_end": 1.0}, "adapter_end without adapter_image"),
        (IP, {"ip_scale": 1.0}, "ip_scale without ip_image"),
        (ONE, {"control_image": 3}, "control_image is of type int"),
        (ONE, {"control_image": "none.png"}, "control_image 'none.png' cannot be read"),
        (ONE, {"control_image": "."}, "cannot be read .Is a directory"),
        (ONE, {"control_image": __file__}, "is no picture of a known format"),
        (ONE, {"control_image": np.full((4, 4, 3), 9.0)}, "floats from 9 to 9: they must be"),
        (ONE, {"control_image": np.zeros((4, 4, 2), np.uint8)}, r"shape \[4, 4, 2\]"),
        (ONE, {"control_image": [PICTURE, PICTURE]}, "2 pictures for 1 prompts"),
        (ONE, {"control_image": []}, "0 pictures for 1 prompts"),
        (ONE, {"control_image": PICTURE, "control_scale": "x"}, "control_scale is 'x'"),
        (ONE, {"control_image": PICTURE, "control_scale": float("nan")}, "control_scale is nan"),
        (ONE, {"control_image": PICTURE, "control_scale": [1, 2]}, "control_scale has 2 numbers"),
        (ONE, {"control_image": PICTURE, "control_start": 1.5}, "control_start is 1.5: it must be from 0 to"),
        (ONE, {"control_image": PICTURE, "control_end": -1}, "control_end is -1"),
        (ONE, {"control_image": PICTURE, "control_start": 0.5, "control_end": 0.5}, "start before the end"),
        (ONE, {"control_image": PICTURE, "guess_mode": 1}, "guess_mode is 1"),
        (NETS, {"control_image": PICTURE}, "has one picture, the engine 2 ControlNets"),
        (NETS, {"control_image": [PICTURE]}, "has 1 entries, the engine 2"),
        (NETS, {"control_image": [None, None]}, "has no picture"),
        (ADAPTER, {"adapter_image": PICTURE, "adapter_end": 2}, "adapter_end is 2"),
        (ADAPTER, {"adapter_image": [PICTURE] * 2}, "2 pictures for 1 prompts"),
        (IP, {"ip_image": []}, "ip_image is an empty list"),
        (IP, {"ip_image": PICTURE, "ip_embeds": np.zeros((1, 20))}, "give one of the two"),
        (IP, {"ip_image": PICTURE, "ip_scale": True}, "ip_scale is True"),
        (IP, {"ip_embeds": np.zeros((1, 21))}, r"float64 \[1, 21\]: they must be float32 \[pictures, 20\]"),
        (IP, {"ip_embeds": np.full((1, 20), np.nan)}, "NaN"),
        (BLIND, {"ip_image": PICTURE}, "no image encoder; build it with --image-encoder"),
        (BLIND, {"ip_embeds": np.zeros((1, 17, 20))}, "the negative ones first"),
    ],
)
def test_refused(spec: ModelSpec, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check(spec, **given)
    assert "\n" not in str(caught.value)


def test_one_value_serves_all_and_lists_serve_each() -> None:
    net = check(NETS, control_image=[PICTURE, PICTURE], control_scale=0.5, control_end=[0.5, 1]).controlnet
    assert net is not None
    assert (net.scales, net.starts, net.ends) == ((0.5, 0.5), (0.0, 0.0), (0.5, 1.0))
    assert not net.whole
    net = check(NETS, control_image=[PICTURE, None], control_end=[1, 0.5]).controlnet
    assert net is not None
    assert net.whole, "the interval of a ControlNet that is not used does not count"
    assert not check(NETS)


def test_files_are_recorded_and_repeat_the_call(tmp_path: Path) -> None:
    file = tmp_path / "edges.png"
    PICTURE.save(file)
    asked = check(NETS, ["a", "b"], control_image=[[file, file], None], control_scale=0.25)
    settings = asked.settings()
    assert settings["control_image"] == [[str(file)] * 2, None]
    assert settings["control_scale"] == [0.25, 0.25]
    again = check(NETS, ["a", "b"], **json.loads(json.dumps(settings)))
    assert again.settings() == settings
    (record, other) = asked.metadata()["control"]["control_image"]
    assert record == other
    assert set(record) == {"file", "sha256"}
    assert len(record["sha256"]) == 64


def test_given_pictures_are_recorded_by_their_pixels() -> None:
    asked = check(NETS, control_image=[PICTURE, None], control_scale=0.25)
    assert asked.settings() == {}
    control = asked.metadata()["control"]
    assert control["control_scale"] == [0.25, 0.25]
    assert set(control["control_image"][0]) == {"sha256"}
    sources = [read_picture(one).source for one in (PICTURE, np.asarray(PICTURE), picture(2))]
    assert sources[0]["sha256"] == sources[1]["sha256"] != sources[2]["sha256"]


def test_a_rotated_photograph_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1, 30, 20).save(tmp_path / "photo.jpg", exif=exif)
    assert read_picture(tmp_path / "photo.jpg").image.size == (20, 30)


@pytest.mark.parametrize("size", [(45, 33), (33, 45), (32, 32), (200, 31), (7, 90)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_clip_pictures_are_those_of_transformers(size: tuple[int, int], mode: str) -> None:
    from transformers import CLIPImageProcessorPil

    image = picture(3, *size).convert(mode)
    wanted = CLIPImageProcessorPil(size=32, crop_size=32)(image, return_tensors="np").pixel_values
    found = clip_pixels(image, 32)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-6


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_control_pictures_are_those_of_diffusers(mode: str) -> None:
    from diffusers.image_processor import VaeImageProcessor

    image = picture(4, 45, 33).convert(mode)
    processor = VaeImageProcessor(vae_scale_factor=8, do_convert_rgb=True, do_normalize=False)
    wanted = processor.preprocess(image, height=48, width=32).numpy()
    assert np.array_equal(pixels(image, 32, 48, 3), wanted)
    assert pixels(image, 32, 48, 1).shape == (1, 1, 48, 32)


def test_metadata_of_a_picture_repeats_it(native: fastdiff.Pipeline, tmp_path: Path) -> None:
    edges, face = tmp_path / "edges.png", tmp_path / "face.png"
    picture(5).save(edges)
    picture(6).save(face)
    result = native("a", steps=2, seed=1, control_image=[edges, None], ip_image=face, control_end=0.6)
    (name,) = result.save(tmp_path / "out.png")
    metadata = read_metadata(name)
    assert set(metadata["control"]) == {"control_image", "ip_image"}
    again = native(**metadata["settings"])
    assert np.array_equal(result.latents, again.latents)


def test_scales_of_the_networks_in_use() -> None:
    asked = check(ONE, control_image=PICTURE, control_scale=0)
    assert asked.scales() == [("control_scale", "ControlNet", 0.0)]
    asked = check(NETS, control_image=[None, PICTURE], control_scale=[0, 2])
    assert asked.scales() == [("control_scale 1", "ControlNet", 2.0)]
    asked = check(ADAPTER, adapter_image=PICTURE, adapter_scale=0.5)
    assert asked.scales() == [("adapter_scale", "T2I-Adapter", 0.5)]
    assert check(IP, ip_image=PICTURE).scales() == [("ip_scale", "IP-Adapter", 1.0)]
    assert check(ONE).scales() == []


def test_what_a_call_does_not_use_changes_nothing(
    native: fastdiff.Pipeline, tiny_native_engine: Path
) -> None:
    """Zeros for all control: the picture of an engine without; in the same compiled loop."""
    plain = fastdiff.load(tiny_native_engine, threads=1)
    call: dict[str, Any] = {"steps": 5, "seed": 4, "sampler": "euler"}
    ours, wanted = native("a red star", **call), plain("a red star", **call)
    assert np.linalg.norm(ours.latents - wanted.latents) < 1e-5 * np.linalg.norm(wanted.latents)
    with pytest.warns(FastdiffWarning, match=r"^ip_scale is 0: the IP-Adapter has no effect"):
        none = native("a red star", ip_image=PICTURE, ip_scale=0.0, **call)
    assert np.array_equal(none.latents, ours.latents)
    with pytest.warns(FastdiffWarning, match=r"^control_scale 0 is 0: the ControlNet has no") as caught:
        off = native("a red star", control_image=[PICTURE, None], control_scale=0.0, **call)
    assert len(caught) == 1, "the other one has no picture"
    assert np.linalg.norm(off.latents - ours.latents) < 1e-5 * np.linalg.norm(ours.latents)


def test_a_controlnet_outside_its_interval_does_not_run(native: fastdiff.Pipeline) -> None:
    session = native.modules["controlnet"]
    calls = []
    run = session._run

    def counted(arrays: dict[str, Any]) -> dict[str, Any]:
        calls.append(len(arrays["sample"]))
        return run(arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_run", counted)
        native("a", steps=8, seed=1, sampler="ddim", control_image=[PICTURE, None], control_start=0.25)
        assert calls == [2] * 6
        calls.clear()
        native("a", steps=8, seed=1, sampler="ddim", control_image=[PICTURE, None], control_end=0.5)
        assert calls == [2] * 4
        calls.clear()
        native("a", steps=4, seed=1, sampler="ddim", control_image=[PICTURE, None], guess_mode=True)
        assert calls == [1] * 4, "the half with the prompt alone"
        calls.clear()
        native("a", steps=4, seed=1, sampler="ddim")
        assert not calls


def test_adapter_up_to_a_share_of_the_steps(native: fastdiff.Pipeline) -> None:
    """Up to all steps it is the compiled loop, below the one on the host; without any, no adapter at all."""
    call: dict[str, Any] = {"steps": 4, "seed": 2, "sampler": "euler"}
    plain = native("a", **call).latents
    ends = {}
    for end in (0.0, 0.5, 0.99, 1.0):
        without = pytest.warns(FastdiffWarning, match="adapter_end 0 none of 4 steps is left: .* widen")
        with without if end == 0 else contextlib.nullcontext():
            ends[end] = native("a", adapter_image=[PICTURE, None], adapter_end=end, **call).latents
    assert np.linalg.norm(ends[0.0] - plain) < 1e-5 * np.linalg.norm(plain)
    distances = [float(np.linalg.norm(ends[end] - plain)) for end in (0.5, 0.99, 1.0)]
    assert distances[0] > 0
    assert not np.allclose(ends[0.5], ends[0.99], atol=1e-3)
    assert not np.allclose(ends[0.99], ends[1.0], atol=1e-3), "int(4 · 0.99) is 3 steps"


def test_what_cannot_be_together(native: fastdiff.Pipeline, sources: Any) -> None:
    split = fastdiff.load(native.engine.path, 1, "cpu", "cpu")
    with pytest.raises(InputError, match="leave the second device out"):
        split("a", steps=2, control_image=[PICTURE, None])
    with pytest.raises(InputError, match="leave the second device out"):
        split("a", steps=2, adapter_image=[PICTURE, None], adapter_end=0.5)
    ours = split("a", steps=2, seed=1, ip_image=PICTURE, adapter_image=[PICTURE, None]).latents
    wanted = native("a", steps=2, seed=1, ip_image=PICTURE, adapter_image=[PICTURE, None]).latents
    assert np.linalg.norm(ours - wanted) < 1e-5 * np.linalg.norm(wanted)
    split.close()
    with pytest.raises(InputError, match="chooses its own steps"):
        native("a", sampler="dpm_adaptive", control_image=[PICTURE, None], control_end=0.5)


def test_a_pool_refuses_by_name() -> None:
    from fastdiff.workers.pool import _refuse_control

    _refuse_control({"control_image": None, "guess_mode": False})
    with pytest.raises(InputError, match="ip_image on several devices at once"):
        _refuse_control({"ip_image": PICTURE})
    with pytest.raises(TypeError, match="'nonsense'"):
        _refuse_control({"nonsense": 1})
