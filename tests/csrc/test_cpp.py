"""Builds csrc/ as a C++ project, without Python, and runs its own tests."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import fastdiff
from tests.csrc.conftest import ROOT, run


def test_kernels_and_runtime(build):
    assert run(build / "tests" / "cpp" / "test_kernels") == "all passed\n"


def test_c_interface(build, tmp_path):
    run(build / "tests" / "cpp" / "write_graph_file", tmp_path / "every_op.fdn")
    assert run(build / "tests" / "cpp" / "test_c_abi", tmp_path / "every_op.fdn") == "all passed\n"


def test_example_draws_the_pipeline_s_picture(build, scenes_native_engine, tmp_path):
    """examples/generate.c on an engine's files and the pipeline: the same picture, but for rounding."""
    pipeline = fastdiff.load(scenes_native_engine, threads=1)
    prompt = "a red circle left of a blue square"
    result = pipeline(prompt, sampler="ddim", steps=10, guidance=4.0, seed=11)
    wanted = np.asarray(result.images[0])
    ids, negative = (pipeline.tokenizer.tokenize(text).ids for text in (prompt, ""))
    model = pipeline.engine.manifest.model
    latent = [side // model.vae_scale_factor for side in (model.default_height, model.default_width)]
    settings = ["11", "10", "4.0", model.latent_channels, *latent, model.scaling_factor, *ids, "/", *negative]
    picture = tmp_path / "picture.ppm"
    run(build / "tests" / "cpp" / "generate", scenes_native_engine, picture, *map(str, settings))
    found = np.asarray(Image.open(picture))
    assert found.shape == wanted.shape
    # Its coefficients may differ in their last bits: a level of 255 is the most that rounding makes of it.
    assert int(np.abs(found.astype(int) - wanted.astype(int)).max()) <= 1
    assert found.std() > 20  # a picture, not one colour


def test_example_says_what_is_wrong(build, tmp_path):
    arguments = [
        build / "tests" / "cpp" / "generate",
        tmp_path,
        "x.ppm",
        *["0", "5", "1", "4", "8", "8", "1", "5", "/", "6"],
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("generate: ")
    assert "text_encoder.fdn cannot be opened" in done.stderr


def test_no_function_is_shared_between_instruction_sets(build):
    """The linker keeps one copy of an inline function that two objects define: AVX-512 for everyone."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    objects = sorted(build.glob("CMakeFiles/fastdiff_kernels_*.dir/**/*.o"))
    assert objects
    tags = {"portable": "Portable", "avx2": "Avx2", "avx512": "Avx512"}
    for path in objects:
        isa = path.relative_to(build).parts[1].removeprefix("fastdiff_kernels_").removesuffix(".dir")
        listing = run("nm", "--defined-only", "--extern-only", "--demangle", path)
        for line in listing.splitlines():
            symbol = line.split(maxsplit=2)[2]
            own = f"fastdiff::isa::{tags[isa]}" in symbol
            baseline = isa == "portable" and symbol.startswith("fastdiff::")
            assert own or baseline, f"{path.name} for {isa} defines {symbol}"


def test_shared_library_exports_only_the_c_interface(build):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listing = run("nm", "--dynamic", "--defined-only", build / "libfastdiff.so")
    exported = {line.split()[-1] for line in listing.splitlines()}
    header = (ROOT / "csrc" / "include" / "fastdiff.h").read_text()
    declared = {
        line.split("(")[0].split()[-1] for line in header.splitlines() if line.startswith("FASTDIFF_API ")
    }
    assert declared <= exported
    # The rest may be only weak template instances of the C++ standard library.
    assert not {name for name in exported - declared if "fastdiff" in name}
