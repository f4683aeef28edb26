"""The process of one device: ``python -m fastdiff.workers FD``, requests on standard input, replies to FD.

The first request opens the engine, each further one makes pictures. What libraries print goes to standard
output and error, which the parent keeps for the case that the process dies.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from queue import SimpleQueue
from typing import Any

import numpy as np

from fastdiff.engine_dir import open_engine
from fastdiff.errors import FastdiffError, FastdiffWarning, InputError
from fastdiff.pipeline import Pipeline
from fastdiff.request import request_from
from fastdiff.samplers import BatchRows, Generator, NoiseSource
from fastdiff.workers.lifetime import die_with_parent
from fastdiff.workers.wire import Message, receive, send


def open_pipeline(path: str, threads: int | None, device: Any) -> Pipeline:
    """The engine on this process's device. Its files were hashed by the parent."""
    return Pipeline(open_engine(path, verify_hashes=False, device=device), threads, device)


def generate(pipe: Pipeline, body: dict[str, Any], latents: Any) -> Message:
    """The pictures of one job: some rows of a call, with their rows of its noise.

    ``body`` has the ``loras`` that shall have an effect, the ``embeddings`` of textual inversion that shall
    be loaded as file, word and hash, the ``request`` and, for a stochastic sampler, ``noise``: the ``batch``
    of the whole call, the first row (``begin``), and whether the call's latents were ``drawn`` before its
    steps' noise.
    """
    pipe.match_loras(body["loras"])
    if body["request"] is None:  # to see whether the LoRAs can be had
        return {"warnings": []}, {}
    request = request_from(body["request"])
    _load_embeddings(pipe, body["embeddings"])
    noise: NoiseSource | None = None
    if body["noise"] is not None:
        batch, begin = body["noise"]["batch"], body["noise"]["begin"]
        generator = Generator(request.seed)
        if body["noise"]["drawn"]:
            generator.randn((batch, *latents.shape[1:]))
        noise = generator if len(latents) == batch else BatchRows(generator, batch, begin)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FastdiffWarning)
        result = pipe.run(request, latents, noise)
    timings = result.timings
    reply = {
        "timings": {"text_encoder": timings.text_encoder, "steps": timings.steps, "vae": timings.vae},
        "warnings": [str(warning.message) for warning in caught],
    }
    pixels = np.stack([np.asarray(image) for image in result.images])
    return reply, {"latents": result.latents, "pixels": pixels}


def _load_embeddings(pipe: Pipeline, wanted: list[list[str]]) -> None:
    """Load what is wanted in its order, and nothing else. Raises InputError for a file that has changed."""

    def loaded() -> list[list[str]]:
        return [[str(each.path), each.token, each.digest] for each in pipe.prompts.inversions]

    if loaded() != wanted:
        pipe.unload_textual_inversion()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FastdiffWarning)  # the parent has warned
            for path, token, _ in wanted:
                pipe.load_textual_inversion(path, token)
    for (path, _, digest), (_, _, expected) in zip(loaded(), wanted, strict=True):
        if digest != expected:
            raise InputError(f"embedding {path} was changed since it was loaded: load it again")


def _failure(error: Exception) -> dict[str, str]:
    """What the parent raises again. Running out of memory has a class of its own in every library."""
    if isinstance(error, FastdiffError):
        kind, text = type(error).__name__, str(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        kind, text = "MemoryError", ""
    else:
        kind, text = "", f"{type(error).__name__}: {error}"
    return {"kind": kind, "error": " ".join(text.split())[:500]}


def _read(requests: SimpleQueue[Message]) -> None:
    """Runs beside the work: the process ends at once when its parent has, whatever it is doing."""
    while (message := receive(sys.stdin.buffer)) is not None:
        requests.put(message)
    os._exit(0)


def main() -> None:
    """Answer until standard input ends."""
    die_with_parent()
    requests: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    pipe: Pipeline | None = None
    with os.fdopen(int(sys.argv[1]), "wb") as replies:
        while True:
            body, arrays = requests.get()
            try:
                if pipe is None:
                    pipe = open_pipeline(**body)
                    reply: Message = ({"engine_hash": pipe.engine.engine_hash}, {})
                else:
                    reply = generate(pipe, body, arrays.get("latents"))
            except Exception as error:  # noqa: BLE001 (told to the parent, which stops everything)
                reply = (_failure(error), {})
            send(replies, *reply)


if __name__ == "__main__":
    main()
