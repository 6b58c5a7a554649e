"""Data sets as a folder of images and label maps, and data sets by name."""

import json

import numpy as np
import pytest
from PIL import Image

from iterinf.data import check_dataset, create_dataset
from iterinf.data.dataset import Split
from iterinf.data.folder import load_folder
from iterinf.data.image_io import encode_png
from iterinf.errors import UserError

LEGEND = {
    "classes": [
        {"name": "ground", "color": [1, 2, 3]},
        {"name": "sky", "color": [4, 5, 6]},
    ],
    "void_id": 255,
    "void_color": [7, 8, 9],
}


def write_label(root, label, split="train", name="a"):
    """Replaces a label map."""
    path = root / split / "labels" / f"{name}.png"
    path.write_bytes(encode_png(np.asarray(label, np.uint8)))


@pytest.fixture
def folder(tmp_path):
    """Two images of 4 x 6 in each split."""
    root = tmp_path / "meadow"
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for name in "ab":
            image = rng.integers(256, size=(4, 6, 3)).astype(np.uint8)
            path = root / split / "images" / f"{name}.png"
            path.write_bytes(encode_png(image))
            write_label(root, rng.choice([0, 1, 255], (4, 6)), split, name)
    (root / "classes.json").write_text(json.dumps(LEGEND))
    return root


def test_mixed_sizes_are_for_training_alone(folder):
    for split in ("train", "test"):
        image = np.zeros((8, 6, 3), np.uint8)
        (folder / split / "images" / "b.png").write_bytes(encode_png(image))
        write_label(folder, np.zeros((8, 6)), split, "b")
    with pytest.raises(UserError, match="1 record of meadow .* a is 4x6 but b is 8x6"):
        check_dataset(load_folder(str(folder)))


def test_reads_the_layout(folder):
    dataset = load_folder(str(folder))
    assert dataset.name == "meadow"
    assert dataset.classes == ("ground", "sky")
    assert dataset.colors.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert dataset.train.names == ("a", "b")
    assert dataset.train.blocks == (0, 1)
    record = dataset.validation[1]
    image = np.array(Image.open(folder / "validation" / "images" / "b.png"))
    ids = np.array(Image.open(folder / "validation" / "labels" / "b.png"))
    np.testing.assert_array_equal(record.image, image)
    np.testing.assert_array_equal(record.label, np.where(ids == 255, 2, ids))
    check_dataset(dataset)


def test_gray_and_jpeg_images_become_rgb(folder):
    (folder / "train" / "images" / "a.png").unlink()
    gray = np.full((4, 6), 100, np.uint8)
    Image.fromarray(gray).save(folder / "train" / "images" / "a.jpg")
    image = load_folder(str(folder)).train[0].image
    np.testing.assert_array_equal(image, np.full((4, 6, 3), 100))


def test_palette_label_maps_are_indices(folder):
    ids = np.array([[0, 1, 255, 1, 0, 0]] * 4, np.uint8)
    image = Image.fromarray(ids)
    image.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    image.save(folder / "train" / "labels" / "a.png")
    label = load_folder(str(folder)).train[0].label
    np.testing.assert_array_equal(label, np.where(ids == 255, 2, ids))


def test_16_bit_label_maps_and_any_void_id(folder):
    (folder / "classes.json").write_text(json.dumps({**LEGEND, "void_id": 1000}))
    ids = np.array([[0, 1, 1000, 1, 0, 0]] * 4, np.uint16)
    Image.fromarray(ids).save(folder / "train" / "labels" / "a.png")
    label = load_folder(str(folder)).train[0].label
    np.testing.assert_array_equal(label, np.where(ids == 1000, 2, ids))


def test_classes_may_have_ids_of_their_own(folder):
    classes = [
        dict(entry, id=class_id)
        for entry, class_id in zip(LEGEND["classes"], (7, 300), strict=True)
    ]
    legend = {**LEGEND, "classes": classes, "void_id": 0}
    (folder / "classes.json").write_text(json.dumps(legend))
    ids = np.array([[0, 7, 300]], np.uint16)
    path = folder / "train" / "labels" / "a.png"
    Image.fromarray(ids.repeat(4, axis=0).repeat(2, axis=1)).save(path)
    label = load_folder(str(folder)).train[0].label
    np.testing.assert_array_equal(label, [[2, 2, 0, 0, 1, 1]] * 4)
    write_label(folder, np.ones((4, 6)))
    with pytest.raises(UserError, match=r"label 1, expected 7, 300 or 0"):
        load_folder(str(folder)).train[0]


def test_label_37_names_file_value_and_what_is_allowed(folder):
    write_label(folder, np.full((4, 6), 37))
    message = r"train/labels/a\.png has label 37, expected 0\.\.1 or 255"
    with pytest.raises(UserError, match=message):
        load_folder(str(folder)).train[0]


