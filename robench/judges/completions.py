"""Chat completions of an OpenAI-compatible server, several at a time, that never hold a run up.

Every wait has an end: a request ends after `timeout` seconds however slowly its answer drips, a
prompt is asked `tries` times at most, and where the server has answered nothing for `patience`
seconds the prompts that are left go without. Requests are made by daemon threads, so an
interruption closes them and ends the process at once.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from robench.errors import InputError
from robench.judges.answers import SHOWN, Completion, Notices, completion, one_line

_FOR_GOOD = (301, 302, 303, 307, 308, 401, 403, 404, 405)  # HTTP errors that every prompt meets
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # HTTP errors that pass
_LONGEST = 60.0  # seconds between two tries, whatever the server asks for
_BYTES = 2**20  # of an answer that are read
_REJECTED = re.compile(
    r"unsupported|not supported|does ?n[o']t support|unrecogni[sz]ed|unknown|unexpected|"
    r"not permitted|not allowed|invalid param|extra",
    re.IGNORECASE,
)


class Bounds(NamedTuple):
    """How long is waited: see the module's docstring."""

    timeout: float
    tries: int
    patience: float

    def __str__(self) -> str:
        return (
            f"at most {self.tries} tries of {self.timeout:g} s each, and {self.patience:g} s "
            "without any answer"
        )


class Refused(Exception):
    """A server's error: its code, what it says, and how long it asks to wait (NaN: it does not)."""

    def __init__(self, error: urllib.error.HTTPError) -> None:
        self.code, self.words = error.code, _words(error)
        self.pause = _seconds(error.headers.get("Retry-After"))
        super().__init__(f"HTTP {self.code} {self.words[:SHOWN]}".rstrip())


class Completions:
    """The chat completions of one server.

    Args:
        url: ends in /v1, as a rule.
        headers: of each request besides the content's type.
        refusal, hint: what is said where the server refuses for good, and what to check then.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        bounds: Bounds,
        notices: Notices,
        refusal: str,
        hint: str,
    ) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._headers = {"Content-Type": "application/json", **headers}
        self._bounds, self._notices = bounds, notices
        self._refusal, self._hint = refusal, hint
        self._local = is_loopback(urlsplit(url).hostname or "")
        self._renamed: dict[str, str] = {}  # fields that the server rejected -> what is sent
        self._answered = monotonic()
        self._silent = False  # whether patience has run out
        self._probed = False  # whether a silent server was asked once more for these bodies

    def ask(self, bodies: Sequence[Mapping[str, Any]], workers: int) -> list[Completion]:
        """The completion of each request body, in order.

        Raises:
            InputError: the server refuses for good: key, model or address are wrong.
        """
        if not self._silent:
            self._answered = monotonic()
        self._probed = False
        stop = threading.Event()
        exchanges: set[_Exchange] = set()
        waiting: SimpleQueue[int] = SimpleQueue()
        finished: SimpleQueue[tuple[int, Completion | BaseException]] = SimpleQueue()
        for place in range(len(bodies)):
            waiting.put(place)

        def work() -> None:
            while not stop.is_set():
                try:
                    place = waiting.get_nowait()
                except Empty:
                    return
                try:
                    finished.put((place, self._one(bodies[place], stop, exchanges)))
                except BaseException as error:  # the thread that waits raises it
                    finished.put((place, error))

        for _ in range(min(workers, len(bodies))):
            threading.Thread(target=work, daemon=True).start()
        try:
            return _gathered(finished, len(bodies))
        finally:
            stop.set()
            for exchange in list(exchanges):
                exchange.end()

    def _one(
        self, body: Mapping[str, Any], stop: threading.Event, exchanges: set[_Exchange]
    ) -> Completion:
        """The completion of one body, tried again where that may help."""
        if self._silent and self._probed:
            return Completion("", f"the server answers nothing ({self._bounds})")
        self._probed = True
        trouble, tried = "", 0
        while tried < self._bounds.tries and not stop.is_set():
            tried += 1
            sent = self._sent(body)
            try:
                answer = self._posted(sent, exchanges)
            except Refused as error:
                trouble, pause = str(error), error.pause
                if error.code in _FOR_GOOD:
                    raise InputError(f"{self._refusal}: {trouble}; check {self._hint}") from None
                if error.code in (400, 422) and self._adapts(sent, error.words):
                    tried -= 1
                    continue
                if error.code not in _AGAIN:
                    break  # this prompt alone: too long, or met by a content filter
            except (OSError, http.client.HTTPException, ValueError) as error:
                trouble, pause = f"{type(error).__name__}: {one_line(str(error))}", math.nan
            else:
                self._answered, self._silent = monotonic(), False
                return completion(answer)
            if stop.is_set():
                break  # nobody waits for it any more
            if self._left() <= 0:
                self._silent = True
                break
            if tried < self._bounds.tries:
                self._notices.once("again", f"{trouble}; trying again, {self._bounds}")
                pause = 2.0 ** (tried - 1) if math.isnan(pause) else pause
                wait(stop, min(pause, _LONGEST, max(0.0, self._left())))
        return Completion("", f"no answer ({trouble}; {self._bounds})")

    def _left(self) -> float:
        """Seconds of patience that are left; one try is always made."""
        return self._answered + self._bounds.patience - monotonic()

    def _posted(self, body: Mapping[str, Any], exchanges: set[_Exchange]) -> bytes:
        request = urllib.request.Request(self._url, json.dumps(body).encode(), self._headers)
        exchange = _Exchange(self._local)
        exchanges.add(exchange)
        try:
            return exchange.post(request, self._bounds.timeout)
        finally:
            exchanges.discard(exchange)

    def _sent(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body with the fields that this server takes."""
        named = {self._renamed.get(name, name): value for name, value in body.items()}
        return {name: value for name, value in named.items() if name}

    def _adapts(self, sent: Mapping[str, Any], words: str) -> bool:
        """Whether the server rejected a field that it can be asked without.

        Newer models take `max_completion_tokens` for `max_tokens`, and no temperature.
        """
        if not _REJECTED.search(words):
            return False
        if "temperature" in words and "temperature" in sent:
            self._renamed["temperature"] = ""
            self._notices.once(
                "temperature", "the server takes no temperature 0: its verdicts may vary"
            )
            return True
        for name, other in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "")):
            if name in words and name in sent:
                self._renamed["max_tokens"] = other
                return True
        return False


