"""Sizes of the benchmarks: small on a CPU, those of the paper on a GPU."""

from typing import NamedTuple

import jax


class Size(NamedTuple):
    """Of a DAE and of what it reads."""

    widths: tuple[int, ...]
    channels: int  # of h, which is pool4
    batch: int
    height: int
    width: int

    def describe(self) -> str:
        """In words."""
        maps = f"{self.batch}x{self.height}x{self.width}x11"
        return f"width {self.widths[0]}, {maps}"


class Work(NamedTuple):
    """Sizes of the cases, and what they are computed in."""

    dtype: str  # of the computation; parameters that are trained are float32
    daes: tuple[Size, ...]
    sweeps: tuple[Size, ...]
    sweep_batch: int  # images at a time
    densenet_images: tuple[int, int, int]
    pooled_map: tuple[int, int, int, int]


_NARROW, _FULL = (16, 32, 64, 128, 256), (64, 128, 256, 512, 1024, 2048)
_ON_CPU = Work(
    "float32",
    (Size(_NARROW, 128, 10, 112, 112), Size(_FULL, 512, 2, 224, 224)),
    (Size(_NARROW, 128, 4, 176, 176), Size(_FULL, 512, 1, 224, 224)),
    sweep_batch=1,
    densenet_images=(3, 224, 224),
    pooled_map=(1, 224, 224, 64),
)
# All images of the sweep at a time are what `choose_batch_size` takes, but it compiles
# two more programs to find that out.
_ON_GPU = Work(
    "bfloat16",
    (Size(_FULL, 512, 10, 224, 224),),
    (Size(_FULL, 512, 8, 360, 480),),
    sweep_batch=8,
    densenet_images=(3, 224, 224),
    pooled_map=(10, 224, 224, 64),
)


def choose_work() -> Work:
    """Returns the sizes for the device that JAX computes on."""
    return _ON_CPU if jax.default_backend() == "cpu" else _ON_GPU
