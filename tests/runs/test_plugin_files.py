"""A method that is a file, loaded in a process of a host that does not have the file."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys

from robench.methods.registry import resolve
from robench.runs.plugin_files import packed_plugins
from robench.runs.worker_setup import sources_of

PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
from beside import WORDS

@dataclass(frozen=True)
class Mine:
    steps: int = 3
    files = (Path(__file__).with_name("words.txt"),)
    def run(self, model, behaviors, ctx):
        yield WORDS, self.files[0].read_text()
"""
ELSEWHERE = """
import pickle, sys
from pathlib import Path
from robench.runs.plugin_files import load_plugin
from robench.runs.worker_setup import sources_of
given = Path(sys.argv[1])
for plugin in pickle.loads((given / "packed").read_bytes()):
    load_plugin(plugin, given)
method = pickle.loads((given / "method").read_bytes())
print(method.instance, *next(method.instance.run(None, [], None)), sources_of([method]))
"""


def test_its_files_go_along_and_it_is_the_same_method(written_plugin, tmp_path):
    file = written_plugin(PLUGIN)
    method = resolve("attack", f"{file}:Mine", settings={"steps": 5})
    (tmp_path / "packed").write_bytes(pickle.dumps(packed_plugins([method])))
    (tmp_path / "method").write_bytes(pickle.dumps(method))
    expected = f"Mine(steps=5) please now {sources_of([method])}\n"
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    shutil.move(file.parent, tmp_path / "moved")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stdout == expected, done.stderr
