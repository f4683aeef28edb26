"""Names of devices, engines of another kind, guidance in halves, and GPUs where there are some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdiff
from fastdiff import devices
from fastdiff.denoise import Denoiser, SplitDenoiser
from fastdiff.devices import Device, check_devices, parse_devices, share_threads
from fastdiff.engine_dir import open_engine
from fastdiff.errors import EngineMismatchError, FastdiffWarning, InputError, TargetError
from fastdiff.manifest import Manifest
from fastdiff.samplers import BatchRows, Generator, Guidance, NoiseSchedule, make_table
from fastdiff.samplers.guidance import Interval, PerpNeg
from fastdiff.targets import gpu
from tests.checkpoints import SCHEDULER
from tests.compare import assert_close
from tests.engines import MANIFEST, TEXT_ENCODER
from tests.oracle import psnr
from tests.samplers.configs import every_table
from tests.test_pipeline import FakeSession

GPUS = (gpu.Gpu(0, "NVIDIA H200", "9.0"), gpu.Gpu(1, "NVIDIA L4", "8.9"))


def manifest(target: str, **requires: str) -> Manifest:
    return replace(MANIFEST, modules={"unet": replace(TEXT_ENCODER, target=target, requires=requires)})


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_gpus", lambda: (GPUS, ""))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0", (0,)), ("0,1", (0, 1)), ("3, 1", (3, 1)), ("cpu", ("cpu",)), ("cpu,cpu,12", ("cpu", "cpu", 12))],
)
def test_names(text: str, wanted: tuple[Device, ...]) -> None:
    assert parse_devices(text) == wanted


@pytest.mark.smoke
@pytest.mark.parametrize("text", ["", "0,", "-1", "gpu", "cuda:0", "1.5", "CPU", "0 1", "²"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="is unknown: give numbers of GPUs or cpu"):
        parse_devices(text)


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("entry", "asked", "error", "says"),
    [
        (
            ("native", {}),
            [0, 1],
            InputError,
            "device 0 is a GPU, and unet .* for the CPU, .*'native'.*give cpu",
        ),
        (("onnxruntime", {}), [1], InputError, "built for the CPU"),
        (("cuda", {}), ["cpu"], InputError, "built for GPUs, target 'cuda'.*--target native"),
        (("tensorrt", {}), [0, "cpu"], InputError, "built for GPUs"),
        (("onnxruntime", {"device": "cuda"}), ["cpu"], InputError, "built for GPUs"),
        (("cuda", {}), [0, 0], InputError, "GPU 0 is given twice: .*only cpu may be repeated"),
        (("cuda", {}), [0, 2], TargetError, "GPU 2: this machine has 2, numbered from 0"),
        (("cuda", {}), [True], InputError, "device True is unknown"),
        (("cuda", {}), [-1], InputError, "device -1 is unknown"),
        (("cuda", {}), ["1"], InputError, "device '1' is unknown"),
        (("cuda", {}), [], InputError, "no devices"),
        (
            ("cuda", {"compute_capability": "9.0", "gpu": "NVIDIA H200"}),
            [0, 1],
            EngineMismatchError,
            r"GPU 1 is NVIDIA L4 \(compute capability 8.9\), unet was built for NVIDIA H200 \(9.0\)",
        ),
    ],
)
def test_devices_that_an_engine_cannot_run_on(
    two_gpus: None,
    entry: tuple[str, dict[str, str]],
    asked: list[Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says) as caught:
        check_devices(manifest(entry[0], **entry[1]), asked)
    assert "\n" not in str(caught.value)


@pytest.mark.smoke
def test_devices_that_an_engine_can_run_on(two_gpus: None) -> None:
    check_devices(manifest("native"), ["cpu", "cpu"])
    check_devices(manifest("onnxruntime", device="cuda"), [1, 0])
    check_devices(manifest("cuda", compute_capability="8.9"), [1])
    check_devices(manifest("tensorrt", compute_capability="9.0"), [1])


@pytest.mark.smoke
def test_without_a_driver_the_reason_is_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_gpus", lambda: ((), "there is no NVIDIA driver"))
    with pytest.raises(TargetError, match=r"^GPU 0: there is no NVIDIA driver$"):
        check_devices(manifest("cuda"), [0])


@pytest.mark.smoke
def test_threads_are_shared_by_processes_on_the_cpu() -> None:
    assert share_threads(["cpu", "cpu"], 5) == [2, 3]
    assert share_threads(["cpu", "cpu", "cpu"], 2) == [1, 1, 1]
    assert share_threads([0, 1], None) == [None, None]
    assert share_threads([0, 1], 3) == [3, 3]
    with pytest.raises(InputError, match="threads is 0"):
        share_threads(["cpu"], 0)


TABLES = {
    **every_table(4),
    "ddim with noise": make_table("ddim", NoiseSchedule.from_config(SCHEDULER), 6, eta=1.0),
}


def embeddings(seed: int, batch: int = 3) -> dict[str, Any]:
    states = np.random.default_rng(seed).standard_normal((batch, 5, 6)).astype(np.float32)
    return {"encoder_hidden_states": states}


@pytest.mark.smoke
@pytest.mark.parametrize("sampler", TABLES)
def test_halves_apart_are_the_halves_of_one_batch(sampler: str) -> None:
    """Rows of the made-up U-Net do not see each other, so that no bit differs."""
    table = TABLES[sampler]
    start = np.random.default_rng(0).standard_normal((3, 4, 6, 10)).astype(np.float32)
    conditional, unconditional = embeddings(1), embeddings(2)
    sessions = FakeSession("unet"), FakeSession("unet")
    seen: list[int] = []
    split = SplitDenoiser(*sessions, conditional, unconditional)
    found = split.run(table, start, 4.5, Generator(7), lambda step, total, latents: seen.append(step))
    together = Denoiser(FakeSession("unet"), conditional, unconditional)
    np.testing.assert_array_equal(found, together.run(table, start, 4.5, Generator(7), None))
    assert seen == list(range(1, table.evaluations + 1))
    for session, states in zip(sessions, (conditional, unconditional), strict=True):
        assert len(session.calls) == table.evaluations
        for call in session.calls:
            np.testing.assert_array_equal(call["encoder_hidden_states"], states["encoder_hidden_states"])


@pytest.mark.smoke
def test_three_branches_on_two_devices() -> None:
    """The prompt on the first; the empty and the negative prompt on the other, and nothing outside."""
    table = make_table("euler", NoiseSchedule.from_config(SCHEDULER), 5)
    start = np.random.default_rng(0).standard_normal((2, 4, 6, 10)).astype(np.float32)
    guidance = Guidance(3.0, PerpNeg(), interval=Interval(0.2, 0.8, "share"))
    branches = embeddings(1, 2), embeddings(2, 2), embeddings(3, 2)
    sessions = FakeSession("unet"), FakeSession("unet")
    found = SplitDenoiser(*sessions, *branches).run(table, start, guidance, Generator(7), None)
    whole = FakeSession("unet")
    together = Denoiser(whole, *branches).run(table, start, guidance, Generator(7), None)
    np.testing.assert_array_equal(found, together)
    assert [len(call["sample"]) for call in whole.calls] == [2, 6, 6, 6, 2]
    assert [len(session.calls) for session in sessions] == [5, 6]


@pytest.mark.smoke
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_of_either_half_goes_through(broken: int) -> None:
    class Broken(FakeSession):
        def _run(self, arrays: dict[str, Any]) -> dict[str, Any]:
            raise TargetError("this half is lost")

    table = make_table("ddim", NoiseSchedule.from_config(SCHEDULER), 3)
    sessions = [FakeSession("unet"), FakeSession("unet")]
    sessions[broken] = Broken("unet")
    split = SplitDenoiser(*sessions, embeddings(1), embeddings(2))
    with pytest.raises(TargetError, match="this half is lost"):
        split.run(table, np.zeros((3, 4, 6, 6), np.float32), 2.0, Generator(0), None)


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": "a red circle"},
        {"prompt": ["a red circle", "a star"], "negative": "blue", "num": 2, "sampler": "ddim", "eta": 1.0},
        {"prompt": "a star", "negative": "blue", "guidance": {"scale": 4, "method": "perp_neg"}},
        {"prompt": "a star", "guidance": {"scale": 4, "schedule": "linear"}, "sampler": "dpmpp_2m"},
        {"prompt": "a star", "guidance": {"scale": 0.6, "method": "cfg_pp"}, "sampler": "euler"},
    ],
)
def test_split_guidance_makes_the_same_picture(tiny_native_engine: Path, call: dict[str, Any]) -> None:
    call = {"steps": 5, "seed": 3, **call}
    wanted = fastdiff.load(tiny_native_engine, threads=2)(**call)
    split = fastdiff.load(tiny_native_engine, threads=2, device="cpu", guidance_device="cpu")
    found = split(**call)
    assert_close(found.latents, wanted.latents, rel_l2=1e-4)
    assert min(map(psnr, found.images, wanted.images)) >= 45
    assert found.metadata == wanted.metadata
    assert len(found.timings.steps) == len(wanted.timings.steps)
    split.close()
    np.testing.assert_array_equal(split(**call).latents, found.latents)


def test_a_compiled_loop_says_what_it_cannot_draw_from(tiny_native_engine: Path) -> None:
    unet = fastdiff.load(tiny_native_engine, threads=1).modules["unet"]
    table = make_table("ddim", NoiseSchedule.from_config(SCHEDULER), 2, eta=1.0)
    noise = BatchRows(Generator(0), 2, 0)
    with pytest.raises(InputError, match="noise is a BatchRows: the native loop"):
        unet.sample(table, np.zeros((1, 4, 8, 8), np.float32), {}, 1.0, noise, None)


def test_split_guidance_without_guidance(tiny_native_engine: Path) -> None:
    split = fastdiff.load(tiny_native_engine, threads=2, guidance_device="cpu")
    with pytest.warns(
        FastdiffWarning, match="other half of guidance has no effect with guidance 1"
    ) as caught:
        found = split("a red circle", steps=2, seed=0, guidance=1)
    assert [warning.filename for warning in caught] == [__file__]
    wanted = fastdiff.load(tiny_native_engine, threads=1)("a red circle", steps=2, seed=0, guidance=1)
    assert_close(found.latents, wanted.latents, rel_l2=1e-5)


def test_load_refuses_a_device_of_another_kind(tiny_native_engine: Path) -> None:
    with pytest.raises(InputError, match="device 0 is a GPU"):
        fastdiff.load(tiny_native_engine, device=0)
    with pytest.raises(InputError, match="device 1 is a GPU"):
        fastdiff.load(tiny_native_engine, guidance_device=1)


@pytest.fixture(scope="session")
def scenes_cuda_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``scenes`` for the GPU that is here."""
    from fastdiff.build.build import build_engine

    return build_engine("scenes", tmp_path_factory.mktemp("cuda") / "scenes.fd", target="cuda").path


