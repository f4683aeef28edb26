from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]
Sizes = tuple[int, int, int, int]
Sides = tuple[int, int]

version: str

def isa() -> str: ...
def available_isas() -> list[str]: ...
def attention(
    query: FloatArray,
    key: FloatArray,
    value: FloatArray,
    num_heads: int,
    scale: float,
    causal: bool,
    out: FloatArray | None,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def conv2d(
    x: FloatArray,
    packed: ByteArray,
    weight_shape: Sizes,
    bias: FloatArray | None,
    vector: FloatArray | None,
    residual: FloatArray | None,
    stride: int,
    padding: Sizes,
    upsample: int,
    crop: Sides,
    activation: str,
    scale: float,
    algorithm: str,
    precision: str,
    out: FloatArray,
    threads: int = 1,
    isa: str | None = None,
    affine: FloatArray | None = None,
    affine_silu: bool = False,
    sums: bool = False,
) -> npt.NDArray[np.float64] | None: ...
def conv2d_pack(weight: FloatArray, algorithm: str, precision: str = "fp32") -> ByteArray: ...
def conv2d_packed_bytes(weight_shape: Sizes, algorithm: str, precision: str = "fp32") -> int: ...
def elementwise(
    function: str,
    a: FloatArray,
    b: FloatArray | None,
    scalar: float,
    low: float,
    high: float,
    out: FloatArray,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def embedding(
    ids: npt.NDArray[np.int64],
    table: npt.NDArray[np.float32] | npt.NDArray[np.float16],
    out: FloatArray | None,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def group_norm_silu(
    x: FloatArray,
    weight: FloatArray | None,
    bias: FloatArray | None,
    num_groups: int,
    eps: float,
    silu: bool,
    layout: str,
    out: FloatArray,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def layer_norm(
    x: FloatArray,
    weight: FloatArray | None,
    bias: FloatArray | None,
    eps: float,
    out: FloatArray,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def linear(
    x: FloatArray,
    packed: ByteArray,
    bias: FloatArray | None,
    residual: FloatArray | None,
    activation: str,
    scale: float,
    precision: str,
    out: FloatArray,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def linear_pack(weight: FloatArray, precision: str = "fp32") -> ByteArray: ...
def linear_packed_bytes(inputs: int, outputs: int, precision: str = "fp32") -> int: ...
def measure_conv2d(
    x_shape: Sizes,
    weight_shape: Sizes,
    stride: int,
    padding: Sizes,
    upsample: int,
    algorithm: str,
    precision: str,
    threads: int,
    budget: float,
    isa: str | None = None,
) -> float: ...
def measure_linear(
    rows: int,
    inputs: int,
    outputs: int,
    activation: str,
    precision: str,
    threads: int,
    budget: float,
    isa: str | None = None,
) -> float: ...
def resample(
    x: FloatArray,
    factor: int,
    crop: Sides,
    pool: bool,
    out: FloatArray | None,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def scheduler_step(
    sample: FloatArray,
    cond: FloatArray,
    uncond: FloatArray | None,
    guidance: float,
    sample_coef: float,
    output_coef: float,
    history: Sequence[FloatArray],
    history_coefs: Sequence[float],
    noise: FloatArray | None,
    noise_coef: float,
    estimate_sample: float,
    estimate_output: float,
    estimate_limit: float,
    estimate_coef: float,
    next_scale: float,
    out: FloatArray,
    estimate: FloatArray | None,
    next: FloatArray | None,
    next_again: FloatArray | None,
    isa: str | None = None,
) -> None: ...
def timestep_embedding(
    timesteps: FloatArray,
    frequencies: FloatArray,
    sine_first: bool,
    out: FloatArray,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def token_match(
    x: FloatArray,
    merged: int,
    plan: npt.NDArray[np.int64] | None,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def token_merge(
    x: FloatArray,
    plan: npt.NDArray[np.int64],
    out: FloatArray | None,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...
def token_unmerge(
    x: FloatArray,
    plan: npt.NDArray[np.int64],
    out: FloatArray | None,
    threads: int = 1,
    isa: str | None = None,
) -> None: ...

class NativeModule:
    def __init__(self, path: str) -> None: ...
    @property
    def inputs(self) -> list[tuple[str, str, tuple[int | str, ...]]]: ...
    @property
    def outputs(self) -> list[tuple[str, str, tuple[int | str, ...]]]: ...
    @property
    def symbols(self) -> dict[str, tuple[int, int | None, int]]: ...
    @property
    def nodes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...

class NativeSession:
    def __init__(self, module: NativeModule, threads: int) -> None: ...
    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]: ...
    def profile(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[float]: ...
    def run_stage(
        self,
        stage: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        sizes: Mapping[str, int],
        rows: int,
        row: int = 0,
    ) -> dict[str, npt.NDArray[Any]]: ...
    def sample(
        self,
        table: Any,
        latents: FloatArray,
        inputs: Mapping[str, npt.NDArray[Any]],
        guidance: float = 1.0,
        noise: Randn | None = None,
        callback: Callable[[int, int, FloatArray], object] | None = None,
    ) -> FloatArray: ...
    def plan(self, sizes: Mapping[str, int], rows: int = 0) -> str: ...
    def planned_bytes(self, sizes: Mapping[str, int], rows: int = 0) -> int: ...
    def set_adapters(
        self, updates: Mapping[int, Sequence[tuple[int, FloatArray, FloatArray, float]]]
    ) -> None: ...
    @property
    def adapter_bytes(self) -> int: ...
    @property
    def arena_bytes(self) -> int: ...
    threads: int

class Randn:
    def __init__(self, seed: int, box_muller: str | None = None) -> None: ...
    def fill(self, out: FloatArray) -> None: ...

def philox_normal(seed: int, offset: int, threads: int, out: FloatArray) -> None: ...
