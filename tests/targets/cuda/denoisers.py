"""Made-up denoisers in the stages of a U-Net, for the loop and for `fastdiff.samplers.sample` alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["MadeUp"]


class MadeUp:
    """A smooth, bounded, nonlinear function of sample, timestep and prompt; elements and images differ.

    Its stages return what those of U-Nets do: several values, of several widths and dtypes, with more axes
    than two; 5 columns of the first let those after it start at odd places.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.dtype = dtype
        self.calls: list[str] = []
        self._frequencies = torch.tensor([1 / 150, 1 / 40, 1 / 400, 1 / 90, 1 / 700], device=device)
        self._mix = torch.linspace(-1, 1, 5, device=device, dtype=dtype)

    def prompt(self, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        self.calls.append("prompt")
        states = inputs["encoder_hidden_states"].to(self.dtype)  # (B, tokens, 6)
        return [torch.tanh(states.mean(1)), states]

    def schedule(self, timesteps: Tensor) -> Sequence[Tensor]:
        self.calls.append("schedule")
        waves = torch.sin(timesteps[:, None] * self._frequencies)  # (S, 5)
        return [waves.to(self.dtype), waves[:, :3], torch.stack([waves, -waves], 1)[:, :, :2]]

    def step(self, model_input: Tensor, prompt: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
        self.calls.append("step")
        summary, states = prompt
        waves, few, pairs = rows
        assert (waves.shape, few.shape, pairs.shape) == ((1, 5), (1, 3), (1, 2, 2))
        batch = model_input.shape[0]
        time = (waves * self._mix).sum() + few.sum().to(self.dtype) + pairs[:, 1].sum().to(self.dtype)
        shift = summary.sum(1) + states[:, 0, 0] + time  # (B,)
        channels = torch.sin(torch.arange(model_input.shape[1], device=model_input.device) + 1.0).to(
            self.dtype
        )
        return torch.tanh(0.6 * model_input + shift.view(batch, 1, 1, 1) * channels.view(1, -1, 1, 1))

    def denoiser(self, inputs: Mapping[str, np.ndarray]):
        """The same model as ``fastdiff.samplers.sample`` calls it, on the CPU."""
        prompt = self.prompt({name: torch.from_numpy(array) for name, array in inputs.items()})

        def denoise(sample: np.ndarray, timestep: float, guided: bool):
            x = torch.from_numpy(np.concatenate([sample, sample]) if guided else sample.copy())
            rows = [value[:1] for value in self.schedule(torch.tensor([timestep], dtype=torch.float32))]
            output = self.step(x.to(self.dtype), prompt, rows).to(torch.float32).numpy()
            return (output[len(sample) :], output[: len(sample)]) if guided else (output, None)

        return denoise
