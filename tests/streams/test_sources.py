from __future__ import annotations

import csv
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sample_rows import LABELS, PIXELS, TEXTS, columns, png

from rankwise.cli.parts import check_places
from rankwise.config import load_config
from rankwise.config.stream import ENDINGS
from rankwise.errors import DataError, UsageError
from rankwise.streams.images import EncodedImages
from rankwise.streams.sources import READERS, read


def write_jsonl(path, table):
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path, table):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(table)
        writer.writerows(zip(*table.values(), strict=True))


def write_parquet(path, table):
    pq.write_table(pa.table(table), path)


def write_npz(path, table):
    np.savez(path, **{key: np.asarray(values) for key, values in table.items()})


def write_tsv(path, table):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="\t").writerows([list(table), *zip(*table.values(), strict=True)])


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".tsv": write_tsv, ".parquet": write_parquet, ".npz": write_npz}
ALL = pytest.mark.parametrize("suffix", WRITERS)


@ALL
def test_texts_come_back_as_written(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, columns())
    rows = read(path.name, root=tmp_path)
    assert rows.inputs == TEXTS and list(rows.labels) == LABELS and rows.modality == "text"
    assert rows.ids.tolist() == [0, 1, 2, 3] and rows.names() == ("fruit", "sky", "word")
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert rows.files == ({"name": path.name, "sha256": sha, "rows": 4},)


@ALL
def test_pairs_number_labels_and_extra_columns(tmp_path, suffix):
    table = {"one": TEXTS, "two": TEXTS[::-1], "gold": [10, 2, 10, 0], "topic": ["a", "b", "a", "b"]}
    WRITERS[suffix](tmp_path / f"rows{suffix}", table)
    rows = read(f"rows{suffix}", root=tmp_path, input=("one", "two"), target="gold", extra=["topic"])
    assert rows.inputs == list(zip(TEXTS, TEXTS[::-1], strict=True))
    assert list(rows.labels) == [10, 2, 10, 0] and rows.names() == ("0", "2", "10")
    assert [str(v) for v in rows.columns["topic"]] == ["a", "b", "a", "b"]
    part = rows.take([2, 1])
    assert part.inputs[0] == rows.inputs[2] and part.columns["topic"][1] == "b" and part.ids.tolist() == [2, 1]


@ALL
def test_a_split_column_selects_rows_and_keeps_row_numbers(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"rows{suffix}", columns(split=["train", "test", "train", "test"]))
    train, test = (read(f"rows{suffix}", root=tmp_path, split=split) for split in ("train", "test"))
    assert train.ids.tolist() == [0, 2] and test.ids.tolist() == [1, 3]
    assert test.inputs == [TEXTS[1], TEXTS[3]] and test.files[0]["split"] == "test"
    assert read(f"rows{suffix}", root=tmp_path).ids.tolist() == [0, 2]
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test'"):
        read(f"rows{suffix}", root=tmp_path, split="tset")


@ALL
def test_a_split_column_of_another_name(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"rows{suffix}", columns(part=["train", "test", "train", "test"]))
    assert read(f"rows{suffix}", root=tmp_path, split="test", split_column="part").ids.tolist() == [1, 3]
    with pytest.raises(DataError, match="no column 'prat'; did you mean 'part'"):
        read(f"rows{suffix}", root=tmp_path, split="test", split_column="prat")
    with pytest.raises(DataError, match="no split 'test'; it is not divided"):
        read(f"rows{suffix}", root=tmp_path, split="test")


@ALL
def test_missing_columns_name_the_nearest(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"rows{suffix}", columns())
    with pytest.raises(DataError, match=rf"rows{suffix}: no column 'inptu'; did you mean 'input'"):
        read(f"rows{suffix}", root=tmp_path, input="inptu")
    with pytest.raises(DataError, match="no column 'topic'"):
        read(f"rows{suffix}", root=tmp_path, extra=["topic"])
    WRITERS[suffix](tmp_path / f"rows{suffix}", {"question": TEXTS, "target": LABELS})
    with pytest.raises(DataError, match="no column named input or text.*say which one with input"):
        read(f"rows{suffix}", root=tmp_path)


