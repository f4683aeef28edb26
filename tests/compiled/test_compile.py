"""What ``fastdiff.compile`` leaves as it was, what it keeps, and everything that it refuses."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff
from fastdiff.errors import FastdiffWarning, InputError, OutputError, TargetError
from tests.compare import assert_close
from tests.compiled.pipelines import compiled, component, original, picture, quick

Twins = Callable[[str], tuple[Any, Any]]


def draw(pipe: Any, **options: Any) -> Any:
    call = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    return pipe("a red circle", **{**call, **options}).images


def small() -> Any:
    """A pipeline whose text encoder is soon built."""
    pipe = original("text to image")
    pipe.text_encoder = component("small")
    return pipe


def test_the_original_stays_as_it_was(engines: Path) -> None:
    pipe = original("text to image")
    parts = dict(pipe.components)
    weights = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    config, before = dict(pipe.config), draw(pipe)
    ours = compiled(pipe, engines)
    assert type(ours) is type(pipe)
    assert ours.components.keys() == parts.keys()
    ours.to(torch.float16)
    draw(ours)
    assert all(pipe.components[name] is value for name, value in parts.items())
    assert all(torch.equal(weights[key], value) for key, value in pipe.unet.state_dict().items())
    assert {parameter.dtype for parameter in pipe.vae.parameters()} == {torch.float32}
    assert dict(pipe.config) == config
    assert ours.scheduler is not pipe.scheduler
    np.testing.assert_array_equal(draw(pipe), before)


def test_what_was_compiled_is_reported(twins: Twins) -> None:
    _, ours = twins("text to image")
    assert ours.fastdiff.target == "native"
    assert ours.fastdiff.left == {}
    assert ours.fastdiff.engines.keys() == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert all(path.is_dir() for path in ours.fastdiff.engines.values())
    assert ours.unet.config is component("unet").config
    assert ours.vae.config.scaling_factor == component("vae").config.scaling_factor
    assert (ours.device, ours.dtype) == (torch.device("cpu"), torch.float32)
    assert sum(parameter.numel() for parameter in ours.unet.parameters()) == 0


def test_engines_are_found_again(twins: Twins, engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiff.compiled import engines as module

    _, first = twins("text to image")

    def never(*arguments: Any) -> None:
        raise AssertionError("builds what is there")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_build", never)
        again = compiled(original("image to image"), engines)
    assert again.fastdiff.engines == first.fastdiff.engines
    np.testing.assert_array_equal(draw(again, image=picture()), draw(again, image=picture()))


def test_other_weights_are_another_engine_and_a_damaged_one_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    pipe = small()
    options: dict[str, Any] = {"modules": ["text_encoder"], "progress": False, "target": "native"}
    first = fastdiff.compile(pipe, cache=tmp_path / "new" / "folder", **options)
    path = first.fastdiff.engines["text_encoder"]
    wanted = first.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state
    (path / "engine.json").write_text("{}")
    again = fastdiff.compile(pipe, cache=tmp_path / "new" / "folder", **options)
    assert again.fastdiff.engines["text_encoder"] == path
    assert_close(again.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state, wanted, rel_l2=1e-5)
    norm = pipe.text_encoder.final_layer_norm.weight
    with torch.no_grad():
        norm.mul_(2)
    try:
        other = fastdiff.compile(pipe, cache=tmp_path / "new" / "folder", **options)
        assert other.fastdiff.engines["text_encoder"] != path
        found = other.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state
        assert_close(found, pipe.text_encoder(torch.tensor([[1, 2, 3]])).last_hidden_state, rel_l2=1e-4)
    finally:
        with torch.no_grad():
            norm.div_(2)


def test_a_temporary_folder_lives_as_long_as_the_pipeline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick(monkeypatch)
    ours = fastdiff.compile(small(), modules=["text_encoder"], target="native", threads=1)
    folder = ours.fastdiff.engines["text_encoder"].parent
    assert folder.is_dir()
    assert "text_encoder: verify" in capsys.readouterr().err
    del ours
    gc.collect()
    assert not folder.exists()


def test_half_precision_pipelines_get_halves(engines: Path) -> None:
    import copy

    pipe = small()
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder).half()
    ours = compiled(pipe, engines, modules=["text_encoder"])
    found = ours.text_encoder(torch.tensor([[1, 2, 3]]))
    assert found.last_hidden_state.dtype == found.pooler_output.dtype == torch.float16
    wanted = pipe.text_encoder.float()(torch.tensor([[1, 2, 3]])).last_hidden_state
    assert_close(found.last_hidden_state.float(), wanted, rel_l2=1e-3)


def test_a_repeated_prompt_is_not_computed_again(twins: Twins) -> None:
    """The session leaves its prompt stage out while what it depends on stays the same, and only then."""
    _, ours = twins("text to image")
    sample, states = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32)
    first = ours.unet(sample, 5, states).sample
    states_later = states + 1
    other = ours.unet(sample, 5, states_later).sample
    assert not torch.equal(first, other)
    assert torch.equal(ours.unet(sample, torch.tensor(5), states, return_dict=False)[0], first)
    states.add_(1)  # in place: it is the values that count
    assert torch.equal(ours.unet(sample, torch.tensor([5, 5]), states).sample, other)


def test_components_without_a_module_are_named(engines: Path) -> None:
    class Checker(torch.nn.Linear):
        pass

    pipe = original("text to image")
    pipe.register_modules(safety_checker=Checker(2, 2))
    pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    try:
        with pytest.warns(
            FastdiffWarning, match=r"^left to PyTorch: unet has FreeU.*safety_checker is a Checker"
        ):
            ours = compiled(pipe, engines)
        assert ours.fastdiff.left.keys() == {"safety_checker", "unet"}
        assert ours.unet is pipe.unet
        with pytest.raises(InputError, match=r"^unet has FreeU enabled: call disable_freeu"):
            compiled(pipe, engines, modules=["unet"])
    finally:
        pipe.unet.disable_freeu()


METHODS = {
    "load_lora_weights": ("x",),
    "load_textual_inversion": ("x",),
    "load_ip_adapter": ("x", "y", "z"),
    "set_adapters": ("x",),
    "fuse_lora": (),
    "enable_freeu": (1, 1, 1, 1),
    "save_pretrained": ("x",),
    "enable_model_cpu_offload": (),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_would_be_without_effect(twins: Twins, method: str) -> None:
    _, ours = twins("text to image")
    with pytest.raises(InputError, match=rf"has no {method}: change the original pipeline and compile it"):
        getattr(ours, method)(*METHODS[method])


def test_parts_have_no_more_than_they_can_do(twins: Twins) -> None:
    _, ours = twins("text to image")
    for part, attribute in (
        ("unet", "load_lora_adapter"),
        ("unet", "up_blocks"),
        ("text_encoder", "encoder"),
    ):
        with pytest.raises(InputError, match=rf"^{part} was compiled by fastdiff and has no {attribute}"):
            getattr(getattr(ours, part), attribute)
        assert not hasattr(getattr(ours, part), attribute)
    with pytest.raises(InputError, match=r"^vae was compiled by fastdiff and has no save_pretrained"):
        ours.vae.save_pretrained("x")
    _, controlled = twins("ControlNet")
    with pytest.raises(
        InputError, match=r"^controlnet was compiled by fastdiff and has no set_attn_processor"
    ):
        controlled.controlnet.set_attn_processor(None)


def test_another_device_is_refused(twins: Twins) -> None:
    _, ours = twins("text to image")
    with pytest.raises(InputError, match="was compiled by fastdiff for cpu and cannot move to meta"):
        ours.to("meta")
    for part in (ours.unet, ours.vae, ours.text_encoder):
        with pytest.raises(InputError, match="cannot move to meta"):
            part.to("meta")


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "scale of LoRA": (
        {"cross_attention_kwargs": {"scale": 0.5}},
        "takes no cross_attention_kwargs or lora_scale",
    ),
    "attention": ({"cross_attention_kwargs": {"mask": 1}}, "unet .* takes no cross_attention_kwargs"),
    "IP-Adapter": (
        {"ip_adapter_image_embeds": [torch.zeros(2, 1, 4, 8)]},
        "unet .* takes no image_embeds|unet .* no encoder_hid_proj",
    ),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_options_of_a_call_that_cannot_be_honoured(
    twins: Twins, options: dict[str, Any], message: str
) -> None:
    _, ours = twins("text to image")
    with pytest.raises(InputError, match=message):
        draw(ours, **options)


def test_inputs_of_parts_that_they_do_not_have(twins: Twins) -> None:
    _, ours = twins("text to image")
    sample, states = torch.zeros(1, 4, 8, 8), torch.zeros(1, 7, 32)
    for option in (
        "attention_mask",
        "encoder_attention_mask",
        "down_block_additional_residuals",
        "timestep_cond",
    ):
        with pytest.raises(InputError, match=rf"^unet was compiled by fastdiff and takes no {option}"):
            ours.unet(sample, 1, states, **{option: torch.zeros(1)})
    with pytest.raises(InputError, match=r"^unet: height of sample is 3: it must be 4 or more"):
        ours.unet(torch.zeros(1, 4, 3, 8), 1, states)
    with pytest.raises(InputError, match="takes no attention_mask"):
        ours.text_encoder(torch.tensor([[1]]), attention_mask=torch.ones(1, 1))
    _, controlled = twins("ControlNet")
    with pytest.raises(InputError, match=r"^unet: .*9 is no multiple of 2"):
        controlled.unet(torch.zeros(1, 4, 9, 8), 1, states)
    _, xl = twins("SDXL")
    with pytest.raises(InputError, match=r"^unet needs text_embeds, time_ids$"):
        xl.unet(sample, 1, torch.zeros(1, 7, 56))


def test_residuals_are_counted(twins: Twins) -> None:
    _, ours = twins("ControlNet")
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 32)
    down, mid = ours.controlnet(sample, 1, states, torch.zeros(1, 3, 32, 32), return_dict=False)
    given = {"down_block_additional_residuals": down[1:], "mid_block_additional_residual": mid}
    with pytest.raises(InputError, match=r"^unet needs 4 residuals of its way down, found 3"):
        ours.unet(sample, 1, states, **given)
    zeros = {
        "down_block_additional_residuals": [0 * each for each in down],
        "mid_block_additional_residual": 0 * mid,
    }
    assert torch.equal(ours.unet(sample, 1, states).sample, ours.unet(sample, 1, states, **zeros).sample)


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown target": ({"target": "abacus"}, "unknown target 'abacus'"),
    "PyTorch itself": ({"target": "torch"}, "'torch' is what the pipeline runs on already"),
    "unknown precision": ({"precision": "fp8"}, "unknown precision 'fp8'"),
    "precision of another target": ({"precision": "bf16"}, "'native' has no precision bf16"),
    "unknown component": ({"modules": ["unet", "vea"]}, "no component 'vea' with weights; it has"),
    "one name": ({"modules": "unet"}, "modules is 'unet': give a list"),
    "no component": ({"modules": []}, "nothing of this StableDiffusionPipeline can be compiled"),
    "height": ({"height": 0}, "height is 0: give a whole number"),
    "batch": ({"batch": 1.5}, r"batch is 1\.5: give a whole number"),
    "threads": ({"threads": True}, "threads is True: give a whole number"),
}


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_cannot_be_used(engines: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compiled(original("text to image"), engines, **arguments)


def test_pipelines_that_cannot_be_compiled(
    twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^compile takes a diffusers pipeline, found UNet2DConditionModel"):
        fastdiff.compile(component("unet"))
    with pytest.raises(InputError, match="was compiled already"):
        fastdiff.compile(twins("text to image")[1])
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        fastdiff.compile(original("text to image"), cache=tmp_path / "file" / "folder")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "diffusers" else name)
    with pytest.raises(TargetError, match=r"^compile needs diffusers: install it with"):
        fastdiff.compile(None)


def hooked(model: Any) -> None:
    model.conv_out.register_forward_hook(lambda module, inputs, output: 0 * output)


def patched(model: Any) -> None:
    """As packages change blocks to reuse or merge what they compute."""
    forward = model.up_blocks[0].forward
    model.up_blocks[0].forward = lambda *arguments, **options: forward(*arguments, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked, r"^unet has forward hooks of conv_out, which would not run"),
        (patched, r"^unet has a forward of up_blocks\.0 that is not its class's"),
    ],
)
def test_code_that_was_put_into_a_model_is_seen(
    engines: Path, change: Callable[[Any], None], message: str
) -> None:
    import copy

    pipe = original("text to image")
    pipe.unet = copy.deepcopy(pipe.unet)
    change(pipe.unet)
    with pytest.raises(InputError, match=message):
        compiled(pipe, engines, modules=["unet"])


def test_a_text_encoder_that_was_called_before(engines: Path) -> None:
    """transformers leaves hooks behind where hidden states were asked for: they change nothing."""
    pipe = small()
    pipe.text_encoder(torch.tensor([[1, 2, 3]]), output_hidden_states=True)
    assert compiled(pipe, engines, modules=["text_encoder"]).fastdiff.left.keys() == {"unet", "vae"}


def test_weights_and_copies_of_parts_are_refused(twins: Twins) -> None:
    import copy
    import pickle

    pipe, ours = twins("text to image")
    for part in ("unet", "text_encoder", "vae"):
        with pytest.raises(InputError, match=rf"^{part} was compiled by fastdiff and has no load_state_dict"):
            getattr(ours, part).load_state_dict(getattr(pipe, part).state_dict(), strict=False)
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InputError, match=r"^unet was compiled by fastdiff and has no copies"):
            make(ours.unet)
