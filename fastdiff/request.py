"""What one call of the pipeline asks for, checked.

The checks are made before anything is computed. Each message holds the value found, the value wanted and the
way out.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fastdiff.arguments import integer, number, show, texts
from fastdiff.config import ModelSpec
from fastdiff.deep_cache import DeepCache, read_deep_cache
from fastdiff.errors import InputError
from fastdiff.prompts.options import TextOptions, read_options
from fastdiff.prompts.sizes import SizeConditioning
from fastdiff.samplers.guidance import Guidance, PerpNeg, read_guidance
from fastdiff.samplers.guidance.read import written

__all__ = ["Request", "check_request", "request_from", "request_values"]

_MAX_SEED = 2**64 - 1
_LARGEST_SIDE = 2**20
"""Longest side of a picture, in pixels."""


@dataclass(frozen=True)
class Request:
    """A checked call. ``prompts`` and ``negatives`` are of one length; ``num`` pictures are made of each.

    ``height`` and ``width`` are in picture pixels. ``eta`` None is the sampler's own. ``listed`` says whether
    the caller gave a list of prompts. ``options`` are those of the sampler, in JSON values. ``class_labels``
    has one for each picture, or none. ``embedded`` says that the model is told the guidance scale, so that
    nothing is computed twice; ``prompted`` that it takes a prompt at all: else that is one empty text. With
    ``deep_cache`` None every step evaluates the whole model. ``text`` says how the prompts are read and
    ``sizes`` what the model is told of the picture's. ``vae`` is "tiny" for the autoencoder of previews.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    steps: int
    sampler: str
    guidance: float | Guidance
    seed: int
    num: int
    height: int
    width: int
    eta: float | None
    listed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    class_labels: tuple[int, ...] = ()
    embedded: bool = False
    prompted: bool = True
    deep_cache: DeepCache | None = None
    text: TextOptions = field(default_factory=TextOptions)
    sizes: SizeConditioning = field(default_factory=SizeConditioning)
    vae: str | None = None

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is computed. As in diffusers, a number up to 1 switches it off."""
        return self.branches > 1

    @property
    def branches(self) -> int:
        """The most outputs of the model in one step: 1, with guidance 2, and 3 if a method needs them."""
        if isinstance(self.guidance, Guidance):
            return self.guidance.branches
        return 2 if self.guidance > 1.0 and not self.embedded else 1

    @property
    def scale(self) -> float:
        """The scale of the guidance."""
        return self.guidance.scale if isinstance(self.guidance, Guidance) else self.guidance

    @property
    def pictures(self) -> int:
        """Number of pictures: the batch of the latents, all pictures of the first prompt first."""
        return len(self.prompts) * self.num

    def settings(self) -> dict[str, Any]:
        """The call as keyword arguments of the pipeline, in JSON values: enough to repeat it."""
        texts: dict[str, Any] = {
            "prompt": list(self.prompts) if self.listed else self.prompts[0],
            "negative": list(self.negatives) if self.listed else self.negatives[0],
        }
        return {
            **(texts if self.prompted else {}),
            "steps": self.steps,
            "sampler": self.sampler,
            **({"guidance": _scale_or_dict(self.guidance)} if self.prompted else {}),
            "seed": self.seed,
            "num": self.num,
            "height": self.height,
            "width": self.width,
            "eta": self.eta,
            **({"sampler_options": dict(self.options)} if self.options else {}),
            **({"class_label": list(self.class_labels)} if self.class_labels else {}),
            **({} if self.deep_cache is None else {"deep_cache": self.deep_cache.setting()}),
            **self.text.settings(self.listed),
            **self.sizes.settings(),
            **({} if self.vae is None else {"vae": self.vae}),
        }

    def rows(self, rows: range) -> Request:
        """The call for some of its pictures alone, each with its own prompt."""

        def chosen(texts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(texts[row // self.num] for row in rows)

        return replace(
            self,
            prompts=chosen(self.prompts),
            negatives=chosen(self.negatives),
            num=1,
            class_labels=self.class_labels[rows.start : rows.stop],
            text=self.text.chosen(chosen),
        )


def check_request(
    model: ModelSpec,
    *,
    prompt: object,
    negative: object,
    steps: object,
    sampler: object,
    guidance: object,
    seed: object,
    num: object,
    height: object,
    width: object,
    eta: object,
    sampler_options: object = None,
    class_label: object = None,
    deep_cache: object = None,
    vae: object = None,
    **prompt_options: object,
) -> Request:
    """The call as a Request. Raises InputError for the first value that cannot be used.

    ``seed`` None draws one of 32 bits; ``height`` or ``width`` None takes the engine's default, ``guidance``
    None the model's. ``prompt_options`` are those of `fastdiff.prompts.PromptOptions`.
    """
    guidance = _default_guidance(model) if guidance is None and model.takes_prompt else guidance
    if not model.takes_prompt:
        prompt, negative, guidance = _unprompted(prompt, negative, guidance)
    elif prompt is None:
        raise InputError(
            "prompt is missing: this engine makes pictures of one; give it, or '' to leave it to the model"
        )
    prompts = texts("prompt", prompt)
    negatives = texts("negative", negative)
    if isinstance(negative, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise InputError(
            f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one for each, or one string"
        )
    if not isinstance(sampler, str):
        raise InputError(f"sampler is {show(sampler)}: it must be a name, such as 'ddim'")
    share = None if eta is None else number("eta", eta)
    if share is not None and not 0.0 <= share <= 1.0:
        raise InputError(f"eta is {share:g}: it must be from 0 (DDIM) to 1 (DDPM)")
    text, sizes = read_options(model, len(prompts), prompt_options)
    guidance = _guidance(guidance)
    if isinstance(guidance, Guidance) and isinstance(guidance.method, PerpNeg) and not any(negatives):
        raise InputError("guidance 'perp_neg' without a negative prompt: give one, or use 'cfg'")
    if model.guidance_embedding and isinstance(guidance, Guidance):
        raise InputError(
            "guidance is a Guidance: this model is told the scale itself, so it must be a number, such as 8"
        )
    pictures = integer("num", num, minimum=1)
    return Request(
        prompts=prompts,
        negatives=negatives,
        steps=integer("steps", steps, minimum=1),
        sampler=sampler,
        guidance=guidance,
        seed=secrets.randbits(32) if seed is None else integer("seed", seed, 0, _MAX_SEED),
        num=pictures,
        height=_side("height", height, model.default_height, model),
        width=_side("width", width, model.default_width, model),
        eta=share,
        listed=not isinstance(prompt, str),
        options=_options(sampler_options),
        class_labels=_class_labels(model, class_label, len(prompts) * pictures),
        embedded=model.guidance_embedding > 0,
        prompted=model.takes_prompt,
        deep_cache=read_deep_cache(deep_cache),
        text=text,
        sizes=sizes,
        vae=_vae(vae),
    )


def _vae(value: object) -> str | None:
    if value is None or value == "tiny":
        return None if value is None else "tiny"
    raise InputError(f"vae is {show(value)}: it must be 'tiny', or be left out for the model's own")


def _default_guidance(model: ModelSpec) -> float:
    """The scale of a call that gives none: 5, or as diffusers 8.5 for models that are told the scale."""
    return 8.5 if model.guidance_embedding else 5.0


def _unprompted(prompt: object, negative: object, guidance: object) -> tuple[str, str, float]:
    """What stands for the texts and the guidance of a model without a prompt. Raises InputError for any."""
    for name, value in (("prompt", prompt), ("negative", negative or None), ("guidance", guidance)):
        if value is not None:
            raise InputError(f"{name} is {show(value)}: this engine takes no prompt; leave it out")
    return "", "", 1.0


def _class_labels(model: ModelSpec, value: object, pictures: int) -> tuple[int, ...]:
    """A label for each picture; none for a model without classes. Raises InputError."""
    if not model.num_classes:
        if value is not None:
            raise InputError(f"class_label is {show(value)}: this engine knows no classes; leave it out")
        return ()
    last = model.num_classes - 1
    if value is None:
        if model.picture_noise is not None:
            raise InputError("this model enlarges pictures: use upscale with a picture")
        raise InputError(f"class_label is missing: give the number of a class, from 0 to {last}")
    each = list(value) if isinstance(value, (list, tuple)) else [value] * pictures
    if len(each) != pictures:
        raise InputError(
            f"{len(each)} class labels for {pictures} pictures: give one for each, or one number"
        )
    return tuple(integer("class_label", label, 0, last) for label in each)


def _options(value: object) -> dict[str, Any]:
    """Options of a sampler: names with JSON values, so that a picture's metadata can repeat them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(
            f"sampler_options is {show(value)}: it must map names to values, such as {{'rho': 7}}"
        )
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"sampler_options is {show(value)}: {error}; use JSON values") from None
    return dict(value)


