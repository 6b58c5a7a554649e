"""y and h of whole training frames and of their mirror images, computed once.

    segmenter/frames/NAME.npy    float16 [2n h w c], NAME of `iterinf.data.external`:
                                 row 2i of frame i, row 2i + 1 of its mirror image

A refiner whose training has the `inputs` "frames" is trained on crops of them. All
refiners of a workdir share the files, and compute those that are not there; a trained
one needs none.
float16 moves y by 2^-12 at most, and by 2^-11 of itself down to 6e-5; refiners take its
logarithm from 1e-4 on.
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
from iterinf.runtime.devices import divide, gather, use_all_devices
from iterinf.runtime.files import has_file, write_in_parts
from iterinf.training.objectives import Variables, propose, to_unit_range
from iterinf.types import Batch


def list_outputs(refiner: nn.Module) -> list[str]:
    """What a refiner is given of a segmenter: y, and h but for the image."""
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
    """Gives every record its outputs, and a mirrored record with outputs of its own.

    Args:
      split: whole frames of one size.
      folder: of the files; those that are not there are computed and written.
      names: of the outputs, keys of `iterinf.data.external.STRIDES`.
      segmenter: runs as it does at test.
      variables: of the segmenter.
      show_progress: whether there is a bar while files are written.

    Raises:
      UserError: if frames differ in size, an output is beyond float16, or a file can be
        neither written nor read.
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
    """Yields what comes next in the files: a frame and its mirror image at a time."""

    @jax.jit
    def compute(variables: Variables, batch: Batch) -> dict[str, Array]:
        candidate = propose(segmenter, variables, to_unit_range(batch))
        found = {"probabilities": candidate.y} | candidate.features
        return gather({name: found[name].astype(jnp.float16) for name in paths})

    for i, record in enumerate(split):
        check_size(record, split[0])
        pair = divide(stack_records([record, mirror(record)]))
        with use_all_devices():
            outputs = jax.device_get(compute(variables, pair))
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                raise UserError(f"{name} of {record.name} is beyond float16")
        if i == 0:
            shapes = {n: (2 * len(split), *a.shape[1:]) for n, a in outputs.items()}
            yield {paths[name]: _make_header(shapes[name]) for name in paths}
        yield {paths[name]: outputs[name].tobytes() for name in paths}
        bar.update()


def _make_header(shape: tuple[int, ...]) -> bytes:
    """The start of an .npy file of float16."""
    header, content = io.BytesIO(), {"descr": "<f2", "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, content | {"shape": shape})
    return header.getvalue()


def _map(path: Path) -> Float16[np.ndarray, "n h w c"]:
    """A file, which memory holds as far as it is read."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it") from error
