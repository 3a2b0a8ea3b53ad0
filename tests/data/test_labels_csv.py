from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import write_folders

from cnnlab.data.image_files import ImageReader
from cnnlab.data.labels_csv import LabelsCSV
from cnnlab.runtime.errors import ArgumentError, ConfigError

HEADER = "file_name,label"
ROWS = "a/000.png,cat\na/001.png,dog\na/002.png,cat\na/003.png,dog\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`a/000.png` to `a/011.png`, and as many in `b`."""
    return write_folders(tmp_path / "scans", {"a": 12, "b": 12})


def source(root: Path, text: str | bytes | None = None, **changes: Any) -> LabelsCSV:
    if text is not None:
        (root / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    arguments: dict[str, Any] = {"labels": "labels.csv", "size": 8, "channels": 3, "resize": "crop", "test_fraction": 0}
    return LabelsCSV(str(root), **{**arguments, **changes})


def labelled(found: LabelsCSV, split: str = "train") -> Mapping[str, str]:
    names = found.describe().class_names
    return dict(zip(found.paths(split), [names[label] for label in found.read(split).y_N], strict=True))


def refusal(root: Path, text: str | bytes | None, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        source(root, text, **changes).describe()
    return str(caught.value).replace(str(root), "ROOT")


def test_each_image_has_the_label_of_its_row_and_classes_are_sorted(root: Path) -> None:
    found = source(root, f"{HEADER}\n{ROWS}")
    spec = found.describe()
    assert (spec.class_names, spec.counts, spec.input_shape) == (("cat", "dog"), {"train": 4}, (3, 8, 8))
    expected = {"a/000.png": "cat", "a/001.png": "dog", "a/002.png": "cat", "a/003.png": "dog"}
    assert labelled(found) == expected
    images = found.read("train")
    for x_CHW, path in zip(images.x_NCHW, found.paths("train"), strict=True):
        assert torch.equal(x_CHW, ImageReader((8, 8), 3).read(root / path))


def test_splits_and_groups_have_columns_of_their_own(root: Path) -> None:
    rows = ["a/000.png,cat,train,p1", "a/001.png,dog,Train,p2", "a/002.png,cat,train,p1"]
    rows += ["b/000.png,dog,valid,p3", "b/001.png,cat,test,p4"]
    found = source(root, "\n".join(["file_name,label,split,group", *rows]))
    assert found.describe().counts == {"train": 3, "val": 1, "test": 1}
    assert labelled(found, "val") == {"b/000.png": "dog"}
    labels = found.labels()
    assert labels.group_N is not None
    by_path = dict(zip(found.paths("train"), labels.group_N.tolist(), strict=True))
    assert by_path["a/000.png"] == by_path["a/002.png"] != by_path["a/001.png"]
    assert torch.equal(labels.y_N, found.read("train").y_N)
    assert found.notes() == ["groups: 4, each whole in one split"]


def test_a_test_split_is_carved_of_whole_groups(root: Path) -> None:
    rows = [f"{folder}/{number:03d}.png,{folder},p{number // 2}" for folder in "ab" for number in range(12)]
    found = source(root, "\n".join(["file_name,label,group", *rows]), test_fraction=0.25)
    assert found.describe().counts == {"train": 20, "test": 4}
    assert found.describe().origins["test"] == "25% of labels.csv"
    group_of = {row.split(",")[0]: row.split(",")[2] for row in rows}
    assert not {group_of[path] for path in found.paths("train")} & {group_of[path] for path in found.paths("test")}


@pytest.mark.parametrize(
    "text",
    [
        f"\ufeff{HEADER}\r\n{ROWS}",  # as spreadsheets write it
        '"file_name", "label"\n"a/000.png", cat \n./a/001.png,"dog"\na//002.png,cat\na/003.png,dog\n\n\n',
        f"{HEADER}\n" + "\n".join(reversed(ROWS.split())),
        "label,file_name\n" + "\n".join(",".join(reversed(row.split(","))) for row in ROWS.split()),
    ],
)
def test_spelling_and_the_order_of_rows_change_nothing(root: Path, text: str) -> None:
    plain, other = source(root, f"{HEADER}\n{ROWS}"), source(root, text)
    expected = plain.paths("train"), plain.labels().y_N.tolist()
    (root / "labels.csv").write_bytes(text.encode())
    assert (other.paths("train"), other.labels().y_N.tolist()) == expected


def test_a_label_is_text_and_a_quoted_name_may_hold_anything(root: Path) -> None:
    (root / "a" / "000.png").rename(root / "a" / 'x, "y"\u2028.png')
    found = source(root, f'{HEADER}\n"a/x, ""y""\u2028.png",[red]cat[/]\na/001.png,=1+1\n')
    assert found.describe().class_names == ("=1+1", "[red]cat[/]")
    assert sorted(found.paths("train")) == ["a/001.png", 'a/x, "y"\\u2028.png']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected file_name, label and, where wanted, split, group, each once, received –"),
        ("file_name\na", "line 1: expected file_name, label and, where wanted, split, group, each once, received"),
        ("file_name,label,label\n", "each once, received file_name, label, label"),
        ("file,label\n", "line 1: there is no column 'file'; did you mean 'file_name'? expected file_name, label and"),
        ("file_name;label\n", "group separated by commas, received file_name;label"),
        (f"{HEADER}\na/000.png\n", "line 2: expected 2 fields, received 1"),
        (f"{HEADER}\n{ROWS}a/004.png,\n", "line 6: expected a label, received nothing"),
        (f"{HEADER}\n ,cat\n", "line 2: expected a file_name, received nothing"),
        (f"{HEADER}\na/000.png,c\x1b[2Jat\n", "expected a label in printable letters, received c\\x1b[2Jat"),
        (f"{HEADER},split\na/000.png,cat,trian\n", "line 2: expected one of the splits train, val, test, received"),
        (f"{HEADER},group\na/000.png,cat,\n", "line 2: expected a group, received nothing"),
        (f'{HEADER}\na/000.png,"cat\n', "line 2: unexpected end of data"),
        (b"file_name,label\na/000.png,c\xe4t\n", "line 2: expected text in UTF-8"),
        (f"{HEADER}\n", "expected training images of two labels or more; found –"),
        (f"{HEADER}\na/000.png,cat\n", "expected training images of two labels or more; found cat"),
        (
            f"{HEADER},split\na/000.png,cat,train\na/001.png,dog,train\na/002.png,emu,test\n",
            "line 4: no training image has the label 'emu' of this test image: expected one of cat, dog",
        ),
        (f"{HEADER}\n{ROWS}a/./000.png,cat\n", "a/000.png is in lines 2 and 6: expected each file once"),
        (
            f"{HEADER},split\na/000.png,cat,train\na/000.png,cat,val\na/001.png,dog,train\n",
            "a/000.png is in lines 2 and 3, of the splits train and val: expected each file once",
        ),
        (
            f"{HEADER},split,group\na/000.png,cat,train,p\na/001.png,dog,val,p\na/002.png,dog,train,q\n",
            "the group p is in the splits train (line 2) and val (line 3): expected all images of a group in one split",
        ),
        (f"{HEADER}\n{ROWS}a/999.png,cat\n", "line 6: there is no file ROOT/a/999.png (No such file or directory)"),
        (f"{HEADER}\n{ROWS}a,cat\n", "line 6: ROOT/a is no file: expected an image"),
        (f"{HEADER}\n{ROWS}b/../../x.png,cat\n", "line 6: 'b/../../x.png' leads out of data.root: expected a path"),
        (f"{HEADER}\n{ROWS}/etc/passwd,cat\n", "line 6: '/etc/passwd' leads out of data.root"),
    ],
)
def test_what_is_no_list_of_labels_is_refused_with_its_line(root: Path, text: str | bytes, message: str) -> None:
    refused = refusal(root, text)
    assert refused.startswith("data.labels: ROOT/labels.csv: ")
    assert message in refused


