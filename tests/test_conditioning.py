"""What the U-Net is told beside the prompt: the guidance scale as diffusers embeds it, and labels."""

from __future__ import annotations

import numpy as np
import pytest

from fastdiff.conditioning import guidance_embedding


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 7.5, 8.5])
@pytest.mark.parametrize("width", [4, 7, 12, 256])
def test_the_embedding_is_that_of_diffusers(scale: float, width: int) -> None:
    import torch
    from diffusers import LatentConsistencyModelPipeline

    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    wanted = embed(None, torch.tensor(scale - 1).repeat(1), embedding_dim=width).numpy()
    found = guidance_embedding(scale, width)
    assert (found.shape, found.dtype) == (wanted.shape, np.float32)
    # sines of up to 7500: one bit of the angle is 5e-4
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert np.linalg.norm(found - wanted) <= 2e-4 * np.linalg.norm(wanted)
