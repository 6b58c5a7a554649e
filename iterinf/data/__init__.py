"""Data sets by name."""

import inspect
from collections.abc import Callable

from iterinf.data.camvid import load_camvid
from iterinf.data.dataset import Dataset, Record, Split, describe_dataset
from iterinf.data.folder import load_folder
from iterinf.data.streets.scene import load_streets
from iterinf.data.summary import check_dataset
from iterinf.errors import UserError, check_known

__all__ = [
    "DATASETS",
    "Dataset",
    "Record",
    "Split",
    "check_dataset",
    "create_dataset",
    "describe_dataset",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "camvid": load_camvid,
    "folder": load_folder,
    "streets": load_streets,
}


def create_dataset(name: str, **options: object) -> Dataset:
    """Opens a data set by name.

    Args:
      name: A key of DATASETS.
      **options: The arguments of its loader.

    Raises:
      UserError: If the name or an option is unknown, an option is missing, or the
        data are invalid.
    """
    check_known("data set", name, DATASETS)
    signature = inspect.signature(DATASETS[name])
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        raise UserError(f"data set {name}: {error}; its options are {known}") from error
    return DATASETS[name](**options)