def test_several_mistakes_come_together(root: Path) -> None:
    text = HEADER + "\n" + ROWS + "".join(f"c/{number}.png,cat\n" for number in range(7))
    lines = refusal(root, text).splitlines()
    assert lines[0] == "data.labels: ROOT/labels.csv: 7 mistakes:"
    assert lines[1].strip().startswith("line 6: there is no file ROOT/c/0.png")
    assert (len(lines), lines[-1].strip()) == (7, "and 2 more")


@pytest.mark.parametrize("linked", ["a/link.png", "elsewhere/000.png"])
def test_a_link_out_of_the_root_is_refused(root: Path, tmp_path: Path, linked: str) -> None:
    write_folders(tmp_path / "secret", {".": 1})
    (root / "a" / "link.png").symlink_to(tmp_path / "secret" / "000.png")
    (root / "elsewhere").symlink_to(tmp_path / "secret")
    assert "line 6: " in (refused := refusal(root, f"{HEADER}\n{ROWS}{linked},cat\n"))
    assert "the link leads out of ROOT to " in refused


def test_a_missing_csv_names_the_place_and_one_beside_it(root: Path, in_tmp_path: Path) -> None:
    assert refusal(root, None) == "data.labels: ROOT/labels.csv cannot be read: No such file or directory"
    (in_tmp_path / "labels.csv").touch()
    assert refusal(root, None).endswith(f"there is no ROOT/labels.csv: is it {in_tmp_path}/labels.csv?")
    with pytest.raises(ArgumentError, match=r"^labels: expected a CSV in data\.root, as in data\.labels=labels\.csv"):
        source(root, labels=None)


def test_images_of_one_group_leave_no_test_split(root: Path) -> None:
    text = f"{HEADER},group\na/000.png,cat,p\na/001.png,dog,p\n"
    assert refusal(root, text, test_fraction=0.1).startswith(
        "data.test_fraction: expected 0 for images that are all of"
    )
