"""Reading images: every layout gives the same pictures, and what is wrong with a file is said with its name."""

import json
import shutil
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.images import make_labels, make_pixels, write_folder, write_idx
from ternarize_cli.data.images import is_images, read_images, read_labelled, read_parts
from ternarize_cli.errors import DataError


def as_arrays(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image)[..., 0] for image in images])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_give_pixels_and_labels(tmp_path: Path, suffix: str) -> None:
    pixels = make_pixels(7)
    images = read_labelled(write_idx(tmp_path, "some", pixels, make_labels(7), suffix))
    assert len(images) == 7
    assert images.labels == ["0", "1", "0", "1", "0", "1", "0"]
    assert images[0].mode == "RGB"
    assert images[0].size == (5, 6)
    np.testing.assert_array_equal(as_arrays(images), pixels)
    np.testing.assert_array_equal(as_arrays(images[-2:]), pixels[-2:])


def test_a_folder_of_idx_pairs_has_a_train_and_a_test_part(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", make_pixels(4, seed=1), make_labels(4), ".gz")
    write_idx(tmp_path, "train", make_pixels(6), make_labels(6), ".gz")
    parts = read_parts(tmp_path)
    assert {part: len(images) for part, images in parts.items()} == {"train": 6, "test": 4}
    assert list(parts["test"].ids) == ["test/0", "test/1", "test/2", "test/3"]
    np.testing.assert_array_equal(as_arrays(parts["test"]), make_pixels(4, seed=1))
    np.testing.assert_array_equal(as_arrays(read_images(tmp_path)), make_pixels(6))  # the test part stays unseen


def test_subfolders_are_labels_and_a_flat_folder_has_none(tmp_path: Path) -> None:
    pixels = make_pixels(6)
    labelled = read_labelled(write_folder(tmp_path / "labelled", pixels, make_labels(6)))
    assert labelled.labels == ["0", "0", "0", "1", "1", "1"]
    assert labelled.ids[0] == "0/000.png"
    np.testing.assert_array_equal(as_arrays(labelled), pixels[[0, 2, 4, 1, 3, 5]])
    flat = read_images(write_folder(tmp_path / "flat", pixels, None))
    assert flat.labels is None
    np.testing.assert_array_equal(as_arrays(flat), pixels)
    with pytest.raises(DataError, match="images without labels"):
        read_labelled(tmp_path / "flat")


def test_part_folders_hold_labels_or_images(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 4)):
        write_folder(tmp_path / "deep" / part, make_pixels(count), make_labels(count))
        write_folder(tmp_path / "flat" / part, make_pixels(count), None)
    deep, flat = read_parts(tmp_path / "deep"), read_parts(tmp_path / "flat")
    assert list(deep) == list(flat) == ["train", "validation"]
    assert deep["validation"].labels == ["0", "0", "1", "1"]
    assert deep["validation"].ids[0] == "val/0/000.png"
    assert flat["train"].labels is None
    with pytest.raises(DataError, match="has the parts train, validation"):
        read_labelled(tmp_path / "deep")
    with pytest.raises(DataError, match="has no test part"):
        read_labelled(tmp_path / "deep", "test")
    assert len(read_labelled(tmp_path / "deep", "train")) == 6


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("bus", "train"):
        write_folder(tmp_path / label, make_pixels(2), None)
    assert read_labelled(tmp_path).labels == ["bus", "bus", "train", "train"]


def test_a_single_image_is_a_source(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pixels(3), None)
    images = read_images(tmp_path / "001.png")
    assert list(images.ids) == ["001.png"]
    np.testing.assert_array_equal(as_arrays(images), make_pixels(3)[1:2])


