"""The steps of fastdiff.h, filled in from Python, against the loop of the Python package."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import _C
from fastdiff.samplers import Generator, StepTable
from tests.compare import assert_close
from tests.samplers.random_tables import tables
from tests.targets.native.test_loop import PROMPT, in_cpp, prompt_for, unet

NO_SLOT = ctypes.c_size_t(-1).value
DOUBLE, SIZE, INT = ctypes.c_double, ctypes.c_size_t, ctypes.c_int


class CStep(ctypes.Structure):
    """fastdiff_step."""

    _fields_ = (
        *((name, DOUBLE) for name in ("timestep", "sample", "output", "input_scale")),
        ("history_count", SIZE),
        ("history_slots", SIZE * 8),
        ("history_coefs", DOUBLE * 8),
        ("save_sample", SIZE),
        ("save_output", SIZE),
        ("has_noise", INT),
        ("noise", DOUBLE),
        ("has_estimate", INT),
        *((f"estimate_{name}", DOUBLE) for name in ("sample", "output", "limit", "weight")),
        ("has_guidance", INT),
        ("guidance", DOUBLE),
    )


class CArray(ctypes.Structure):
    """fastdiff_array."""

    _fields_ = (("data", ctypes.c_void_p), ("rank", SIZE), ("sizes", SIZE * 8))

    @staticmethod
    def of(array: np.ndarray) -> CArray:
        return CArray(array.ctypes.data, array.ndim, (SIZE * 8)(*array.shape))


def c_steps(table: StepTable) -> ctypes.Array[CStep]:
    steps = (CStep * len(table.steps))()
    for to, step in zip(steps, table.steps, strict=True):
        to.timestep, to.sample, to.output = step.timestep, step.update.sample, step.update.output
        to.input_scale, to.history_count = step.input_scale, len(step.history)
        for index, (slot, coef) in enumerate(step.history):
            to.history_slots[index], to.history_coefs[index] = slot, coef
        to.save_sample, to.save_output = (
            NO_SLOT if slot is None else slot for slot in (step.save_sample, step.save_output)
        )
        to.has_noise, to.noise = step.noise_coef is not None, step.noise_coef or 0.0
        if step.estimate is not None:
            value = step.estimate.value
            to.has_estimate, to.estimate_sample, to.estimate_output = 1, value.sample, value.output
            to.estimate_limit, to.estimate_weight = step.estimate.limit, step.estimate.weight
        to.has_guidance, to.guidance = step.guidance is not None, step.guidance or 0.0
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unet")


@pytest.fixture(scope="module")
def session(folder: Path) -> _C.NativeSession:
    return unet(folder, staged=True)


@pytest.fixture(scope="module")
def library(build: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build / "libfastdiff.so"))
    library.fastdiff_last_error.restype = ctypes.c_char_p
    return library


@pytest.fixture(scope="module")
def c_session(library: ctypes.CDLL, folder: Path, session: _C.NativeSession) -> ctypes.c_void_p:
    (path,) = folder.glob("*.fdn")
    module, result = ctypes.c_void_p(), ctypes.c_void_p()
    assert library.fastdiff_module_open(str(path).encode(), ctypes.byref(module)) == 0
    assert library.fastdiff_session_open(module, SIZE(2), ctypes.byref(result)) == 0
    library.fastdiff_module_close(module)
    yield result
    library.fastdiff_session_close(result)


def sample(
    library: ctypes.CDLL, c_session: ctypes.c_void_p, steps, slots: int, latents, states, guidance, generator
) -> int:
    inputs = (CArray * 3)(CArray(), CArray(), CArray.of(states))
    array = CArray.of(latents)
    return library.fastdiff_session_sample(
        *(c_session, steps, SIZE(len(steps)), SIZE(slots), inputs, DOUBLE(guidance), generator),
        *(ctypes.byref(array), None, None),
    )


@settings(max_examples=40, deadline=None)
@given(table=tables(guidances=(None, None, 1.0, 2.0)), guidance=st.sampled_from([1.0, 3.0]))
def test_steps_in_c_are_the_table_s(
    library: ctypes.CDLL,
    c_session: ctypes.c_void_p,
    session: _C.NativeSession,
    table: StepTable,
    guidance: float,
) -> None:
    latents = np.random.default_rng(3).standard_normal((2, 4, 3, 3)).astype(np.float32)
    wanted = in_cpp(session, guidance, table, latents, 5)
    generator = ctypes.c_void_p()
    assert library.fastdiff_generator_open(ctypes.c_uint64(5), ctypes.byref(generator)) == 0
    try:
        if table.start_noise is not None:  # the caller's to add
            drawn = np.empty_like(latents)
            address = ctypes.c_void_p(drawn.ctypes.data)
            assert library.fastdiff_generator_randn(generator, address, SIZE(drawn.size)) == 0
            assert np.array_equal(drawn, Generator(5).randn(drawn.shape))
            latents += np.float32(table.start_noise) * drawn
        states = prompt_for(table, guidance)
        status = sample(library, c_session, c_steps(table), table.slots, latents, states, guidance, generator)
        assert status == 0, library.fastdiff_last_error()
    finally:
        library.fastdiff_generator_close(generator)
    assert_close(latents, wanted, max_abs=1e-5 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"history_count": 9}, b"step 0 has 9 history terms, wanted at most 8"),
        ({"has_estimate": 1, "estimate_limit": -1.0}, b"step 0 has estimate_limit -1"),
        ({"has_guidance": 1, "guidance": float("inf")}, b"guidance is not finite"),
        ({"has_noise": 1}, b"found no generator"),
        ({"save_output": 3}, b"uses slot 3, wanted one below 1"),
    ],
)
def test_steps_that_cannot_run_are_refused(
    library, c_session, change: dict[str, float], words: bytes
) -> None:
    steps = (CStep * 1)(CStep(save_sample=NO_SLOT, save_output=NO_SLOT, input_scale=1.0))
    for name, value in change.items():
        setattr(steps[0], name, value)
    latents = np.ones((2, 4, 3, 3), np.float32)
    assert sample(library, c_session, steps, 1, latents, PROMPT[2:], 1.0, None) == 1
    assert words in library.fastdiff_last_error()
    assert (latents == 1).all()
