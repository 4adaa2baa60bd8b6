"""The path of a request without a socket: protocol objects between transports that only keep.

Everything of the gateway that a request meets is the real thing, from the front's parser to the
back's. Both ends are played here, in one process and one thread, so that what is spent is the
gateway's own and the same each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from typing import Any

from backends.base import Replica
from backends.connection import Connection
from gateway.app import State
from gateway.composition import Composition
from gateway.config import load
from gateway.logs import LineLog
from gateway.port import DataPort
from tests.fakes.wire import Wire

KEY = "fg-speed-0123456789abcdef"
CONFIG = f"""
listen: 127.0.0.1:0
models:
  bench:
    kind: vllm
    replicas: ["http://127.0.0.1:1", "http://127.0.0.1:2"]
    upstream_model: served
    limits: {{concurrency: 100000}}
teams:
  search: {{models: [bench], limits: {{tokens_per_minute: 100000000000}}}}
keys:
  - name: ann
    team: search
    sha256: {hashlib.sha256(KEY.encode()).hexdigest()}
    limits: {{requests_per_minute: 100000000}}
"""
_JSON = "application/json"
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
_USAGE = b'{"prompt_tokens":260,"total_tokens":360,"completion_tokens":100}'
_ID = b'"id":"chatcmpl-0123456789abcdef0123456789abcdef"'
_PLAIN = (
    b"{" + _ID + b',"object":"chat.completion","created":1767225600,"model":"served",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"' + b"word " * 100 + b'",'
    b'"refusal":null,"tool_calls":[]},"logprobs":null,"finish_reason":"stop"}],"usage":'
    + _USAGE
    + b"}"
)
_CHUNK = (
    b"data: {" + _ID + b',"object":"chat.completion.chunk","created":1767225600,'
    b'"model":"served","choices":[{"index":0,"delta":{%b},"logprobs":null,'
    b'"finish_reason":%b,"token_ids":null}]%b}\n\n'
)


def request(size: int, *, stream: bool, path: str = CHAT, accept: str = _JSON) -> bytes:
    """A whole HTTP request as the OpenAI SDK sends it, its prompt `size` bytes long; it accepts
    JSON, unless its head is to differ.
    """
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x" * size}]
    asked = {"model": "bench", "messages": said, "max_tokens": 100, "temperature": 0.5}
    body = json.dumps({**asked, "stream": stream}).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1:8080",
        f"authorization: Bearer {KEY}",
        f"content-type: {_JSON}",
        f"accept: {accept}",
        "user-agent: OpenAI/Python 2.0.0",
        "x-stainless-lang: python",
        "x-stainless-retry-count: 0",
        "x-stainless-read-timeout: 600",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def plain_answer() -> list[bytes]:
    """What an engine sends, in its writes."""
    head = b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    return [
        head
        + b"content-length: %d\r\ncontent-type: application/json\r\n\r\n" % len(_PLAIN)
        + _PLAIN
    ]


def streamed_answer(events: int) -> list[bytes]:
    """The same for a stream: the head, then an event a write, usage and the end."""
    first = _CHUNK % (b'"role":"assistant","content":""', b"null", b"")
    word = _CHUNK % (b'"content":" word"', b"null", b"")
    last = _CHUNK % (b'"content":""', b'"stop"', b"")
    usage = b"data: {" + _ID + b',"object":"chat.completion.chunk","created":1767225600,'
    usage += b'"model":"served","choices":[],"usage":' + _USAGE + b"}\n\n"
    return _streamed([first, *[word] * events, last, usage, b"data: [DONE]\n\n"])


def message_answer(events: int) -> list[bytes]:
    """A stream in the Anthropic dialect."""
    usage = b'"usage":{"input_tokens":260,"output_tokens":%d}'
    started = b'"message":{"id":"msg_0","type":"message","role":"assistant","content":[],'
    started += b'"model":"served",' + usage % 0 + b"}"
    block = b'"index":0,"content_block":{"type":"text","text":""}'
    word = b'"index":0,"delta":{"type":"text_delta","text":" word"}'
    said = [
        _event(b"message_start", started),
        _event(b"content_block_start", block),
        *[_event(b"content_block_delta", word)] * events,
        _event(b"content_block_stop", b'"index":0'),
        _event(b"message_delta", b'"delta":{"stop_reason":"end_turn"},' + usage % events),
        _event(b"message_stop", b""),
    ]
    return _streamed(said)


def _event(kind: bytes, more: bytes) -> bytes:
    fields = b'"type":"%b"%b' % (kind, b"," + more if more else b"")
    return b"event: %b\ndata: {%b}\n\n" % (kind, fields)


def _streamed(said: list[bytes]) -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\ndate: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    head += b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%b\r\n" % (len(each), each) for each in said), b"0\r\n\r\n"]


class Engines:
    """Plays the model servers: what is written to one of its connections it answers.

    Mutable state: `answer`, in the reads in which it comes.
    """

    def __init__(self, composition: Composition, loop: asyncio.AbstractEventLoop) -> None:
        self.answer: list[bytes] = []
        self._loop = loop
        for pool in composition.routes.pools():
            for replica in pool.replicas:
                self._connect(composition, replica)

    def _connect(self, composition: Composition, replica: Replica) -> None:
        transport = composition.transport
        connection = Connection(transport, replica.origin, self._loop)
        connection.connection_made(Wire(lambda _: self._asked(connection)))
        connection.idle_since = self._loop.time() + 1e6  # it never grows old
        transport.keep(connection)

    def _asked(self, connection: Connection) -> None:
        self._loop.call_soon(self._say, connection, 0)

    def _say(self, connection: Connection, at: int) -> None:
        piece = self.answer[at]
        connection.get_buffer(len(piece))[: len(piece)] = piece
        connection.buffer_updated(len(piece))
        if at + 1 < len(self.answer):
            self._loop.call_soon(self._say, connection, at + 1)


class Path:
    """The gateway between its two ends, on the loop that runs.

    Mutable state: `_said`, the answer under way, and `_whole`, done with the last of it.
    """

    def __init__(self, log: int, config: str = CONFIG) -> None:
        """`log` is the descriptor that the lines of the log go to."""
        self._loop = asyncio.get_running_loop()
        loaded = load("speed.yaml", config, {})
        self._log = LineLog(log, 100_000)
        self.composition = Composition(loaded, "a secret", self._log, time.monotonic)
        self.engines = Engines(self.composition, self._loop)
        port = DataPort(self.composition.gateway, State(), 1000)
        server = port.server
        protocol: Any = server.config.http_protocol_class
        self._front = protocol(config=server.config, server_state=server.server_state, app_state={})
        self._front.connection_made(Wire(self._heard))
        self._said: list[bytes] = []
        self._whole = self._loop.create_future()

    async def ask(self, sent: bytes) -> bytes:
        """The whole answer to one whole request, head and body."""
        self._said = []
        self._whole = self._loop.create_future()
        self._front.data_received(sent)
        await self._whole
        while self.composition.gateway.live:  # the engine's own end may be still to come
            await asyncio.sleep(0)
        return b"".join(self._said)

    def _heard(self, data: bytes) -> None:
        self._said.append(data)
        whole = data.endswith(b"0\r\n\r\n") or b"content-length" in self._said[0]
        if whole:
            self._whole.set_result(None)

    def close(self) -> None:
        self._front.connection_lost(None)
        self._log.close(1.0)
