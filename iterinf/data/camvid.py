"""The CamVid data set, read from the published folder or a copy of it."""

from pathlib import Path

from iterinf.data.camvid_frames import CLASSES, COLORS, find_clip, open_folder
from iterinf.data.dataset import Dataset
from iterinf.errors import UserError


def load_camvid(
    path: str,
    *,
    scale: int = 1,
    source: str = "folder",
    data_dir: str = "",
    holdout_clip: str = "",
) -> Dataset:
    """Opens CamVid; frames are read and checked lazily.

    Args:
      path: The published folder (train/, trainannot/, train.txt, val/, ...).
      scale: The integer factor by which frames are downsampled.
      source: "folder" reads the files in `path`; "tfds" copies them once to a
        tensorflow-datasets folder and reads the copy. The records are the same.
      data_dir: The tensorflow-datasets folder; "" is the library's default.
      holdout_clip: A training clip, e.g. "0006R0", that replaces the test split, which
        is not opened. Generalisation to an unseen clip can thus be tuned without
        looking at the test frames.

    Raises:
      UserError: If files are missing or an option is invalid.
    """
    if source == "folder":
        open_split = open_folder(Path(path), scale)
    elif source == "tfds":
        # Imported here: the library takes half a second, and few runs need it.
        from iterinf.data.builders import open_camvid

        open_split = open_camvid(path, data_dir, scale)
    else:
        raise UserError(f"source of camvid is {source!r}, expected 'folder' or 'tfds'")
    train, validation = open_split("train"), open_split("validation")
    if holdout_clip:
        clips = [find_clip(name) for name in train.names]
        if holdout_clip not in clips:
            known = ", ".join(sorted(set(clips)))
            raise UserError(
                f"holdout_clip is {holdout_clip!r}, expected one of {known}"
            )
        test = train.subset([i for i, c in enumerate(clips) if c == holdout_clip])
        train = train.subset([i for i, c in enumerate(clips) if c != holdout_clip])
    else:
        test = open_split("test")
    return Dataset("camvid", CLASSES, COLORS, train, validation, test)