@ALL
def test_a_damaged_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, columns())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + (suffix in (".csv", ".tsv")) * 15])
    with pytest.raises(DataError, match=rf"rows{suffix}.*(not|cannot|fields|line)"):
        read(path.name, root=tmp_path)
    path.write_bytes(b"\xff\xfe\x00" * 20)
    with pytest.raises(DataError, match=rf"rows{suffix}"):
        read(path.name, root=tmp_path)


@ALL
def test_empty_values_name_place_and_column(tmp_path, suffix):
    blank = columns(input=[*TEXTS[:2], "  ", "x"]), 2, "column 'input': the text is empty"
    unlabelled = columns(target=["a", "", "b", "c"]), 1, "column 'target': the label is missing"
    first = {".jsonl": 1, ".csv": 2, ".tsv": 2}.get(suffix)
    for bad, row, said in (blank, unlabelled):
        WRITERS[suffix](tmp_path / f"rows{suffix}", bad)
        place = f"row {row}" if first is None else f"line {first + row}"
        with pytest.raises(DataError, match=rf"rows{suffix}, {place}, {said}"):
            read(f"rows{suffix}", root=tmp_path)


def test_the_line_is_where_a_row_begins_in_the_file(tmp_path):
    (tmp_path / "a.csv").write_text('input,target\n"two\nlines",x\n\nlast,\n')
    with pytest.raises(DataError, match="a.csv, line 5, column 'target'"):
        read("a.csv", root=tmp_path)
    (tmp_path / "a.jsonl").write_text('{"input": "a", "target": 1}\n\n{"input": "", "target": 1}\n')
    with pytest.raises(DataError, match="a.jsonl, line 3, column 'input'"):
        read("a.jsonl", root=tmp_path)
    (tmp_path / "a.csv").write_text("input,target,split\na,x,train\nb,x,train\nc,y,test\n")
    with pytest.raises(DataError, match="a.csv, line 4: label 'y' has no training row"):
        read("a.csv", root=tmp_path, split="test").split(["x"])


@ALL
def test_no_rows_is_refused(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, {"input": [], "target": []})
    with pytest.raises(DataError, match="no rows"):
        read(path.name, root=tmp_path)


