"""A server on this machine that speaks the chat-completions protocol, and fails on demand."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Behaviour = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One request, and the means to answer it."""

    handler: BaseHTTPRequestHandler
    body: Body
    number: int

    def send(self, status: int, payload: object, **headers: str) -> None:
        data = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
        kind = "text/html" if isinstance(payload, str) else "application/json"
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        # A client that has given up waiting is no fault of the server's.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.handler.wfile.write(data)

    def say(self, text: str | None, usage: tuple[int, int] | None = (100, 10)) -> None:
        message = {"role": "assistant", "content": text}
        answer: Body = {
            "id": f"chat-{self.number}",
            "object": "chat.completion",
            "created": 0,
            "model": self.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }
        if usage:
            used = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
            answer["usage"] = used | {"total_tokens": sum(usage)}
        self.send(200, answer)

    def fail(self, status: int, message: str, **headers: str) -> None:
        self.send(status, {"error": {"message": message, "type": "test"}}, **headers)

    def reset(self) -> None:
        """Break the connection without an answer."""
        linger = struct.pack("ii", 1, 0)
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.handler.connection.close()
        self.handler.close_connection = True

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    @property
    def question(self) -> str:
        """The last message that is a question to be judged."""
        return str(self.body["messages"][1]["content"])

    def shown(self, tag: str) -> str:
        """What stands between the tags of a question."""
        found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", self.question, re.DOTALL)
        assert found is not None
        return found[1]


def verdict(winner: str, reason: str = "so it is") -> str:
    return json.dumps({"reason": reason, "winner": winner})


def longer(exchange: Exchange) -> None:
    """A judge who takes the longer answer."""
    gap = len(exchange.shown("answer_a")) - len(exchange.shown("answer_b"))
    exchange.say(verdict("A" if gap > 0 else "B" if gap < 0 else "tie"))


@dataclass
class ChatServer:
    """What a test sees of the server.

    Attributes:
        url: Its `base_url`.
        behave: Answers a request; may be replaced at any time.
        requests: Bodies of all requests so far.
        keys: The API keys that came with them.
        most_at_once: The largest number of requests that were on their way together.
    """

    url: str
    behave: Behaviour = longer
    requests: list[Body] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Run a server until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body)
                state.keys.append(self.headers["Authorization"])
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                state.behave(Exchange(self, body, number))
            finally:
                with state.lock:
                    state.at_once -= 1

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    state = ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
