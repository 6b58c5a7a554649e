"""Precomputed y and h of whole training frames and their mirror images.

    segmenter/frames/NAME.npy    float16 [2n h w c], NAME of `iterinf.data.external`:
                                 row 2i is frame i, row 2i + 1 its mirror image

Refiners with `inputs` "frames" are trained on crops of these arrays. All refiners of a
workdir share the files, and compute missing ones; trained refiners need none.
The error of y in float16 is at most 2^-12, and at most 2^-11 relative to y down to
6e-5; refiners clip y to 1e-4 before the logarithm.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float16
from tqdm import tqdm

from iterinf.data.augment import mirror
from iterinf.data.dataset import Record, Split, check_size, stack_records
from iterinf.errors import UserError
from iterinf.runtime.bars import create_bar
from iterinf.runtime.devices import replicate_outputs, shard, use_all_devices
from iterinf.runtime.files import has_file, write_in_parts
from iterinf.training.objectives import Variables, propose, to_unit_range
from iterinf.types import Batch


def list_outputs(refiner: nn.Module) -> list[str]:
    """Returns the names of the segmenter outputs that a refiner reads, y first."""
    features = getattr(refiner, "features", ())
    return ["probabilities", *(name for name in features if name != "input")]


def add_frames(
    split: Split,
    folder: Path,
    names: Sequence[str],
    segmenter: nn.Module,
    variables: Variables,
    *,
    show_progress: bool = False,
) -> Split:
    """Adds outputs to every record, and a mirrored record with its own outputs.

    Args:
      split: The frames, all of one size.
      folder: The folder of the files; missing ones are computed and written.
      names: The names of the outputs, from `list_outputs`.
      segmenter: The segmenter, run in inference mode.
      variables: The variables of the segmenter.
      show_progress: Whether to show a progress bar while files are written.

    Raises:
      UserError: If frames differ in size, an output exceeds the range of float16, or a
        file cannot be written or read.
    """
    paths = {name: folder / f"{name}.npy" for name in names}
    absent = {name: path for name, path in paths.items() if not has_file(path)}
    if absent:
        with create_bar(
            "y and h of training frames", len(split), "frame", show=show_progress
        ) as bar:
            parts = _compute_parts(split, absent, segmenter, variables, bar)
            write_in_parts(absent.values(), parts)
    arrays = {name: _map(path) for name, path in paths.items()}

    def read(index: int) -> Record:
        own, other = (
            {name: array[2 * index + i] for name, array in arrays.items()}
            for i in range(2)
        )
        record = split[index]
        mirrored = mirror(record)._replace(outputs=other)
        return record._replace(outputs=own, mirrored=mirrored)

    return Split(read, split.names, split.blocks, cache=False)


def _compute_parts(
    split: Split,
    paths: Mapping[str, Path],
    segmenter: nn.Module,
    variables: Variables,
    bar: tqdm,
) -> Iterator[dict[Path, bytes]]:
    """Yields the outputs of one frame and its mirror image after another."""

    @jax.jit
    def compute(variables: Variables, batch: Batch) -> dict[str, Array]:
        candidate = propose(segmenter, variables, to_unit_range(batch))
        found = {"probabilities": candidate.y} | candidate.features
        return replicate_outputs(
            {name: found[name].astype(jnp.float16) for name in paths}
        )

    for i, record in enumerate(split):
        check_size(record, split[0])
        pair = shard(stack_records([record, mirror(record)]))
        with use_all_devices():
            outputs = jax.device_get(compute(variables, pair))
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise UserError(f"{name} of {record.name} is not finite in float16")
        if i == 0:
            shapes = {n: (2 * len(split), *a.shape[1:]) for n, a in outputs.items()}
            yield {paths[name]: _make_header(shapes[name]) for name in paths}
        yield {paths[name]: outputs[name].tobytes() for name in paths}
        bar.update()


def _make_header(shape: tuple[int, ...]) -> bytes:
    """Creates the header of a float16 .npy file."""
    header, content = io.BytesIO(), {"descr": "<f2", "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, content | {"shape": shape})
    return header.getvalue()


def _map(path: Path) -> Float16[np.ndarray, "n h w c"]:
    """Maps a file into memory."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {error}; delete it") from error
