"""One process at a time writes a folder; told by real processes, which speak through pipes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robench import locks
from robench.errors import InputError
from robench.locks import locked

# Says "held" or why not, then stays as it is until it is told to go on; then "released".
HOLDER = """
import sys
from pathlib import Path
from robench.errors import InputError
from robench.locks import locked
try:
    with locked(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except InputError as error:
    print(error, flush=True)
    sys.stdin.readline()
else:
    print("released", flush=True)
    sys.stdin.readline()
"""


class Process:
    """Another process that wants a folder."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-c", HOLDER, str(folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)

    def says(self) -> str:
        """Its next line: waits for it."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def wanting(folder: Path, count: int = 1) -> Iterator[list[Process]]:
    processes = [Process(folder) for _ in range(count)]
    try:
        yield processes
    finally:
        for other in processes:
            other.kill()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    with wanting(tmp_path) as (first,):
        assert first.says() == "held"
        with wanting(tmp_path) as (second,):
            told = second.says()
        start, _, rest = told.partition(" (since ")
        pid, host = first.process.pid, socket.gethostname()
        assert start == f"{tmp_path} is in use by process {pid} on {host}"
        assert rest.endswith("); wait for it, or choose another --out")
        with pytest.raises(InputError, match=f"process {pid} on"), locked(tmp_path):
            pass
        first.go_on()
        assert first.says() == "released"
        with locked(tmp_path):
            assert json.loads((tmp_path / locks.OWNER).read_text())["process"] == os.getpid()
    assert not (tmp_path / locks.OWNER).exists()


def test_the_lock_of_a_killed_process_is_none(tmp_path: Path) -> None:
    with wanting(tmp_path) as (first,):
        assert first.says() == "held"
        first.kill()
    assert (tmp_path / locks.OWNER).is_file()  # it had no time to take it away
    with locked(tmp_path), wanting(tmp_path) as (other,):
        assert f"process {os.getpid()} on" in other.says()


def test_of_many_that_find_a_dead_lock_one_wins(tmp_path: Path) -> None:
    with wanting(tmp_path) as (dead,):
        assert dead.says() == "held"
        dead.kill()
    with wanting(tmp_path, count=6) as others:
        told = [other.says() for other in others]  # whoever holds it still does
        assert told.count("held") == 1
        assert sum("is in use by" in words for words in told) == 5


def test_an_exception_releases_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    with wanting(tmp_path) as (other,):
        assert other.says() == "held"


def test_a_process_may_lock_again_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    with locked(folder):
        with locked(Path("run")), locked(tmp_path / "." / "run"):
            pass
        with wanting(folder) as (other,):  # the inner ones have not released it
            assert "is in use by" in other.says()
    with wanting(folder) as (other,):
        assert other.says() == "held"


def test_an_owner_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    with wanting(tmp_path) as (first,):
        assert first.says() == "held"
        for content in ("", "[]", '{"host": "h"}'):
            (tmp_path / locks.OWNER).write_text(content)
            refused = pytest.raises(InputError, match="is in use by another process; wait")
            with refused, locked(tmp_path):
                pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_does_not_hold_what_its_parent_does(tmp_path: Path) -> None:
    read, write = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if child == 0:  # in the child: no return into pytest, whatever happens
            told = b"held"
            try:
                with locked(tmp_path):
                    pass
            except InputError:
                told = b"refused"
            finally:
                os.write(write, told)
                os._exit(0)
        assert os.read(read, 100) == b"refused"
        os.waitpid(child, 0)


def test_the_folder_is_made(tmp_path: Path) -> None:
    with locked(tmp_path / "new" / "folder"):
        assert (tmp_path / "new" / "folder").is_dir()
