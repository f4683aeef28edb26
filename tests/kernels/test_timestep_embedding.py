"""fastdiff::timestep_embedding: the reference against diffusers, and the registered op."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from fastdiff.errors import InputError
from fastdiff.kernels import library, reference
from tests.compare import assert_close

TIMESTEPS = torch.tensor([0.0, 1.0, 7.25, 999.0])


# One frequency, a prime count, Stable Diffusion's.
@pytest.mark.parametrize("half", [1, 13, 160])
@pytest.mark.parametrize("sine_first", [False, True])
def test_against_diffusers(half: int, sine_first: bool) -> None:
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    found = reference.timestep_embedding(TIMESTEPS, frequencies, sine_first)
    wanted = get_timestep_embedding(
        TIMESTEPS, 2 * half, flip_sin_to_cos=not sine_first, downscale_freq_shift=0
    )
    # 999 rad in float32 leave 3e-5 of the angle uncertain
    assert_close(found, wanted, max_abs=1e-4, label="timestep_embedding")


def test_order() -> None:
    found = reference.timestep_embedding(torch.zeros(2), torch.ones(3), True)
    assert found.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert (
        reference.timestep_embedding(torch.zeros(2), torch.ones(3), False).tolist()
        == [[1, 1, 1, 0, 0, 0]] * 2
    )


def test_the_registered_op() -> None:
    torch.library.opcheck(library.timestep_embedding, (TIMESTEPS, torch.ones(3), True))
    torch.library.opcheck(library.timestep_embedding, (TIMESTEPS, torch.ones(3), False))
    with pytest.raises(InputError, match=r"timesteps: found shape \(4, 1\), wanted one axis"):
        library.timestep_embedding(TIMESTEPS[:, None], torch.ones(3), True)
    with pytest.raises(InputError, match=r"frequencies: found shape \(1, 3\), wanted one axis"):
        library.timestep_embedding(TIMESTEPS, torch.ones(1, 3), True)
