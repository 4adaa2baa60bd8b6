"""The stand-in and the load generator agree on every byte, and the generator sees a wrong one."""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench import running
from tests.bench.peers.peer import Peer, free_port

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/messages"]
Change = Callable[[list[bytes]], list[bytes]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    running.build(folder)
    return folder


@pytest.fixture(scope="module")
def ports(programs: Path) -> Iterator[list[int]]:
    with running.standin(programs, running.cores()[1]) as (_, ports):
        yield ports


def load(programs: Path, port: int, *options: str) -> dict[str, float]:
    arguments = ["--port", str(port), "--timeout", "10", *options]
    return running.load(programs, running.cores()[0], arguments)


@pytest.mark.parametrize("path", [*PATHS, "/v1/embeddings"])
@pytest.mark.parametrize("how", [(), ("--loose",)])
def test_200_plain_answers_arrive_whole(
    programs: Path, ports: list[int], path: str, how: tuple[str, ...]
) -> None:
    options = ("--requests", "200", "--connections", "8", "--path", path, *how)
    result = load(programs, ports[0], *options)
    assert (result["requests"], result["errors"]) == (200, 0), result["first_error"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("how", ["--usage", "--loose"])
def test_20_streams_arrive_whole_and_in_order(
    programs: Path, ports: list[int], path: str, how: str
) -> None:
    options = ("--stream", "--path", path, "--requests", "20", "--connections", "4", how)
    result = load(programs, ports[1], *options)
    assert result["errors"] == 0, result["first_error"]
    assert (result["requests"], result["events"]) == (20, 2000)


def test_a_400_kb_prompt_is_read_whole(programs: Path, ports: list[int]) -> None:
    options = ("--requests", "20", "--connections", "4", "--prompt-bytes", "400000")
    assert load(programs, ports[0], *options)["errors"] == 0


def test_a_paced_stream_comes_event_by_event(programs: Path, ports: list[int]) -> None:
    running.fetch(ports[0], "/pace/10000")
    try:
        result = load(programs, ports[0], "--stream", "--events", "20", "--requests", "1")
    finally:
        running.fetch(ports[0], "/pace/0")
    assert (result["errors"], result["events"]) == (0, 20)
    assert result["seconds"] >= 0.2


def test_a_client_that_leaves_is_noticed(programs: Path, ports: list[int]) -> None:
    running.fetch(ports[0], "/pace/1000000")
    body = b'{"model":"served","stream":true}'
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=5) as client:
        head = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
        client.sendall(head + body)
        assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
    running.fetch(ports[0], "/pace/0")
    assert b"standin_aborted_total 1\n" in running.fetch(ports[0], "/metrics")


@pytest.mark.slow
def test_a_connection_on_which_nothing_is_asked_is_closed_after_5_s(ports: list[int]) -> None:
    with socket.create_connection(("127.0.0.1", ports[0]), timeout=10) as client:
        for pause in (3, 0):
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
            time.sleep(pause)
        answered = time.monotonic()
        assert client.recv(4096) == b""
        assert time.monotonic() - answered > 4.9


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_an_answer_for_another_model_is_an_error(
    programs: Path, ports: list[int], stream: tuple[str, ...]
) -> None:
    result = load(programs, ports[0], "--requests", "3", "--model", "other", *stream)
    assert (result["requests"], result["errors"]) == (0, 3)


def test_a_peer_that_ends_at_once_is_told_with_its_last_words() -> None:
    program = "import sys; print('x' * 100_000 + 'no library'); sys.exit(1)"
    peer = Peer("broken", (sys.executable, "-c", program), free_port(), "/")
    with contextlib.closing(running.Running(peer, *running.cores())) as one:
        with pytest.raises(running.NotStarted, match="no library"):
            one.wait_ready()


def test_nobody_listening_is_an_error_and_ends(programs: Path) -> None:
    assert load(programs, free_port(), "--requests", "3")["errors"] == 3


def lose_one(chunks: list[bytes]) -> list[bytes]:
    return chunks[:7] + chunks[8:]


def swap_two(chunks: list[bytes]) -> list[bytes]:
    return [*chunks[:7], chunks[8], chunks[7], *chunks[9:]]


def leave_out_done(chunks: list[bytes]) -> list[bytes]:
    return [chunk for chunk in chunks if b"[DONE]" not in chunk]


def someone_elses(chunks: list[bytes]) -> list[bytes]:
    return [chunk.replace(b"1000000000", b"1000000001") for chunk in chunks]


def unharmed(chunks: list[bytes]) -> list[bytes]:
    return chunks


def tamper_plain(listener: socket.socket, engine: int, old: bytes, new: bytes) -> None:
    """Passes one answer on, `old` in it replaced by `new` of the same length."""
    client, _ = listener.accept()
    with client, socket.create_connection(("127.0.0.1", engine), timeout=5) as upstream:
        upstream.sendall(client.recv(65536))
        head, _, body = upstream.recv(65536).partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        while len(body) < length:
            body += upstream.recv(65536)
        client.sendall(head + b"\r\n\r\n" + body.replace(old, new))
        client.recv(1)


VECTOR = b"[0.10000000007"


@pytest.mark.parametrize(
    ("path", "old", "new", "how"),
    [
        ("/v1/messages", b"1000000000", b"1000000001", ()),
        ("/v1/embeddings", b"embd-", b"bmde-", ()),
        ("/v1/embeddings", VECTOR, b"[0.10000000017", ()),
        ("/v1/embeddings", VECTOR, b"[0.10000000017", ("--loose",)),
        ("/v1/embeddings", b"3,", b"4,", ("--loose",)),
    ],
)
def test_an_answer_of_another_request_is_an_error(
    programs: Path, ports: list[int], path: str, old: bytes, new: bytes, how: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=tamper_plain, args=(listener, ports[0], old, new))
        thread.start()
        result = load(programs, listener.getsockname()[1], "--requests", "1", "--path", path, *how)
        thread.join(10)
    assert (result["requests"], result["errors"]) == (0, 1)


def tamper(listener: socket.socket, engine: int, change: Change) -> None:
    """Passes one streamed answer on, its chunks changed."""
    client, _ = listener.accept()
    with client, socket.create_connection(("127.0.0.1", engine), timeout=5) as upstream:
        upstream.sendall(client.recv(65536))
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += upstream.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        chunks = [event + b"\n\n\r\n" for event in body.split(b"\n\n\r\n")[:-1]]
        client.sendall(head + b"\r\n\r\n" + b"".join(change(chunks)) + b"0\r\n\r\n")
        client.recv(1)  # until the generator is done


@pytest.mark.parametrize(
    ("change", "errors"),
    [(unharmed, 0), (lose_one, 1), (swap_two, 1), (leave_out_done, 1), (someone_elses, 1)],
)
def test_a_changed_stream_is_an_error(
    programs: Path, ports: list[int], change: Change, errors: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=tamper, args=(listener, ports[0], change))
        thread.start()
        port = listener.getsockname()[1]
        result = load(programs, port, "--stream", "--requests", "1", "--events", "20")
        thread.join(10)
    assert result["errors"] == errors, result["first_error"]
