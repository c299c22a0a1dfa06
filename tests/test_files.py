"""Bytes on disk: whole or not at all, flushed in the right order, torn ends cut off."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from robench import files
from robench.errors import InputError


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reaches the disk, in order: (fsync, name) of files and folders, (rename, new name)."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        fsync(handle)
        seen.append(("fsync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))

    def renamed(source: Path, target: Path) -> None:
        replace(source, target)
        seen.append(("rename", Path(target).name))

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", renamed)
    return seen


linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of handles: Linux")


# Whole files


@linux
def test_a_file_is_flushed_renamed_and_its_folder_flushed(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    files.write_bytes(tmp_path / "a", b"content")
    wanted = [("fsync", "a.tmp"), ("rename", "a"), ("fsync", tmp_path.name)]
    assert events == wanted
    assert (tmp_path / "a").read_bytes() == b"content"


@linux
def test_folders_above_a_file_are_made_and_flushed(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    files.write_text(tmp_path / "one" / "two" / "a", "x")
    assert events[:2] == [("fsync", tmp_path.name), ("fsync", "one")]
    assert events[-1] == ("fsync", "two")


@pytest.mark.parametrize("dies_in", ["fsync", "replace"])
def test_a_write_that_dies_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    path = tmp_path / "a"
    files.write_bytes(path, b"old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, dies_in, die)
        files.write_bytes(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_the_draft_of_a_killed_process_is_written_over_never_through(tmp_path: Path) -> None:
    (tmp_path / "a.tmp").write_bytes(b"half of something longer")
    files.write_bytes(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "b.tmp").symlink_to(victim)  # as a run's folder from others could have it
    files.write_bytes(tmp_path / "b", b"ours")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "b").is_symlink()


def test_text_is_stored_as_it_is(tmp_path: Path) -> None:
    text = "é\r\n\ud83d\n"
    files.write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_bytes() == text.encode("utf-8", "surrogatepass")


def test_json_comes_back_and_what_it_does_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    files.write_json(path, {"n": 1, "words": "été \ud83d"})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"n": float("nan")})
    assert files.read_json(path) == {"n": 1, "words": "été \ud83d"}


@pytest.mark.parametrize("content", [b'{"question": ', b"\xff\xfe\xfa", b""])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json is damaged: it is not JSON"):
        files.read_json(tmp_path / "run.json")


# A file system that cannot flush a folder


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_flushed_is_left_to_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "open", refusing(number))
    files.write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_disk_that_fails_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.write_bytes(tmp_path / "a", b"x")


def refusing(number: int) -> Callable[..., int]:
    """An `os.open` that answers with an error."""

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


# Lines


@linux
def test_lines_reach_the_disk_with_the_folder_of_a_new_file(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    path = tmp_path / "rows.jsonl"
    files.append_lines(path, ["1\n", "2\n"])
    assert events == [("fsync", "rows.jsonl"), ("fsync", tmp_path.name)]
    files.append_lines(path, ["3\n"])
    assert events[2:] == [("fsync", "rows.jsonl")]
    assert path.read_bytes() == b"1\n2\n3\n"


def test_lines_come_back_whatever_they_hold(tmp_path: Path) -> None:
    values = [{"reply": "two\nlines \u2028 \r \x85 and \ud83d"}, {"n": None}]
    files.append_lines(tmp_path / "a", [files.json_line(value) for value in values])
    assert files.read_json_lines(tmp_path / "a") == values
    assert (tmp_path / "a").read_bytes().count(b"\n") == 2


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert files.read_json_lines(tmp_path / "a") == []
    files.cut_lines(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("cut", range(1, 11))
def test_a_torn_end_is_not_read_and_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a"
    whole = b'{"n": 1}\n{"n": 22}\n'
    path.write_bytes(whole[:-cut])
    assert files.read_json_lines(path) == [{"n": 1}]
    files.cut_lines(path)
    assert path.read_bytes() == whole[:9]


def test_lines_after_a_number_of_them_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1\n2\n3\n4")
    for count, left in ((3, b"1\n2\n3\n"), (9, b"1\n2\n3\n"), (1, b"1\n"), (0, b"")):
        files.cut_lines(path, count)
        assert path.read_bytes() == left


def test_a_damaged_line_is_told_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'{"n": 1}\n{"n": \n{"n": 3}\n')
    with pytest.raises(InputError, match="a, line 2 is damaged: it is not JSON"):
        files.read_json_lines(tmp_path / "a")


# Folders


def filled(folder: Path) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "one").write_text("1")
    (folder / "inner" / "two").write_text("2")
    return folder


@linux
def test_a_finished_folder_is_flushed_before_it_gets_its_name(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    draft = filled(tmp_path / "a.draft")
    files.replace_folder(draft, tmp_path / "a")
    assert set(events[:-2]) == {("fsync", name) for name in ("a.draft", "inner", "one", "two")}
    assert events[-2:] == [("rename", "a"), ("fsync", tmp_path.name)]
    assert (tmp_path / "a" / "inner" / "two").read_text() == "2" and not draft.exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    mine = filled(tmp_path / "a")
    draft = filled(tmp_path / "a.draft")
    with pytest.raises(OSError, match="not empty"):
        files.replace_folder(draft, mine)
    assert (mine / "one").read_text() == "1"


def test_a_removal_that_is_killed_leaves_nothing_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path / "a")

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.rmtree", killed)
        files.remove_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == [".a.removed"]
    files.remove_folder(filled(folder))
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(OSError):
        files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a").read_text() == "mine"


def test_what_is_written_is_json_for_others_too(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"reply": "守る"})
    assert json.loads((tmp_path / "a").read_text("utf-8")) == {"reply": "守る"}
    assert "守る" in (tmp_path / "a").read_text("utf-8")
