"""CFG++: Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastdiff.errors import InputError
from fastdiff.samplers.guidance.method import Method
from fastdiff.samplers.table import Step

__all__ = ["CFGPlusPlus"]


@dataclass(frozen=True)
class CFGPlusPlus(Method):
    """x' = A·x₀(uncond + w·(cond − uncond)) + B·ε(uncond): guidance moves x₀, the noise is the unconditional.

    Algorithm 2 of the paper, whose λ is w: 0 to 1, of which it uses 0.6. For a step of first order,
    x' = A·x₀(m) + B·ε(m), let b and u be the factors of m in the two terms. Then

        b·(uncond + w·(cond − uncond)) + u·uncond = (b + u)·(uncond + w'·(cond − uncond)),  w' = w·b/(b + u),

    so that CFG++ is plain guidance with a scale for each step, and runs wherever that runs. Steps that use
    earlier outputs, or a clipped x₀, are no such combination and are refused.
    """

    name: ClassVar[str] = "cfg_pp"
    linear: ClassVar[bool] = True
    rescales: ClassVar[bool] = False
    original: ClassVar[bool] = False

    def is_off(self, scale: float) -> bool:
        """Never: at 1 the noise is still the unconditional."""
        return False

    def folded(self, step: Step, scale: float) -> float:
        """The scale w'. Raises `InputError` for steps that are not of first order or stay at their level."""
        if not _first_order(step):
            raise InputError(
                "guidance 'cfg_pp' needs steps of first order in the model's output, without history and "
                f"clipping, but the step at timestep {step.timestep:g} is none; use sampler 'ddim' (without "
                "clip_sample) or 'euler', or another guidance method"
            )
        b = _clean_factor(step)
        if step.update.output == 0 != b * scale:
            raise InputError(
                f"guidance 'cfg_pp' cannot be folded into the step at timestep {step.timestep:g}, which "
                "stays at its noise level; use a spacing without repeated timesteps"
            )
        return scale * b / step.update.output if b else 0.0


def _first_order(step: Step) -> bool:
    """Whether the step is A·x₀(m) + B·ε(m), with noise or without, and no later step reads what it saw."""
    saves = step.save_sample is not None or step.save_output is not None
    return (
        step.point is not None
        and step.point.sigma > 0
        and step.linear
        and step.estimate is None
        and not step.history
        and not saves
    )


def _clean_factor(step: Step) -> float:
    """b: the factor of m in A·x₀(m), with A·x₀ + B·ε the step's update."""
    assert step.point is not None
    x0, epsilon = step.point.x0, step.point.epsilon
    determinant = x0.sample * epsilon.output - x0.output * epsilon.sample
    a = (step.update.sample * epsilon.output - step.update.output * epsilon.sample) / determinant
    return a * x0.output