@pytest.mark.parametrize("kind", ["struct", "binary", "path"])
def test_parquet_columns_give_images(tmp_path: Path, kind: str) -> None:
    pixels = make_pixels(7)
    write_folder(tmp_path / "pictures", pixels, None)
    names = [f"pictures/{i:03}.png" for i in range(7)]
    content = [(tmp_path / name).read_bytes() for name in names]
    column = {
        "struct": [{"bytes": b, "path": n} for b, n in zip(content, names, strict=True)],
        "binary": content,
        "path": [{"bytes": None, "path": n} for n in names],
    }[kind]
    types = {"binary": pa.binary()}
    image = pa.array(column, types.get(kind, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    table = pa.table({"id": list(range(7)), "image": image, "label": make_labels(7)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    images = read_labelled(tmp_path / "x.parquet")
    assert images.labels == ["0", "1", "0", "1", "0", "1", "0"]
    np.testing.assert_array_equal(as_arrays(images), pixels)
    np.testing.assert_array_equal(as_arrays([images[i] for i in (6, 0, 3)]), pixels[[6, 0, 3]])


def test_parquet_of_the_datasets_library_keeps_class_names_and_parts(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"img": ImageFeature(), "label": ClassLabel(names=["bright", "dark"])})
    pixels = make_pixels(5)
    rows = {"img": [Image.fromarray(p) for p in pixels], "label": make_labels(5)}
    (tmp_path / "data").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{name}.parquet")
    parts = read_parts(tmp_path)
    assert {part: len(images) for part, images in parts.items()} == {"train": 10, "test": 5}
    assert parts["test"].labels == ["bright", "dark", "bright", "dark", "bright"]
    np.testing.assert_array_equal(as_arrays(parts["train"]), np.concatenate([pixels, pixels]))


def test_a_limit_takes_the_first_and_a_seed_draws_the_same_of_each_label(tmp_path: Path) -> None:
    labels = [0] * 20 + [1] * 20 + [2] * 3
    write_idx(tmp_path, "train", make_pixels(43), labels)
    first = read_images(tmp_path, limit=4)
    assert list(first.ids) == ["train/0", "train/1", "train/2", "train/3"]
    drawn = [read_images(tmp_path, limit=15, seed=seed) for seed in (0, 0, 1)]
    assert list(drawn[0].ids) == list(drawn[1].ids) != list(drawn[2].ids)
    assert Counter(drawn[0].labels or ()) == {"0": 6, "1": 6, "2": 3}
    assert len(read_images(tmp_path, limit=99, seed=0)) == 43


def test_images_come_out_upright_and_in_8_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(make_pixels(1)[0]).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(np.array([[0, 0x1234], [0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "b.png")
    Image.new("RGBA", (2, 2), (9, 8, 7, 0)).save(tmp_path / "c.png")
    turned, deep, clear = read_images(tmp_path)
    assert turned.size == (6, 5)
    assert np.asarray(deep)[..., 1].tolist() == [[0, 0x12], [0x80, 0xFF]]
    assert clear.mode == "RGB"
    assert np.asarray(clear)[0, 0].tolist() == [9, 8, 7]


def test_text_is_told_from_images(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("cat")
    pq.write_table(pa.table({"text": ["cat"]}), tmp_path / "text" / "a.parquet")
    write_folder(tmp_path / "pictures", make_pixels(1), make_labels(1))
    write_idx(tmp_path / "idx", "train", make_pixels(1), None)
    for name in ("text", "text/a.txt", "text/a.parquet", "nothing", "idx/nothing-images-idx3-ubyte"):
        assert not is_images(tmp_path / name), name
    for name in ("pictures", "pictures/0", "pictures/0/000.png", "idx", "idx/train-images-idx3-ubyte"):
        assert is_images(tmp_path / name), name
    with pytest.raises(DataError, match="text holds no images"):
        read_images(tmp_path / "text")
    with pytest.raises(DataError, match=r"there is no file or folder .*nothing"):
        read_images(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with nothing, not 00 00 08 03"),
        (b"\x00\x00\x08\x01" + bytes(12), "starts with 00 00 08 01, not 00 00 08 03"),
        (b"\x00\x00\x08\x03" + bytes(5), "cut off within its header: 9 bytes"),
        (struct.pack(">IIII", 0x803, 2, 6, 5) + bytes(59), "says 2 × 6 × 5 = 60 bytes, 59 follow"),
        (struct.pack(">IIII", 0x803, 2, 6, 5) + bytes(61), "says 2 × 6 × 5 = 60 bytes, 61 follow"),
        (struct.pack(">IIII", 0x803, 0, 6, 5), "says 0 × 6 × 5 = 0 bytes"),
    ],
)
def test_a_damaged_idx_file_is_refused_with_its_numbers(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte.*{message}"):
        read_images(tmp_path)


def test_a_cut_off_gz_file_is_refused(tmp_path: Path) -> None:
    path = write_idx(tmp_path, "train", make_pixels(9), None, ".gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz can't be read"):
        read_images(path)


def test_labels_and_images_must_be_equally_many(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", make_pixels(9), make_labels(8))
    with pytest.raises(DataError, match=r"labels-idx1-ubyte has 8 labels, .*images-idx3-ubyte has 9 images"):
        read_images(tmp_path)


def test_an_image_that_does_not_decode_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pixels(3), None)
    (tmp_path / "001.png").write_bytes((tmp_path / "001.png").read_bytes()[:60])
    (tmp_path / "002.png").write_text("no image")
    images = read_images(tmp_path)
    assert images[0].size == (5, 6)
    with pytest.raises(DataError, match=r"001\.png can't be read"):
        images[1]
    with pytest.raises(DataError, match=r"002\.png can't be read: no image that Pillow knows"):
        images[2]


def test_damaged_parquet_rows_are_named(tmp_path: Path) -> None:
    image = pa.array([{"bytes": None, "path": None}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, row 0: there is no image in the column 'image'"):
        read_images(tmp_path)[0]
    label = pa.array([None], pa.int64())
    pq.write_table(pa.table({"image": image, "label": label}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, row 0: there is no label in the column 'label'"):
        read_images(tmp_path)
    (tmp_path / "x.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"x\.parquet can't be read as Parquet"):
        read_images(tmp_path)


def test_an_image_beside_the_label_folders_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, make_pixels(4), make_labels(4))
    Image.fromarray(make_pixels(1)[0]).save(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies beside the folders"):
        read_labelled(tmp_path)
    assert len(read_images(tmp_path)) == 5  # without labels, all of them


def test_images_in_folders_of_folders_are_found_at_any_depth(run, tiny_bert, tiny_vit, tmp_path: Path) -> None:
    root, image = tmp_path / "photos", Image.fromarray(make_pixels(1)[0])
    names = ["a.jpg", "2020/b.png", "2020/01/c.JPG", "2020/01/x/y/z/d.TIFF", "2021/.hidden/e.png", ".thumbs/f.png"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(root / name, format="PNG")
    result = run("encode", tiny_vit, root)
    assert result.exit_code == 0, result.output
    ids = [json.loads(line)["id"] for line in result.stdout.splitlines()]
    assert ids == ["2020/01/c.JPG", "2020/01/x/y/z/d.TIFF", "2020/b.png", "a.jpg"]
    (root / "a.jpg").unlink()
    (root / "2021" / "g.png").write_bytes((root / "2020" / "b.png").read_bytes())
    assert read_labelled(root).labels == ["2020", "2020", "2020", "2021"]
    for part in ("train", "test"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        shutil.copytree(root, tmp_path / "parts" / part)
    assert read_labelled(tmp_path / "parts", "test").labels == ["2020", "2020", "2020", "2021"]
    (root / "readme.txt").write_text("the cat\n")
    assert len(run("encode", tiny_vit, root).stdout.splitlines()) == 4
    assert len(run("encode", tiny_bert, root).stdout.splitlines()) == 1


def test_images_of_a_saved_dataset_are_read_with_their_labels(run, tiny_bert, tiny_vit, tmp_path: Path) -> None:
    pixels, labels = make_pixels(6), make_labels(6)
    label, text = datasets.ClassLabel(names=["dark", "bright"]), datasets.Value("string")
    kinds = datasets.Features({"image": datasets.Image(), "label": label, "text": text})
    rows = {"image": [Image.fromarray(p) for p in pixels], "label": labels, "text": ["cat"] * 6}
    saved = datasets.Dataset.from_dict(rows, features=kinds)
    saved.save_to_disk(tmp_path / "one")
    images = read_labelled(tmp_path / "one")
    assert images.labels == ["dark", "bright"] * 3
    assert [np.asarray(image)[..., 0].tolist() for image in images] == pixels.tolist()
    datasets.DatasetDict(train=saved, test=saved.select(range(2))).save_to_disk(tmp_path / "two")
    assert {part: len(images) for part, images in read_parts(tmp_path / "two").items()} == {"train": 6, "test": 2}
    assert len(run("encode", tiny_vit, tmp_path / "two").stdout.splitlines()) == 8
    assert len(run("encode", tiny_bert, tmp_path / "one").stdout.splitlines()) == 6  # the column of texts


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_greys_of_16_bits_are_scaled_in_either_byte_order(mode: str, tmp_path: Path) -> None:
    values = np.array([[0, 25_700], [51_400, 65_535]], dtype=np.uint16)
    data = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
    Image.frombytes(mode, (2, 2), data).save(tmp_path / "grey.tif")
    image = read_images(tmp_path / "grey.tif")[0]
    assert np.asarray(image)[..., 0].tolist() == [[0, 100], [200, 255]]
