"""What would have to be compiled: a launch as a job that another process can do.

Triton compiles a kernel when it is first launched, one after the other. Within :func:`planning` a launch
runs nothing: it leaves a :class:`Job` with all that decides its binary, as Triton's own launcher sees it. A
job done elsewhere (pool.py) fills the place in Triton's cache on disk where the launch looks first.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

import triton
from triton._C.libtriton import get_cache_invalidating_env_vars
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.cache import get_cache_key, get_cache_manager
from triton.runtime.jit import create_function_from_signature

__all__ = ["Job", "active", "cache_hash", "compile_job", "is_compiled", "job_of", "planning", "record"]


@dataclass(frozen=True)
class Job:
    """One specialisation of a kernel for one GPU, as plain values.

    module, name  where the ``triton.jit`` function is found
    arch          compute capability, 90 for 9.0
    signature     Triton's type of every argument by name, "constexpr" for what is taken for a constant: the
                  constexprs, None, and 1 where the kernel specialises on it
    constants     those values by the argument's place
    attributes    what else is known of an argument by its place: ``[["tt.divisibility", 16]]`` or nothing
    options       warps, stages and Triton's debugging switches
    """

    module: str
    name: str
    arch: int
    signature: Mapping[str, str]
    constants: tuple[tuple[int, Any], ...]
    attributes: tuple[tuple[int, Any], ...]
    options: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """The same for equal jobs."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain values. Raises TypeError, through json, for a constant that is none."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> Job:
        """The inverse of ``to_json``."""
        pairs = {name: tuple((place, value) for place, value in document[name]) for name in _PAIRS}
        return Job(**{**document, **pairs})

    def source(self) -> Any:
        """What Triton's compiler takes. Raises ImportError or AttributeError where there is none."""
        kernel = getattr(importlib.import_module(self.module), self.name)
        constants, attributes = (
            {(place,): value for place, value in pairs} for pairs in (self.constants, self.attributes)
        )
        return ASTSource(kernel, dict(self.signature), constants, attributes)

    def target(self) -> GPUTarget:
        """The GPU as Triton describes it."""
        return GPUTarget("cuda", self.arch, 32)


_PAIRS = ("constants", "attributes")
_planned: dict[str, Job] | None = None


@contextmanager
def planning() -> Iterator[dict[str, Job]]:
    """Within the block launches run nothing and add their jobs to the result, by key.

    What a kernel would have written stays as it was: garbage, of the right shape.
    """
    global _planned
    before, _planned = _planned, {}
    try:
        yield _planned
    finally:
        _planned = before


def active() -> bool:
    """Whether launches are only planned."""
    return _planned is not None


def record(kernel: Any, arch: int, arguments: Sequence[Any], constants: Mapping[str, Any]) -> None:
    """Keep the job of a launch, if somebody plans."""
    if _planned is not None:
        job = job_of(kernel, arch, arguments, constants)
        _planned.setdefault(job.key, job)


def job_of(kernel: Any, arch: int, arguments: Sequence[Any], constants: Mapping[str, Any]) -> Job:
    """The job of ``kernel[grid](*arguments, **constants)`` on a GPU of that compute capability.

    Triton's own code looks at the arguments, as in ``JITFunction.run``, so that nothing is decided twice.
    """
    backend, bind = _binder(kernel, arch)
    keywords = {
        **constants,
        "debug": kernel.debug or triton.knobs.runtime.debug,
        "instrumentation_mode": triton.knobs.compilation.instrumentation_mode,
    }
    bound, specialisation, rest = bind(*arguments, **keywords)
    # a copy: with some switches the backend changes what it is given
    options, signature, constexprs, attributes = kernel._pack_args(
        backend, dict(keywords), bound, specialisation, rest
    )
    return Job(
        kernel.fn.__module__,
        kernel.fn.__name__,
        arch,
        signature,
        tuple((place, value) for (place,), value in constexprs.items()),
        tuple((place, value) for (place,), value in attributes.items()),
        {name: value for name, value in keywords.items() if name in options.__dict__},
    )


@cache
def _binder(kernel: Any, arch: int) -> tuple[Any, Any]:
    """What JITFunction.create_binder makes, for a GPU that need not be there."""
    backend = make_backend(GPUTarget("cuda", arch, 32))
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


def compile_job(job: Job) -> Any:
    """Triton's CompiledKernel, from its cache if it is there. Raises what the compiler raises."""
    return triton.compile(job.source(), target=job.target(), options=dict(job.options))


def cache_hash(source: Any, target: GPUTarget, options: Mapping[str, Any]) -> str:
    """The name of the folder where Triton's cache has or will have what ``triton.compile`` gives."""
    backend = make_backend(target)
    parsed = backend.parse_options(dict(options))
    key = get_cache_key(source, backend, parsed, env_vars=get_cache_invalidating_env_vars())
    return hashlib.sha256(key.encode()).hexdigest()


def is_compiled(job: Job) -> bool:
    """Whether Triton's cache has it."""
    source = job.source()
    name = f"{source.name[:150]}.json"
    group = get_cache_manager(cache_hash(source, job.target(), job.options)).get_group(name)
    return bool(group) and name in group