def request_values(request: Request) -> dict[str, Any]:
    """A checked call in JSON values, which `request_from` gives back."""
    return {**asdict(request), "guidance": _scale_or_dict(request.guidance)}


def request_from(values: dict[str, Any]) -> Request:
    """The call that `request_values` made JSON of."""
    parts = {
        **{name: tuple(values[name]) for name in ("prompts", "negatives", "class_labels")},
        "guidance": _guidance(values["guidance"]),
        "deep_cache": read_deep_cache(values["deep_cache"]),
        "text": TextOptions(**_tuples(values["text"])),
        "sizes": SizeConditioning(**_tuples(values["sizes"])),
    }
    return Request(**{**values, **parts})


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists, as JSON has them, as tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _scale_or_dict(guidance: float | Guidance) -> Any:
    """Guidance in JSON values."""
    return written(guidance) if isinstance(guidance, Guidance) else guidance


def _guidance(value: object) -> float | Guidance:
    """A scale, a Guidance, or one in JSON values."""
    guidance = read_guidance(value) if isinstance(value, dict) else value
    if not isinstance(guidance, Guidance):
        guidance = number("guidance", guidance)
    scale = guidance.scale if isinstance(guidance, Guidance) else guidance
    if scale < 0.0:
        raise InputError(f"guidance is {scale:g}: it must be 0 or more; 1 switches it off")
    return guidance


def _side(name: str, value: object, default: int, model: ModelSpec) -> int:
    if value is None:
        return default
    side, multiple = integer(name, value, 1, _LARGEST_SIDE), model.size_multiple
    if side % multiple:
        below, above = side // multiple * multiple, -(-side // multiple) * multiple
        nearest = f"{below} or {above}" if below else f"{above}"
        raise InputError(f"{name} is {side}: it must be a multiple of {multiple}; use {nearest}")
    return side
