import stat
from pathlib import Path

import pytest

from blossomrec.files import digest, new_folder, replacing, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    with new_folder(tmp_path / "step") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "step") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "step" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("a", "b"):
        with new_folder(tmp_path / "step") as folder:
            (folder / name).write_text(name)
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["b"]


def test_files_are_as_readable_as_any_other(tmp_path):
    with replacing(tmp_path / "model") as temporary:
        temporary.unlink()
        temporary.touch(0o600)
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_digest_is_sha256_of_the_content(tmp_path):
    write_json(tmp_path / "a.json", {"k": 1})
    write_json(tmp_path / "b.json", {"k": 1})
    write_json(tmp_path / "c.json", {"k": 2})
    a, b, c = (digest(tmp_path / f"{name}.json") for name in "abc")
    assert a == b != c
    assert len(a) == 64


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_without_a_name_is_not_replaced(name, tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    monkeypatch.chdir(tmp_path / "kept")
    with pytest.raises(ValueError, match="does not end with"), new_folder(Path(name)):
        pass
    assert (tmp_path / "kept").exists()
