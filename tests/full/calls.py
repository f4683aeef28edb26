"""One call in our names and in diffusers', by task: what the full-size tests draw."""

from __future__ import annotations

from typing import Any

from tests.tasks.oracle import drawn, hole

__all__ = ["TASKS", "our_pictures", "their_call"]

PROMPT = "a red circle left of a blue square"
TASKS = ("generate", "img2img", "inpaint", "upscale", "unconditional", "classes")
_LABEL = 7
_STRENGTH = 0.7  # two of three steps


def their_call(task: str, call: dict[str, Any]) -> dict[str, Any]:
    """``call`` has height, width, steps and guidance; what diffusers' pipeline of the task is given."""
    steps = {"num_inference_steps": call["steps"]}
    if task == "unconditional":
        return {"batch_size": 1, **steps}
    if task == "classes":
        return {"batch_size": 1, "class_labels": _LABEL, **steps}
    given = {"prompt": PROMPT, "guidance_scale": call["guidance"], **steps}
    size = {"height": call["height"], "width": call["width"]}
    match task:
        case "generate":
            return {**given, **size}
        case "img2img":  # as large as the picture
            return {**given, "image": drawn(**size), "strength": _STRENGTH}
        case "inpaint":
            return {**given, **size, "image": drawn(**size), "mask_image": hole(**size)}
        case "upscale":
            return {**given, "image": _small(call), "noise_level": 20}
    raise KeyError(task)


def our_pictures(pipe: Any, task: str, call: dict[str, Any]) -> list[Any]:
    """The pictures of the same call."""
    options = {"steps": call["steps"], "seed": call["seed"]}
    if call["sampler"]:
        options["sampler"] = call["sampler"]
    if task == "unconditional":
        return list(pipe(**options).images)
    if task == "classes":
        return list(pipe(class_label=_LABEL, **options).images)
    options |= {"prompt": PROMPT, "guidance": call["guidance"]}
    size = {"height": call["height"], "width": call["width"]}
    match task:
        case "generate":
            result = pipe(**options, **size)
        case "img2img":
            result = pipe.img2img(drawn(**size), strength=_STRENGTH, **options)
        case "inpaint":
            result = pipe.inpaint(drawn(**size), hole(**size), **options)
        case "upscale":
            result = pipe.upscale(_small(call), noise_level=20, **options)
        case _:
            raise KeyError(task)
    return list(result.images)


def _small(call: dict[str, Any]) -> Any:
    """A picture that becomes one of the call's size."""
    return drawn(call["height"] // 4, call["width"] // 4)
