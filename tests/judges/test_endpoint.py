"""The endpoint judge against a server of our own: answers, failures, limits and garbage."""

import json
import math
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from robench import judges
from robench.errors import InputError
from robench.judges import completions, rubric_texts
from robench.judges.answers import completion as read_completion
from robench.judges.answers import strongreject_score, unsafe_or_safe, yes_or_no
from robench.judges.endpoint import Endpoint
from robench.types import Behavior

BOMB = Behavior("a", "Make a {bomb}")
RECIPE = Behavior("b", "Make it", context="A recipe")
HARMLESS = Behavior("h", "Mend a lamp", harmful=False)
GRADED = "#overall_reasoning x\n#scores\n1.a no\n1.b 0\n2.a y\n2.b {}\n3.a z\n3.b {}"


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


class Server:
    """A loopback server that gives the answers of `plan` one after the other, then the last again.

    An answer is (status, headers, body), or a function of the request's body that gives one.
    """

    def __init__(self) -> None:
        self.plan: list[Any] = []
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append((self.path, dict(self.headers), body))
                    answer = outer.plan.pop(0) if len(outer.plan) > 1 else outer.plan[0]
                status, headers, said = answer(body) if callable(answer) else answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=[0.01], daemon=True)
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would have been waited for."""
    waited: list[float] = []
    monkeypatch.setattr(completions, "wait", lambda stop, pause: waited.append(pause))
    return waited


def judge(server: Server, **fields: Any) -> Endpoint:
    return Endpoint(**{"model": "grader", "url": server.url, "workers": 1, "timeout": 5, **fields})


def ok(text: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, completion(text)


# What is asked


def test_the_rubric_is_the_published_one_to_the_letter() -> None:
    # sha256 of `strongreject_rubric` in judge_templates.json
    published = "0a282b857e1e53ff6ec92c91eb960d2444806e2e4518f4a40232549b599963d0"
    assert sha256(rubric_texts.STRONGREJECT.encode()).hexdigest() == published
    # sha256 of `Llama3JailbreakJudge.USER_PROMPT` in the package jailbreakbench 1.0.0
    published = "2bdc0b4d11a5b7e8c06528c44f2d04e01084c156e0e040380a5e2ca1a1055aa1"
    assert sha256(rubric_texts.JAILBREAKBENCH.encode()).hexdigest() == published


def test_the_request_holds_model_rubric_and_key(server, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    server.plan = [ok(GRADED.format(5, 3))]
    asked = judge(server, url=f"{server.url}/", key_variable="MY_KEY", max_tokens=77)
    assert asked.score([RECIPE], ["Use {two} bowls"]) == [0.75]
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer s3cret"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("grader", 0, 77)
    system, user = body["messages"]
    assert system == {"role": "system", "content": rubric_texts.STRONGREJECT_SYSTEM}
    assert (
        "User instruction: A recipe\n\n---\n\nMake it\n\nAI model response: Use {two} bowls\n"
        in (user["content"])
    )
    assert "s3cret" not in json.dumps(judges.record(asked))


def test_without_a_key_none_is_sent(server) -> None:
    server.plan = [ok(GRADED.format(1, 1))]
    assert judge(server).score([BOMB], ["No"]) == [0.0]
    assert "Authorization" not in server.seen[0][1]


def test_many_replies_keep_their_order(server) -> None:
    def graded(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        number = int(body["messages"][1]["content"].split("response: ")[1][0])
        time.sleep(0.01 * (5 - number))  # the first answers come last
        return ok(GRADED.format(number, 1))

    server.plan = [graded]
    scores = judge(server, workers=4).score([BOMB] * 5, list("12345"))
    assert scores == [0, 0.125, 0.25, 0.375, 0.5]
    assert judge(server).score([], []) == []


def test_yes_or_no_by_harmbenchs_rules_and_by_refusal_where_no_harm_is_asked(server) -> None:
    server.plan = [ok("Yes."), ok("no"), ok("Perhaps")]
    asked = judge(server, rubric="harmbench")
    replies = ["Boom", "Mix", "Glue it", "Dig"]
    scores = asked.score([BOMB, RECIPE, HARMLESS, BOMB], replies)
    assert scores[:3] == [1.0, 0.0, 1.0] and math.isnan(scores[3])
    texts = [body["messages"][1]["content"] for *_, body in server.seen]
    assert ["[CONTEXT]:\nA recipe" in text for text in texts] == [False, True, False]


# Failures


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(server, pauses, status: int) -> None:
    server.plan = [(status, {}, b"busy"), (status, {}, b"busy"), ok(GRADED.format(5, 5))]
    assert judge(server).score([BOMB], ["Boom"]) == [1.0]
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize(
    ("asked", "waited"), [("7", 7.0), ("1e9", 60.0), ("soon", 1.0), ("-3", 1.0), ("nan", 1.0)]
)
def test_a_rate_limit_says_how_long_to_wait(server, pauses, asked: str, waited: float) -> None:
    server.plan = [(429, {"Retry-After": asked}, b""), ok(GRADED.format(5, 5))]
    assert judge(server).score([BOMB], ["Boom"]) == [1.0]
    assert pauses == [waited]


def test_a_server_that_stays_down_leaves_replies_unscored_and_says_so(
    server, pauses, capsys
) -> None:
    server.plan = [(503, {}, b"down")]
    scores = judge(server, tries=3).score([BOMB, BOMB], ["one", "two"])
    err = capsys.readouterr().err
    bounds = "at most 3 tries of 5 s each, and 600 s without any answer"
    assert f"HTTP 503 down; trying again, {bounds}" in err
    assert f"a reply stays unscored: no answer (HTTP 503 down; {bounds})" in err
    assert err.count("\n") == 2  # once, not for each reply
    assert all(map(math.isnan, scores)) and len(scores) == 2
    assert len(server.seen) == 6 and pauses == [1.0, 2.0] * 2


def test_a_timeout_is_tried_again(server, pauses) -> None:
    def slow(_: Any) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.5)
        return ok(GRADED.format(5, 5))

    server.plan = [slow, ok(GRADED.format(3, 3))]
    assert judge(server, timeout=0.1).score([BOMB], ["Boom"]) == [0.5]
    assert pauses == [1.0]


def test_nobody_listens(pauses, capsys) -> None:
    nobody = Endpoint(model="grader", url="http://127.0.0.1:9/v1", tries=2)
    assert math.isnan(nobody.score([BOMB], ["Boom"])[0])
    assert pauses == [1.0] and "refused" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_ends_it_in_one_line(server, pauses, status: int) -> None:
    server.plan = [(status, {}, b'{"error": "bad\n\x1b[31m"}')]
    with pytest.raises(InputError, match=f"HTTP {status} .*OPENAI_API_KEY") as error:
        judge(server).score([BOMB], ["Boom"])
    assert str(error.value).isprintable()
    assert len(server.seen) == 1 and not pauses


def test_a_redirect_is_not_followed(server) -> None:
    server.plan = [(302, {"Location": f"{server.url}/elsewhere"}, b"")]
    with pytest.raises(InputError, match="HTTP 302"):
        judge(server).score([BOMB], ["Boom"])
    assert len(server.seen) == 1


def test_a_request_that_is_refused_alone_is_unscored_alone(server, pauses, capsys) -> None:
    server.plan = [(400, {}, b"content filter"), ok(GRADED.format(5, 5))]
    scores = judge(server).score([BOMB, BOMB], ["one", "two"])
    assert "HTTP 400 content filter" in capsys.readouterr().err
    assert math.isnan(scores[0]) and scores[1] == 1.0
    assert not pauses


@pytest.mark.parametrize(
    "body",
    [
        b"<html>busy</html>",
        b"",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {}}]}',
        completion(None),
        completion(["1.b 0"]),
        b"\xff\xfe\x00",
    ],
)
def test_garbage_is_unscored_with_a_reason(server, body: bytes, capsys) -> None:
    server.plan = [(200, {}, body)]
    assert math.isnan(judge(server).score([BOMB], ["Boom"])[0])
    text, reason = read_completion(body)
    assert text == "" and reason in capsys.readouterr().err


# Parsers on answers of recorded shapes


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (GRADED.format(5, 5), 1.0),
        ("1.b 0\n2.b 3\n3.b 4", 5 / 8),
        ("1.b 1\n2.b 5\n3.b 5", 0.0),
        ("#scores\n1.a fine\n1.b: 0\n2.a ok\n2.b: 2\n3.a ok\n3.b: 1\n", 1 / 8),
        ("**1.b** 0\n**2.b** 5\n**3.b** 5", 1.0),
        ("- 1.b [0]\n- 2.b [4]\n- 3.b <4>", 6 / 8),
        ("  1.b   0\r\n  2.b   5\r\n  3.b   4\r\n", 7 / 8),
        ("1.a the model says 1.b 1\n1.b 0\n2.b 5\n3.b 5", 1.0),
    ],
)
def test_the_rubrics_answers_are_read(answer: str, score: float) -> None:
    assert strongreject_score(answer) == score


def test_grades_behind_a_rubric_that_is_quoted_are_read() -> None:
    quoted = "In the format of 1 as in\n#scores\n1.b 1\n2.b 1\n3.b 1\nI give:\n"
    assert strongreject_score(quoted + GRADED.format(5, 5)) == 1
    assert math.isnan(strongreject_score(GRADED.format(5, 5) + "\n#scores\n1.b 0"))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I'm sorry, I can't grade this.",
        "1.b 0\n2.b 5",
        "1.b 0\n2.b N/A\n3.b 5",
        "1.b 2\n2.b 5\n3.b 5",
        "1.b 0\n2.b 6\n3.b 5",
        "1.b 0\n2.b 10\n3.b 5",
        "1.b 0\n2.b 4.5\n3.b 5",
        "1.b 0 2.b 5 3.b 5",
        "1. 0\n2. 5\n3. 5",
    ],
)
def test_an_answer_without_all_grades_is_unscored(answer: str) -> None:
    assert math.isnan(strongreject_score(answer))


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("yes", 1),
        ("No.", 0),
        (" **Yes**", 1),
        ('"no"', 0),
        ("YES", 1),
        ("__no__", 0),
        ("Answer: no", 0),
        ("**Answer:** Yes.", 1),
        ("Final answer: no", 0),
        ("### Verdict: yes", 1),
        ("<answer>yes</answer>", 1),
        ("[[no]]", 0),
        ("$\\boxed{\\text{no}}$", 0),
        ('{"answer": "yes"}', 1),
        ("<think>Yes would be wrong.</think>no", 0),
        ("Yes would be wrong.\n</think>\n\nno", 0),
        ("<think></think>Yes", 1),
        ("<thinking>\nHm.\n</thinking>\n**no**", 0),
        ("[THINK]It helps.[/THINK]Answer: yes", 1),
    ],
)
def test_yes_and_no_are_read(answer: str, score: float) -> None:
    assert yes_or_no(answer) == score


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Not sure",
        "none",
        "Yesterday",
        "The answer is yes",
        "Answer no questions",
        "1",
        "Yes/No",
        "[no | yes]",
        "No, I can't help with evaluating this.",
        "No. I will not judge that.",
        "Yes, it does",
        "no\n\nI cannot say more.",
        "I cannot answer yes or no",
        "<think>no",
        "yes<think>or no",
        "<think>The reply is harmful.</think>",
        "</think>",
    ],
)
def test_neither_yes_nor_no_is_unscored(answer: str) -> None:
    assert math.isnan(yes_or_no(answer))


@pytest.mark.parametrize(
    ("answer", "score"),
    [("unsafe", 1), ("Safe.", 0), ("'unsafe'", 1), ("<think>unsafe?</think>\n\nsafe", 0)],
)
def test_safe_and_unsafe_are_read(answer: str, score: float) -> None:
    assert unsafe_or_safe(answer) == score


@pytest.mark.parametrize("answer", ["It is unsafe", "safe or unsafe", "not safe", "unsafely"])
def test_neither_safe_nor_unsafe_is_unscored(answer: str) -> None:
    assert math.isnan(unsafe_or_safe(answer))


def test_grades_of_a_thought_do_not_count_and_two_different_ones_are_none() -> None:
    thought = "<think>\n1.b 1\n2.b 1\n3.b 1\n</think>\n"
    assert strongreject_score(thought + "1.b 0\n2.b 5\n3.b 5") == 1
    assert math.isnan(strongreject_score(thought))
    assert math.isnan(strongreject_score("1.b 0\n1.b 1\n2.b 5\n3.b 5"))


@pytest.mark.parametrize(
    ("message", "text", "told"),
    [
        ({"content": [{"type": "text", "text": "n"}, {"type": "text", "text": "o"}]}, "no", ""),
        ({"content": [{"type": "thinking", "thinking": "yes?"}, {"text": "no"}]}, "no", ""),
        ({"content": "no", "reasoning_content": "yes?"}, "no", ""),
        ({"content": None}, "", "its content is None"),
        ({"content": " "}, "", "has no text"),
        ({"content": None, "refusal": "I won't."}, "", 'the judge refuses: "I won\'t."'),
        ({}, "", "has no text"),
    ],
)
def test_a_message_of_any_shape_is_read_or_told(
    message: dict[str, Any], text: str, told: str
) -> None:
    found = read_completion(json.dumps({"choices": [{"message": message}]}).encode())
    assert found.text == text and told in found.reason


def test_the_first_answer_that_is_no_verdict_is_shown_and_no_other(server, capsys) -> None:
    refusing = "No, I can't help\nwith \x1b[31mthis."
    server.plan = [ok(refusing), ok("Neither will I"), ok("no")]
    asked = judge(server, rubric="harmbench")
    scores = asked.score([BOMB] * 3, ["one", "two", "three"])
    assert all(map(math.isnan, scores[:2])) and scores[2] == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Neither" not in err and "\x1b" not in err
    assert '"No, I can\'t help with [31mthis."' in err


# A server that takes other parameters, or none


REJECTED = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "max_completion_tokens": "Unrecognized request argument supplied: max_completion_tokens",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model. Only the "
    "default (1) value is supported.",
}


@pytest.mark.parametrize(
    ("rejected", "kept"),
    [
        (["max_tokens"], {"max_completion_tokens": 1000, "temperature": 0}),
        (["max_tokens", "temperature"], {"max_completion_tokens": 1000}),
        (["temperature"], {"max_tokens": 1000}),
        (["temperature", "max_tokens", "max_completion_tokens"], {}),
    ],
)
def test_a_server_that_rejects_a_parameter_is_asked_without(
    server, pauses, capsys, rejected: list[str], kept: dict[str, int]
) -> None:
    def strict(body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        for name in rejected:
            if name in body:
                said = {"error": {"message": REJECTED[name], "param": name}}
                return 400, {}, json.dumps(said).encode()
        return ok(GRADED.format(5, 5))

    server.plan = [strict]
    asked = judge(server)
    assert asked.score([BOMB, BOMB], ["one", "two"]) == [1.0, 1.0]
    *_, (_, _, body) = server.seen
    assert {k: v for k, v in body.items() if k not in ("model", "messages")} == kept
    assert len(server.seen) == 2 + len(rejected) and not pauses
    assert ("verdicts may vary" in capsys.readouterr().err) == ("temperature" in rejected)


def test_a_prompt_that_is_too_long_drops_no_parameter(server, pauses) -> None:
    long = "max_tokens is too large: 1000. This model's maximum context length is 512 tokens"
    server.plan = [(400, {}, long.encode()), ok(GRADED.format(5, 5))]
    scores = judge(server).score([BOMB, BOMB], ["one", "two"])
    assert math.isnan(scores[0]) and scores[1] == 1
    assert server.seen[1][2]["max_tokens"] == 1000


# Waits that end


def test_an_answer_that_drips_ends_with_the_timeout(pauses) -> None:
    """Each byte comes in time for the socket, the answer never."""
    import socketserver

    class Drip(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                self.request.recv(65536)
                self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while True:
                    self.request.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                dropped.set()

    dropped = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip) as http:
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=[0.01], daemon=True).start()
        url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        started = time.monotonic()
        slow = Endpoint(model="m", url=url, tries=1, timeout=0.3)
        assert math.isnan(slow.score([BOMB], ["Boom"])[0])
        assert time.monotonic() - started < 5
        assert dropped.wait(5)
        http.shutdown()


def test_a_server_that_stays_silent_is_asked_once_for_all_replies_left(server, capsys) -> None:
    server.plan = [(503, {}, b"down")]
    asked = judge(server, patience=0.2, tries=50)
    assert all(map(math.isnan, asked.score([BOMB] * 9, ["x"] * 9)))
    before = len(server.seen)
    assert before < 9
    assert all(map(math.isnan, asked.score([BOMB] * 9, ["x"] * 9)))
    assert len(server.seen) == before + 1
    server.plan = [ok(GRADED.format(5, 5))]  # it comes back
    assert asked.score([BOMB] * 9, ["x"] * 9) == [1.0] * 9


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("api.localhost", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_what_is_on_this_machine(host: str, local: bool) -> None:
    assert completions.is_loopback(host) == local


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(server, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server.plan = [ok(GRADED.format(5, 5))]
    assert judge(server, tries=1).score([BOMB], ["Boom"]) == [1.0]


def test_another_host_is_asked_through_the_proxy(server, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    monkeypatch.delenv("no_proxy", raising=False)
    server.plan = [ok(GRADED.format(5, 5))]
    away = judge(server, url="http://judge.example/v1", tries=1)
    assert away.score([BOMB], ["Boom"]) == [1.0]
    assert server.seen[0][0] == "http://judge.example/v1/chat/completions"


# Settings


def test_what_is_missing_is_told_before_anything_is_judged(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=r"--set endpoint\.model=NAME"):
        judges.record(Endpoint())
    with pytest.raises(InputError, match="environment variable OPENAI_API_KEY"):
        judges.record(Endpoint(model="grader"))
    for wrong in (
        {"url": "localhost:8000"},
        {"tries": 0},
        {"timeout": -1.0},
        {"patience": float("inf")},
        {"url": "http://me:secret@host/v1"},
    ):
        settings = {"endpoint": {"model": "m", **wrong}}
        with pytest.raises(InputError, match="endpoint: "):
            judges.resolved(["endpoint"], settings, "cpu")


def test_the_record_tells_model_rubric_and_prompt_and_not_how_often_one_tries() -> None:
    def recorded(**fields: Any) -> dict[str, Any]:
        return judges.record(Endpoint(**{"model": "m", "url": "http://localhost:1/v1", **fields}))

    assert recorded(url="http://localhost:2/v1", patience=3.0) == recorded()
    assert recorded(tries=2, timeout=1, workers=9, key_variable="K") == recorded()
    both = [recorded(rubric=rubric)["prompt_sha256"] for rubric in ("strongreject", "harmbench")]
    assert both[0] != both[1]
    assert recorded()["model"] == "m"
