"""timestep_embedding on the CPU against its formula in double precision, and against diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import timestep_embedding
from tests.compare import assert_close


@pytest.mark.smoke
@pytest.mark.parametrize("sine_first", [False, True])
@pytest.mark.parametrize(
    ("rows", "half"),
    [
        pytest.param(1, 1, id="one of each"),
        pytest.param(2, 160, id="Stable Diffusion's"),
        pytest.param(50, 37, id="a schedule, an odd width"),
        pytest.param(0, 8, id="no timesteps"),
    ],
)
def test_matches_formula(rng, isa, rows, half, sine_first):
    timesteps = rng.uniform(0, 1000, rows).astype(np.float32)
    frequencies = np.exp(-np.log(1e4) * np.arange(half) / half).astype(np.float32)
    angles = (timesteps[:, None] * frequencies).astype(np.float64)  # rounded to float32 first
    parts = (np.sin(angles), np.cos(angles)) if sine_first else (np.cos(angles), np.sin(angles))
    for threads in (1, 2, 3):
        found = timestep_embedding(timesteps, frequencies, sine_first, threads=threads, isa=isa)
        assert found.dtype == np.float32
        assert_close(found, np.concatenate(parts, 1), max_abs=6e-8)


def test_matches_diffusers(isa):
    from diffusers.models.embeddings import get_timestep_embedding

    timesteps = torch.tensor([0.0, 1.0, 500.5, 999.0])
    wanted = get_timestep_embedding(timesteps, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    frequencies = torch.exp(-np.log(10000) * torch.arange(160, dtype=torch.float32) / 160).numpy()
    assert_close(timestep_embedding(timesteps.numpy(), frequencies, isa=isa), wanted, max_abs=1e-6)


def test_strides_and_nothing_else_written(isa):
    timesteps, frequencies = np.arange(3, dtype=np.float32), np.linspace(0, 1, 5, dtype=np.float32)
    wide = np.full((5, 20), 7.0, np.float32)
    out = wide[1:4, 6:16]
    assert timestep_embedding(timesteps, frequencies, out=out, isa=isa) is out
    assert np.array_equal(out, timestep_embedding(timesteps, frequencies, isa=isa))
    out[...] = 7.0
    assert (wide == 7.0).all()


T = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": T.astype(np.int64)}, "timesteps: found dtype int64, wanted float32"),
        ({"timesteps": T[None]}, r"timesteps: found shape \(1, 3\), wanted one axis"),
        ({"frequencies": np.zeros(8, np.float32)[::2]}, "frequencies: .* not C-contiguous"),
        ({"out": np.zeros((3, 5), np.float32)}, r"out: found shape \(3, 5\), wanted \(3, 6\)"),
        ({"threads": 0}, "threads: found 0"),
    ],
)
def test_refuses_bad_arguments(change, message):
    with pytest.raises(InputError, match=message):
        timestep_embedding(**{"timesteps": T, "frequencies": T, **change})
