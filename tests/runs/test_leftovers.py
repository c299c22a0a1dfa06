"""Temporary folders of killed processes are removed by the next one, those of living ones stay."""

import os
import tempfile

from robench.runs.leftovers import fresh_folder, new_folder


def test_only_old_folders_of_processes_that_are_gone_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = 2**22 + 1  # above the highest number of a process
    old, new = tmp_path / f"robench-{gone}-a", tmp_path / f"robench-{gone}-b"
    others = [tmp_path / f"robench-{os.getpid()}-c", tmp_path / "robench-x-d"]
    for folder in (old, new, *others):
        folder.mkdir()
        if folder != new:
            os.utime(folder, (1, 1))
    made = new_folder()
    with fresh_folder() as short:
        assert short.is_dir()
    assert not old.exists() and not short.exists()
    assert all(folder.is_dir() for folder in (new, made, *others))
