import hashlib
import os
from pathlib import Path

import pytest

from cnnlab.runtime.files import read_regular, replace_file, sha256_of


def test_a_file_is_read_up_to_the_limit_and_hashed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    assert sha256_of(tmp_path / "file") == hashlib.sha256(b"12345").hexdigest()
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(tmp_path / "file", 4)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "file")
    with pytest.raises(OSError, match="no regular file"):
        read_regular(tmp_path / "file", 5)


def test_a_file_is_replaced_whatever_a_kill_left(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_bytes(b"half of an earlier wri")
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    assert replace_file(tmp_path / "file", b"new") == tmp_path / "file"
    assert [(path.name, path.read_bytes(), path.is_symlink()) for path in tmp_path.iterdir()] == [
        ("file", b"new", False)
    ]
