from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

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
def resample(
    x: FloatArray,
    factor: int,
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
    out: FloatArray,
    guided: FloatArray,
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

class Randn:
    def __init__(self, seed: int, box_muller: str | None = None) -> None: ...
    def fill(self, out: FloatArray) -> None: ...