PROMPT = "a red circle left of a blue square"


def needs_two_gpus() -> None:
    gpus, reason = gpu.find_gpus()
    if len(gpus) < 2:
        pytest.skip(f"needs two GPUs, this machine has {len(gpus)} {reason}".strip())


@pytest.mark.gpu
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gpu_one_device_in_a_process_of_its_own(scenes_cuda_engine: Path, eta: float) -> None:
    call: dict[str, Any] = {"num": 3, "steps": 10, "sampler": "ddim", "seed": 1, "eta": eta}
    wanted = fastdiff.load(scenes_cuda_engine, device=0)(PROMPT, **call)
    with fastdiff.load_many(scenes_cuda_engine, [0]) as pool:
        found = pool(PROMPT, **call)
    # halves: what other kernels for another batch round differently grows over the steps
    assert min(map(psnr, found.images, wanted.images)) >= 30


@pytest.mark.gpu
def test_gpu_halves_in_two_threads(scenes_cuda_engine: Path) -> None:
    """Both sessions on one GPU, where they take turns: what threads change shows with one GPU as well."""
    engine = open_engine(scenes_cuda_engine, device=0)
    hidden = engine.manifest.model.hidden_size
    rng = np.random.default_rng(0)
    tokens = engine.manifest.model.max_tokens
    conditional, unconditional = (
        {"encoder_hidden_states": rng.standard_normal((2, tokens, hidden)).astype(np.float32)}
        for _ in range(2)
    )
    start = rng.standard_normal((2, engine.manifest.model.latent_channels, 16, 24)).astype(np.float32)
    table = make_table("ddim", NoiseSchedule.from_config(engine.manifest.scheduler), 6)
    first, other = (engine.open_module("unet", None, 0) for _ in range(2))
    with first, other:
        split = SplitDenoiser(first, other, conditional, unconditional)
        found = [split.run(table, start, 2.0, Generator(0), None) for _ in range(2)]
        wanted = Denoiser(first, conditional, unconditional).run(table, start, 2.0, Generator(0), None)
    assert_close(found[1], found[0], max_abs=0.0, label="replayed")
    assert_close(found[0], wanted, rel_l2=2e-2)


