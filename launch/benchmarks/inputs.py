"""The input pipeline beside a PyTorch DataLoader of the same records and changes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
from torch.utils import data as torch_data

from iterinf.data import Split, create_dataset
from iterinf.data.augment import crop_randomly, flip_randomly
from iterinf.data.loader import make_train_batches
from launch.benchmarks.measure import Case
from launch.benchmarks.torch_networks import choose_device

_BATCH, _CROP, _NUM_BATCHES = 10, (112, 112), 100


class _Records(torch_data.Dataset[Any]):
    """The split's records as PyTorch loads them: a crop, mirrored or not."""

    def __init__(self, split: Split):
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(torch.randint(2**31, ()).item())
        record = flip_randomly(crop_randomly(self._split[index], rng, _CROP), rng, 0.5)
        image = torch.from_numpy(record.image.astype(np.float32) / 255)
        return image, torch.from_numpy(record.label.astype(np.int64))


def list_loader() -> Iterator[Case]:
    """Batches of crops from generated scenes in memory, one thread or process."""
    split = create_dataset(
        "streets", height=180, width=240, num_train=50, num_validation=1, num_test=1
    ).train
    split.stack()  # draws the scenes
    batches = make_train_batches(
        split,
        batch_size=_BATCH,
        crop_size=_CROP,
        flip_probability=0.5,
        seed=0,
        num_threads=1,
    )

    def read() -> None:
        for _ in range(_NUM_BATCHES):
            jax.block_until_ready(jax.device_put(next(batches)))

    peers = {}
    for num_workers in (0, 1):
        loader = torch_data.DataLoader(
            _Records(split),
            batch_size=_BATCH,
            sampler=torch_data.RandomSampler(
                range(len(split)), replacement=True, num_samples=_BATCH * _NUM_BATCHES
            ),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        peers[f"{num_workers} workers"] = lambda loader=loader: [
            batch[0].to(choose_device()).sum().item() for batch in loader
        ]
    with contextlib.closing(batches):
        sizes = f"{_NUM_BATCHES} batches of {_BATCH} crops of {_CROP[0]}x{_CROP[1]}"
        yield Case("loader", sizes, read, (), peers)