class _Exchange:
    """One request and its answer, which another thread can end."""

    def __init__(self, local: bool) -> None:
        self._ended = False
        self._socket: socket.socket | None = None
        proxies = [urllib.request.ProxyHandler({})] if local else []
        handlers = (_Stay(), *proxies, *self._handlers())
        self._opener = urllib.request.build_opener(*handlers)

    def post(self, request: urllib.request.Request, timeout: float) -> bytes:
        """The answer's body.

        Raises:
            TimeoutError: it was ended, or is not complete after `timeout` seconds.
        """
        timer = threading.Timer(timeout, self.end)
        timer.daemon = True
        timer.start()
        try:
            with self._opener.open(request, timeout=timeout) as response:
                body = response.read(_BYTES)
        except urllib.error.HTTPError as error:
            raise Refused(error) from None
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            if self._ended:
                raise TimeoutError(f"no answer within {timeout:g} s") from None
            raise error
        finally:
            timer.cancel()
        if self._ended:
            raise TimeoutError(f"no whole answer within {timeout:g} s")
        return bytes(body)

    def end(self) -> None:
        """Close the connection, whatever waits for it."""
        self._ended = True
        if self._socket is not None:
            with suppress(OSError):  # it was closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _connected(self, made: socket.socket) -> None:
        self._socket = made
        if self._ended:
            made.close()
            raise TimeoutError

    def _handlers(self) -> tuple[urllib.request.BaseHandler, ...]:
        """urllib's handlers, with connections that can be ended."""
        exchange = self

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                exchange._connected(self.sock)

        class Secure(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                exchange._connected(self.sock)

        class OpenPlain(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, request)

        class OpenSecure(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Secure, request)

        return OpenPlain(), OpenSecure()


class _Stay(urllib.request.HTTPRedirectHandler):
    """No redirects: they would take the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _gathered(
    finished: SimpleQueue[tuple[int, Completion | BaseException]], count: int
) -> list[Completion]:
    """All completions in order, or the first error."""
    results: dict[int, Completion] = {}
    while len(results) < count:
        try:
            place, result = finished.get(timeout=0.5)  # a wait without an end cannot be interrupted
        except Empty:
            continue
        if isinstance(result, BaseException):
            raise result
        results[place] = result
    return [results[place] for place in range(count)]


def wait(stop: threading.Event, pause: float) -> None:
    """Wait, unless the work ends before."""
    stop.wait(pause)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, which no proxy can reach."""
    if host.lower().rstrip(".") == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _words(error: urllib.error.HTTPError) -> str:
    """The beginning of what a server says of its refusal, on one line."""
    try:
        with error:
            return one_line(error.read(_BYTES).decode("utf-8", "replace"), 2000)
    except (OSError, http.client.HTTPException, ValueError):
        return ""


def _seconds(header: str | None) -> float:
    """What a Retry-After header asks for, NaN where it is no number of seconds."""
    try:
        wanted = float(header or "")
    except ValueError:
        return math.nan
    return wanted if 0 <= wanted < math.inf else math.nan