@pytest.mark.gpu
def test_gpu_a_number_that_is_not_there(scenes_cuda_engine: Path) -> None:
    with pytest.raises(TargetError, match="GPU 99: this machine has"):
        fastdiff.load_many(scenes_cuda_engine, [0, 99])


@pytest.mark.gpu
def test_gpu_two_devices_make_the_pictures_of_one(scenes_cuda_engine: Path) -> None:
    needs_two_gpus()
    call: dict[str, Any] = {"num": 5, "steps": 10, "seed": 1}
    wanted = fastdiff.load(scenes_cuda_engine, device=0)(PROMPT, **call)
    second = fastdiff.load(scenes_cuda_engine, device=1)(PROMPT, **call)
    assert min(map(psnr, second.images, wanted.images)) >= 30
    with fastdiff.load_many(scenes_cuda_engine, [0, 1]) as pool:
        assert min(map(psnr, pool(PROMPT, **call).images, wanted.images)) >= 30


@pytest.mark.gpu
def test_gpu_guidance_on_two_devices(scenes_cuda_engine: Path) -> None:
    needs_two_gpus()
    call: dict[str, Any] = {"steps": 10, "seed": 1}
    wanted = fastdiff.load(scenes_cuda_engine, device=0)(PROMPT, **call)
    split = fastdiff.load(scenes_cuda_engine, device=0, guidance_device=1)
    for _ in range(2):  # captured, then replayed
        assert min(map(psnr, split(PROMPT, **call).images, wanted.images)) >= 30
