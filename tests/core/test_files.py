"""Files of the user: what is wrong with one is one line, and what is written is whole or not there."""

import errno

import pytest

from raylora.core.errors import InputError
from raylora.core.files import read_json_object, replacing, require_file_place, require_folder_place, require_writable


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a":', "not JSON"),
        (b"\x80\xff\x00", "not JSON"),
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "expected one JSON object, found list"),
        (b"null", "expected one JSON object, found NoneType"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_json_object_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_json_object(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    path.write_text('{"a": 1}')
    assert read_json_object(path) == {"a": 1}


def test_a_place_is_tried_and_nothing_stays(tmp_path):
    (tmp_path / "file").touch()
    for path in ("new", "new/deep/er", "file", "."):
        require_writable(tmp_path / path, "--output")
    for path, said in ((tmp_path / "file" / "x", "Not a directory"), ("/proc/x", "/proc")):
        with pytest.raises(InputError, match=f"^--output: {path}: cannot be written.*{said}"):
            require_writable(type(tmp_path)(path), "--output")
    with pytest.raises(InputError, match="^--output: expected a file, .* is a folder$"):
        require_file_place(tmp_path, "--output")
    with pytest.raises(InputError, match="^--csv: expected a folder, .*file is a file$"):
        require_folder_place(tmp_path / "file", "--csv")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left") as caught, replacing(path) as partial:
        partial.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(path) and path.read_text() == "old"
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
