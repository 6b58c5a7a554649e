"""Makes max_unpool.npz beside this file: max pooling and unpooling by PyTorch.

    pip install torch==2.13.0 numpy && python tests/data/make_max_unpool.py

Small integers, so that many windows hold equal maxima. Arrays are b h w c; PyTorch's
are b c h w.
"""

import pathlib

import numpy as np
import torch

SHAPES = {"even": (2, 6, 8, 3), "odd": (2, 7, 9, 3), "mixed": (1, 5, 4, 2)}


def make_case(generator: np.random.Generator, shape: tuple[int, ...]) -> dict:
    """The input, its maxima, new values for their places, and these unpooled."""
    x = generator.integers(-2, 3, shape).astype(np.float32)
    pooled, indices = torch.nn.functional.max_pool2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), 2, return_indices=True
    )
    values = generator.normal(size=tuple(pooled.shape)).astype(np.float32)
    unpooled = torch.nn.functional.max_unpool2d(
        torch.from_numpy(values), indices, 2, output_size=shape[1:3]
    )
    maps = {"pooled": pooled.numpy(), "values": values, "unpooled": unpooled.numpy()}
    return {"x": x} | {name: a.transpose(0, 2, 3, 1) for name, a in maps.items()}


def main() -> None:
    """Writes the file."""
    generator = np.random.default_rng(0)
    arrays = {
        f"{case}_{name}": array
        for case, shape in SHAPES.items()
        for name, array in make_case(generator, shape).items()
    }
    np.savez_compressed(pathlib.Path(__file__).parent / "max_unpool.npz", **arrays)


if __name__ == "__main__":
    main()
