"""An engine's answer that breaks off is told to the caller as a failure, wherever it breaks."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest

from backends.launch import free_ports
from tests.e2e.conftest import CHAT, KEY, RunningGateway, configuration
from tests.e2e.cutting import Cutting
from tests.e2e.engines import Engines
from tests.fakes.client import Client
from tests.fakes.gateway import Command

pytestmark = pytest.mark.e2e

TALK, COMPLETE, MESSAGE = "/v1/chat/completions", "/v1/completions", "/v1/messages"
#: An answer of the length below is some 24 kB long as chat, 9 kB as messages.
TOKENS, FURTHEST = 96, 6000
STREAMS, AT_ONCE = 120, 6
_PROMPT = [{"role": "user", "content": "Tell me a long story."}]
BODIES: dict[str, dict[str, Any]] = {
    TALK: {"messages": _PROMPT, "ignore_eos": True},
    COMPLETE: {"prompt": "Once upon", "ignore_eos": True},
    # It knows no `ignore_eos`; its likeliest tokens are not the end.
    MESSAGE: {"messages": _PROMPT, "temperature": 0},
}


@asynccontextmanager
async def _behind(
    cutting: Cutting, engines: Engines, folder: Path
) -> AsyncIterator[RunningGateway]:
    file = folder / "cut.yaml"
    admin_port = next(free_ports(1))
    file.write_text(configuration(cutting.url, engines, admin_port))
    async with Command("serve", "--config", str(file)) as command:
        yield RunningGateway(command, await command.listening(), admin_port)


async def _stream(gateway: RunningGateway, path: str) -> list[bytes] | bytes:
    """The events of one stream, or the body of a 502. It ends properly, nothing is left over."""
    body = {"model": CHAT, "max_tokens": TOKENS, "stream": True, **BODIES[path]}
    async with await Client.open(gateway.port) as client:
        await client.post(path, body, gateway.headers[:1])
        status, _ = await client.read_head()
        if status == 502:
            return await client.read_body()
        assert status == 200
        events = [event async for event in client.read_events()]
        assert client.partial == b""
        return events


def _told_of_failure(path: str, events: list[bytes]) -> None:
    """Whole events, then an error frame, and nothing that says the answer is complete."""
    *answer, last = events
    assert answer, "the first event had passed before the cut"
    name, _, data = last.rpartition(b"data: ")
    error = json.loads(data).get("error")
    assert error, f"ends with {last!r}"
    assert "request id" in error["message"]
    if path == MESSAGE:
        assert name == b"event: error\n"
        assert error["type"] == "api_error"
    else:
        assert (name, error["code"]) == (b"", "upstream_error")
    for event in answer:
        data = event.rpartition(b"data: ")[2]
        assert b"error" not in json.loads(data)
    whole = b"".join(events)
    assert b"[DONE]" not in whole
    assert b"message_stop" not in whole


@pytest.mark.parametrize("how", ["rst", "fin"])
async def test_every_stream_that_is_cut_ends_with_an_error_and_no_terminator(
    how: Literal["rst", "fin"], engines: Engines, tmp_path: Path
) -> None:
    chance = random.Random(how)
    after = [0, 1, 2, *(chance.randrange(FURTHEST) for _ in range(STREAMS // 2 - 3))]
    paths = [chance.choice(list(BODIES)) for _ in after]
    async with Cutting(engines.chat.port, after, how) as cutting:
        async with _behind(cutting, engines, tmp_path) as gateway:
            turns = asyncio.Semaphore(AT_ONCE)

            async def one(path: str) -> None:
                async with turns:
                    told = await _stream(gateway, path)
                if isinstance(told, list):
                    _told_of_failure(path, told)
                else:
                    # A reset throws away what its receiver had not read yet: on a busy machine
                    # that may be the whole answer so far.
                    assert how == "rst"
                    assert b"request id" in told

            async with asyncio.TaskGroup() as group:
                for path in paths:
                    group.create_task(one(path))
            assert (cutting.cuts, cutting.left) == (len(after), 0)
            await engines.chat.until_idle(5)
            lines = [line for line in await gateway.logged(len(after)) if line["stream"]]
            assert {line["outcome"] for line in lines} == {"upstream_failed"}
            # Uncut again, the same gateway serves as if nothing had happened.
            for path in BODIES:
                events = await _stream(gateway, path)
                assert isinstance(events, list)
                assert events[-1].rstrip().endswith((b"[DONE]", b'"message_stop"}'))


async def test_the_openai_sdk_raises_on_a_stream_that_is_cut(
    engines: Engines, tmp_path: Path
) -> None:
    async def read(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model=CHAT,
            messages=[{"role": "user", "content": "Tell me a long story."}],
            max_tokens=TOKENS,
            stream=True,
        )
        async for _ in stream:
            pass

    async with Cutting(engines.chat.port, [900], "rst") as cutting:
        async with _behind(cutting, engines, tmp_path) as gateway:
            async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
                with pytest.raises(openai.APIError) as caught:
                    await read(client)
    assert caught.value.code == "upstream_error"


async def test_the_anthropic_sdk_raises_on_a_stream_that_is_cut(
    engines: Engines, tmp_path: Path
) -> None:
    async def read(client: anthropic.AsyncAnthropic) -> None:
        async with client.messages.stream(
            model=CHAT,
            messages=[{"role": "user", "content": "Tell me a long story."}],
            max_tokens=TOKENS,
        ) as stream:
            async for _ in stream:
                pass

    async with Cutting(engines.chat.port, [900], "rst") as cutting:
        async with _behind(cutting, engines, tmp_path) as gateway:
            async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=KEY) as client:
                with pytest.raises(anthropic.APIStatusError) as caught:
                    await read(client)
    assert caught.value.type == "api_error"
