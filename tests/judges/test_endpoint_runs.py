"""The endpoint judge in whole runs: a server that moves, and one that never answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ASKED = ["--matrix", "smoke", "--attacks", "direct", "--defenses", "none", "--n", "3",
         "--n-benign", "3", "--threads", "1", "--judges", "endpoint:harmbench",
         "--set", "endpoint.model=grader"]  # fmt: skip


@contextmanager
def server(said: str) -> Iterator[str]:
    """A server that says one thing; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=[0.01], daemon=True).start()
        yield f"endpoint.url=http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()


def test_a_judge_that_comes_back_on_another_port_goes_on(tmp_path: Path, call) -> None:
    out = tmp_path / "run"
    with server("no") as first:
        code, *_ = call("run", *ASKED, first, "--out", str(out))
        assert code == 0
        port = first.rpartition(":")[2]
    question = json.loads((out / "run.json").read_text())["question"]
    assert port not in json.dumps(question)
    infos = [json.loads(path.read_text())["info"] for path in out.glob("cells/*/cell.json")]
    assert all(port in info["judges"]["endpoint:harmbench"]["url"] for info in infos)
    with server("no") as second:
        code, _, err = call("run", *ASKED, second, "--defenses", "noop", "--out", str(out))
        assert code == 0, err
        again = ["judge", str(out), "--judges", "endpoint:harmbench"]
        again += ["--set", "endpoint.model=grader", second]
        assert call(*again)[0] == 0
        again[3] = "endpoint"
        assert call(*again)[0] == 3  # "no" has none of that rubric's grades
    assert json.loads((out / "run.json").read_text())["question"] == question
    assert second.partition("=")[2] in (out / "judges.json").read_text()


def test_a_judge_that_refuses_leaves_all_unscored_and_exits_with_3(tmp_path: Path, call) -> None:
    out = tmp_path / "run"
    with server("No, I can't help with evaluating this.") as url:
        code, text, err = call("run", *ASKED, url, "--out", str(out))
    assert code == 3
    assert err.count("is no verdict") == 1 and "help with evaluating this" in err
    assert "without a verdict, never counted as defended: endpoint:harmbench 3 of 3" in text
    assert pd.read_csv(out / "dsr.csv").query("role == 'baseline'")["unscored"].tolist() == [3]


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process there")
def test_ctrl_c_ends_a_run_whose_judge_hangs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"endpoint.url=http://127.0.0.1:{silent.getsockname()[1]}/v1"
        program = [sys.executable, "-m", "robench", "run", *ASKED, url]
        process = subprocess.Popen(
            [*program, "--out", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True
        )
        try:
            silent.settimeout(120)
            asked, _ = silent.accept()  # the judge waits for an answer that never comes
            assert asked.recv(10)
            process.send_signal(signal.SIGINT)
            started = time.monotonic()
            _, err = process.communicate(timeout=60)
            assert time.monotonic() - started < 3
            asked.settimeout(3)
            while asked.recv(65536):  # until the other end has closed
                pass
        finally:
            process.kill()
    assert process.returncode == 130
    assert err.endswith("robench: interrupted; the same command resumes\n")
    assert "Traceback" not in err