def test_image_and_label_of_different_size(folder):
    write_label(folder, np.zeros((4, 5)))
    with pytest.raises(UserError, match=r"a\.png is 4x6 but .*labels/a\.png is 4x5"):
        load_folder(str(folder)).train[0]


def test_16_bit_image(folder):
    path = folder / "train" / "images" / "a.png"
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(path)
    with pytest.raises(UserError, match=r"images/a\.png .*8 bits"):
        load_folder(str(folder)).train[0]


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"absent does not exist"):
        load_folder(str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("test/images", r"test/images does not exist"),
        ("test/*/*.png", r"test/images has no"),
        ("train/labels/b.png", r"images/b\.png .*train/labels/b\.png"),
        ("train/images/b.png", r"labels/b\.png .*train/images/b\.png"),
    ],
)
def test_missing_files(folder, removed, message):
    for path in list(folder.glob(removed)):
        path.rename(path.with_suffix(".removed"))
    with pytest.raises(UserError, match=message):
        load_folder(str(folder))


def test_two_images_of_one_name(folder):
    Image.new("RGB", (6, 4)).save(folder / "train" / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png"):
        load_folder(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "classes.json .*No such file"),
        ("{", "classes.json .*JSON"),
        ([], "keys classes, void_color, void_id"),
        ({"classes": []}, "'classes' .* 1 to 254"),
        ({"classes": LEGEND["classes"] * 128}, "'classes' .* 1 to 254"),
        ({"classes": [{"name": "x"}]}, "class 0 .* name and a color"),
        ({"classes": LEGEND["classes"] * 2}, "two classes .* name"),
        ({"classes": [LEGEND["classes"][0] | {"id": -1}]}, "id of ground in .* is -1"),
        (
            {"classes": [entry | {"id": 3} for entry in LEGEND["classes"]]},
            "two classes .* id",
        ),
        ({"void_id": 1}, r"'void_id' .* is 1, expected .*0\.\.1"),
        ({"void_id": "255"}, "'void_id' .* is '255'"),
        ({"void_color": [1, 2]}, r"color of void in .* is \[1, 2\]"),
        ({"void_color": [1, 2, 256]}, r"color of void in .* is \[1, 2, 256\]"),
        ({"colour": 1}, "keys classes, void_color, void_id"),
    ],
)
def test_wrong_class_info(folder, change, message):
    path = folder / "classes.json"
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        content = {**LEGEND, **change} if isinstance(change, dict) else change
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_folder(str(folder))


def test_stack_names_two_sizes(folder):
    write_label(folder, np.zeros((3, 6)), name="b")
    image = np.zeros((3, 6, 3), np.uint8)
    (folder / "train" / "images" / "b.png").write_bytes(encode_png(image))
    train = load_folder(str(folder)).train
    with pytest.raises(UserError, match="a is 4x6 but b is 3x6"):
        train.stack()
    assert train.stack([1, 1]).image.shape == (2, 3, 6, 3)


def test_stack_of_nothing(folder):
    with pytest.raises(UserError, match="no records"):
        load_folder(str(folder)).train.stack([])


@pytest.mark.parametrize("scale", [0, -1, True])
def test_wrong_scale(folder, scale):
    with pytest.raises(UserError, match=f"scale is {scale!r}"):
        load_folder(str(folder), scale=scale)


def test_scale_that_leaves_nothing(folder):
    with pytest.raises(UserError, match="a is 4x6.* scale 5"):
        load_folder(str(folder), scale=5).train[0]


def test_split_decodes_lazily_and_once(folder):
    original, calls = load_folder(str(folder)).train, []

    def read(index):
        calls.append(index)
        return original[index]

    for cache, expected in ((True, [1]), (False, [1, 1, 1])):
        split = Split(read, original.names, original.blocks, cache=cache)
        assert calls == []
        part = split.subset([1])
        np.testing.assert_array_equal(part[0].image, split[1].image)
        np.testing.assert_array_equal(split[-1].label, part[-1].label)
        assert calls[: len(expected)] == expected
        assert part.names == ("b",)
        assert part.blocks == (1,)
        calls.clear()
    with pytest.raises(IndexError):
        original[2]
    with pytest.raises(ValueError, match="read-only"):
        original[0].image[0] = 0


def test_create_dataset_names_what_is_wrong(folder):
    assert create_dataset("folder", path=str(folder), scale=2).train[0].label.shape == (
        2,
        3,
    )
    with pytest.raises(UserError, match="'kitti'.* camvid, folder, streets"):
        create_dataset("kitti")
    message = "folder: .*'scael'.* path, scale, cache"
    with pytest.raises(UserError, match=message):
        create_dataset("folder", path=str(folder), scael=2)
    with pytest.raises(UserError, match="folder: .*'path'"):
        create_dataset("folder")