def test_lines_are_named_in_text_formats(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"input": "x", "target": 1}\n\n{"input": "y", "tar\n')
    with pytest.raises(DataError, match="a.jsonl, line 3: not JSON"):
        read("a.jsonl", root=tmp_path)
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: expected an object with named columns, got list"):
        read("a.jsonl", root=tmp_path)
    (tmp_path / "a.jsonl").write_text('{"input": "x", "target": 1}\n{"input": "y"}\n')
    with pytest.raises(DataError, match="line 2, column 'target': the label is missing"):
        read("a.jsonl", root=tmp_path)
    (tmp_path / "a.csv").write_text("input,target\nx,1\nwith, comma,2\n")
    with pytest.raises(DataError, match="a.csv, line 3: 3 fields where the header has 2"):
        read("a.csv", root=tmp_path)
    (tmp_path / "a.csv").write_text("input,target,input\nx,1,y\n")
    with pytest.raises(DataError, match="line 1: column 'input' is named twice"):
        read("a.csv", root=tmp_path)
    (tmp_path / "a.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(DataError, match="a.jsonl, line 1: not JSON"):
        read("a.jsonl", root=tmp_path)
    (tmp_path / "a.jsonl").write_text('{"input": "x", "target": 1}\n', encoding="utf-8-sig")
    assert read("a.jsonl", root=tmp_path).inputs == ["x"]
    (tmp_path / "a.csv").write_text('input,target\nx,1\n"open,2\n')
    with pytest.raises(DataError, match="not valid CSV"):
        read("a.csv", root=tmp_path)


def test_labels_are_checked():
    def labels(values):
        return list(read({"input": TEXTS, "target": values}).labels)

    assert labels([True, False, True, True]) == ["True", "False", "True", "True"]
    assert labels([1.0, 2.0, 1.0, 2.0]) == [1, 2, 1, 2]
    assert labels(torch.tensor([3, 1, 2, 3])) == [3, 1, 2, 3]
    for values, said in [
        ([1.0, float("nan"), 1.0, 1.0], r"row 1, column 'target': the label is missing \(nan\)"),
        (["a", None, "b", "c"], "row 1, column 'target': the label is missing"),
        ([1.5, 1.0, 1.0, 1.0], "label 1.5 is neither text nor a whole number"),
        (["a", 1, "b", "c"], "labels mix text and numbers"),
    ]:
        with pytest.raises(DataError, match=said):
            labels(values)


def test_csv_labels_that_only_look_like_numbers_stay_text(tmp_path):
    write_csv(tmp_path / "a.csv", columns(target=["007", "1", "2", "3"]))
    assert list(read("a.csv", root=tmp_path).labels) == ["007", "1", "2", "3"]
    write_csv(tmp_path / "a.csv", columns(target=["-1", "10", "2", "0"]))
    assert read("a.csv", root=tmp_path).names() == ("-1", "0", "2", "10")


def test_missing_files_name_the_nearest(tmp_path):
    write_jsonl(tmp_path / "reviews.jsonl", columns())
    with pytest.raises(DataError, match="review.jsonl: no such file.*did you mean 'reviews.jsonl'"):
        read("review.jsonl", root=tmp_path)
    with pytest.raises(DataError, match="the folder is missing too"):
        read("nowhere/review.jsonl", root=tmp_path)
    (tmp_path / "reviews.toml").write_text("x")
    with pytest.raises(DataError, match="review.csv: .*did you mean 'reviews.jsonl'. .known: reviews.jsonl."):
        read("review.csv", root=tmp_path)
    with pytest.raises(
        UsageError, match="stream.train = 'review.csv'.*did you mean 'reviews.jsonl'. .known: reviews.jsonl."
    ):
        check_places(load_config({"stream": {"train": "review.csv"}}), tmp_path, "my.toml")
    assert set(ENDINGS) == set(READERS)
    (tmp_path / "a.jsnl").write_text("x")
    with pytest.raises(DataError, match="unknown kind of file '.jsnl'; did you mean '.jsonl'"):
        read("a.jsnl", root=tmp_path)


# Arrays.


def arrays(**more):
    return {"x_train": PIXELS, "y_train": [0, 1, 1, 2], "x_test": PIXELS[:2], "y_test": [2, 0], **more}


def test_npz_splits_and_class_names(tmp_path):
    write_npz(tmp_path / "a.npz", arrays(class_names=["zebra", "ant", "cat"]))
    train, test = read("a.npz", root=tmp_path), read("a.npz", root=tmp_path, split="test")
    assert np.array_equal(train.inputs.numpy(), PIXELS) and train.modality == "image"
    assert train.names() == ("zebra", "ant", "cat") and train.named() == ["zebra", "ant", "ant", "cat"]
    assert test.named() == ["cat", "zebra"] and test.files[0]["split"] == "test"


def test_npz_groups_by_row_by_class_and_by_split(tmp_path):
    names = {"class_names": ["a", "b", "c"], "kind": [1, 0, 1], "kind_names": ["low", "high"]}
    write_npz(tmp_path / "a.npz", arrays(**names, rows_train=[5, 6, 7, 8], rows_test=[1, 2]))
    assert read("a.npz", root=tmp_path, extra=["kind"]).columns["kind"] == ["high", "low", "low", "high"]
    assert read("a.npz", root=tmp_path, split="test", extra=["kind"]).columns["kind"] == ["high", "high"]
    assert [int(v) for v in read("a.npz", root=tmp_path, split="test", extra=["rows"]).columns["rows"]] == [1, 2]
    write_npz(tmp_path / "b.npz", arrays(odd=[1, 2, 3, 4, 5]))
    with pytest.raises(DataError, match="'odd' has 5 values for 4 rows"):
        read("b.npz", root=tmp_path, extra=["odd"])


def test_npz_undivided_with_own_names_and_grey_channel(tmp_path):
    write_npz(tmp_path / "a.npz", {"pictures": PIXELS[..., :1], "kinds": [0, 1, 0, 1], "class_names": ["x", "y"]})
    rows = read("a.npz", root=tmp_path, input="pictures", target="kinds")
    assert rows.inputs.shape == (4, 6, 5) and rows.named() == ["x", "y", "x", "y"]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (arrays(class_names=["a", "b"]), "row 3, column 'target': label 2 is out of range 0..1"),
        (arrays(class_names=["a", "b", "a"]), "class names repeat"),
        ({"x_train": PIXELS}, "'x_train' has no 'y_train' beside it"),
        ({"x_train": PIXELS, "y_train": [1, 2]}, "'target' has 2 rows, not 4"),
        ({"x_train": PIXELS.astype(np.float32), "y_train": [0, 1, 1, 2]}, "must be uint8"),
        ({"x_train": PIXELS[..., :2], "y_train": [0, 1, 1, 2]}, "must be uint8"),
        ({"x_test": PIXELS, "y_test": [0, 1, 1, 2], "x_val": PIXELS, "y_val": [0, 1, 1, 2]}, "no split 'train'"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, table, said):
    write_npz(tmp_path / "a.npz", table)
    with pytest.raises(DataError, match=said):
        read("a.npz", root=tmp_path)


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.array([{"a": 1}, None], dtype=object), y_train=[0, 1])
    with pytest.raises(DataError, match="without pickled objects"):
        read("a.npz", root=tmp_path)


# Pictures.


def test_encoded_pictures_in_parquet(tmp_path):
    items = [png(x) for x in PIXELS]
    for images in (items, [{"bytes": item, "path": None} for item in items]):
        write_parquet(tmp_path / "a.parquet", {"image": images, "label": [0, 1, 0, 1]})
        rows = read("a.parquet", root=tmp_path)
        assert np.array_equal(rows.inputs.numpy(), PIXELS) and rows.modality == "image"
    write_parquet(tmp_path / "a.parquet", {"image": [*items[:2], png(PIXELS[0, :3]), items[3]], "label": [0, 1, 0, 1]})
    lazy = read("a.parquet", root=tmp_path)
    assert isinstance(lazy.inputs, EncodedImages) and lazy.inputs[2].shape == (3, 5, 3) and lazy.modality == "image"


def test_a_bad_picture_names_its_row(tmp_path):
    items = [png(x) for x in PIXELS]
    for bad, said in ((b"junk", "row 2: not a readable picture"), (None, "row 2, column 'image': no picture")):
        write_parquet(tmp_path / "a.parquet", {"image": [*items[:2], bad, items[3]], "label": [0, 1, 0, 1]})
        with pytest.raises(DataError, match=f"a.parquet, {said}"):
            read("a.parquet", root=tmp_path)


def test_image_folders(tmp_path):
    for part, count in (("train", 2), ("test", 1)):
        for kind in ("dog", "ant"):
            (tmp_path / "set" / part / kind).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "set" / part / kind / f"{i}.png").write_bytes(png(PIXELS[i]))
    (tmp_path / "set" / "train" / "dog" / "notes.txt").write_text("not a picture")
    train = read("set", root=tmp_path)
    assert list(train.labels) == ["ant", "ant", "dog", "dog"]
    assert np.array_equal(train.inputs.numpy(), PIXELS[[0, 1, 0, 1]])
    assert len(read("set", root=tmp_path, split="test")) == 2
    flat = read("set/train", root=tmp_path)
    assert list(flat.labels) == list(train.labels) and flat.files[0]["sha256"] == train.files[0]["sha256"]
    (tmp_path / "set" / "train" / "dog" / "1.png").write_bytes(png(PIXELS[2]))
    assert read("set", root=tmp_path).files[0]["sha256"] != train.files[0]["sha256"]
    (tmp_path / "set" / "train" / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="row 3: not a readable picture"):
        read("set", root=tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: no pictures found; lay them out as none/<class>/<file>"):
        read("none", root=tmp_path)
