"""Every code block of README.md does what it says, run as pasted.

A comment on the line before a block says how it is tried; a bash, python or yaml block without one
fails:

    <!-- run: with-gateway -->   bash or python, while a gateway serves: it ends with status 0 and
                                 no call of it is refused. Also for commands that need no gateway
    <!-- run: serve -->          bash: starts a gateway, which says where it listens and then ends
                                 well on Ctrl-C
    <!-- run: make -->           bash: each line is a `make` that the Makefile knows (`make -n`)
    <!-- run: config -->         yaml: `fairgate check` finds it good; the blocks that follow find
                                 it in their folder as `fairgate.yaml`

What a reader would change is replaced before a block runs: any key that begins with `fg-` by that
of the gateway under test, 127.0.0.1:8080 and 127.0.0.1:9464 by its ports, http://127.0.0.1:8000
(an engine's usual address) by that of the running one. A gateway that a block starts takes any
free port.
"""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
from openai import OpenAI

from backends.launch import free_ports
from tests.e2e.conftest import EMBEDDING, RunningGateway
from tests.e2e.engines import Engines
from tests.fakes.gateway import until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TRIED = ("bash", "sh", "shell", "console", "python", "yaml", "yml")
WAYS = MappingProxyType(
    {
        "with-gateway": ("bash", "python"),
        "serve": ("bash",),
        "make": ("bash",),
        "config": ("yaml",),
    }
)
_FENCE = re.compile(
    r"^(?:<!-- run: (?P<way>[\w-]+) -->\n)?```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: the line it begins on, its language, how it is tried, and its text.

    `config` is the text of the last configuration before it.
    """

    line: int
    language: str
    way: str | None
    text: str
    config: str = ""


def blocks(markdown: str) -> list[Block]:
    """The blocks of a page, in order."""
    found, config = [], ""
    for fence in _FENCE.finditer(markdown):
        line = markdown.count("\n", 0, fence.start("text"))
        found.append(Block(line, fence["language"], fence["way"], fence["text"], config))
        if fence["way"] == "config":
            config = fence["text"]
    return found


BLOCKS = [
    block
    for block in blocks((ROOT / "README.md").read_text())
    if block.language in TRIED or block.way is not None
]


def test_readme_shows_a_call_in_bash_and_in_python() -> None:
    shown = {block.language for block in BLOCKS if block.way == "with-gateway"}
    assert shown == {"bash", "python"}


def test_every_block_says_how_it_is_tried() -> None:
    wrong = [
        f"README.md:{block.line}: {block.language} block with run: {block.way}"
        for block in BLOCKS
        if block.language not in WAYS.get(block.way or "", ())
    ]
    assert not wrong


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.way} line {block.line}")
async def test_a_block_does_what_it_says(
    block: Block, gateway: RunningGateway, engines: Engines, tmp_path: Path
) -> None:
    match block.way:
        case "with-gateway":
            await _run(block, gateway, engines, tmp_path)
        case "serve":
            await _serve(block, engines, tmp_path)
        case "make":
            _make(block)
        case "config":
            _check(block, tmp_path)
        case _:
            pytest.fail(f"README.md:{block.line}: no comment says how this block is tried")


async def _run(block: Block, gateway: RunningGateway, engines: Engines, folder: Path) -> None:
    before = len(gateway.log())
    (folder / "fairgate.yaml").write_text(block.config)
    ended = _ended(_interpreter(block.language, _replaced(block.text, gateway, engines)), folder)
    # A call of our own, so that the lines of all before it are written.
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.other_key) as client:
        client.embeddings.create(model=EMBEDDING, input="the end")
    await until(lambda: any(line["key"] == "bob" for line in gateway.log()[before:]))
    refused = [line for line in gateway.log()[before:] if line["outcome"] != "ok"]
    assert not refused, ended.stdout + ended.stderr


async def _serve(block: Block, engines: Engines, folder: Path) -> None:
    text = block.text.replace("http://127.0.0.1:8000", engines.chat.url)
    config = block.config
    for port, free in zip((8080, 9464), free_ports(2), strict=True):
        config = config.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
    if "--listen" not in text:
        text = text.replace("fairgate serve", "fairgate serve --listen 127.0.0.1:0")
    (folder / "fairgate.yaml").write_text(config)
    said = folder / "said"
    with said.open("wb") as file:
        process = subprocess.Popen(
            _interpreter("bash", text),
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        await until(
            lambda: b"fairgate listens on" in said.read_bytes() or process.poll() is not None,
            _PATIENCE,
        )
        assert process.poll() is None, said.read_text()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(_PATIENCE) == 0, said.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _make(block: Block) -> None:
    lines = [line.partition("#")[0].strip() for line in block.text.splitlines()]
    for line in filter(None, lines):
        assert line.split()[0] == "make", f"README.md:{block.line}: {line!r} is no make"
        _ended(["bash", "-c", line.replace("make", "make -n", 1)], ROOT)


def _check(block: Block, folder: Path) -> None:
    (folder / "fairgate.yaml").write_text(block.text)
    # What comes from the environment is the reader's own to give.
    names = re.findall(r"(?<!\$)\$\{(\w+)\}|_env: (\w+)", block.text)
    given = {name: "given-by-the-reader" for pair in names for name in pair if name}
    _ended(["fairgate", "check", "--config", "fairgate.yaml"], folder, given)


def _ended(
    argv: list[str], folder: Path, given: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A program run to its end, which must be a good one."""
    ended = subprocess.run(
        argv,
        cwd=folder,
        env={**_environment(), **(given or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def _replaced(text: str, gateway: RunningGateway, engines: Engines) -> str:
    text = re.sub(r"\bfg-[\w.…-]+", gateway.key, text)
    for place in ("127.0.0.1:8080", "localhost:8080"):
        text = text.replace(place, f"127.0.0.1:{gateway.port}")
    for place in ("127.0.0.1:9464", "localhost:9464"):
        text = text.replace(place, f"127.0.0.1:{gateway.admin_port}")
    return text.replace("http://127.0.0.1:8000", engines.chat.url)


def _interpreter(language: str, text: str) -> list[str]:
    if language == "python":
        return [sys.executable, "-c", text]
    return ["bash", "-e", "-u", "-o", "pipefail", "-c", text]


def _environment() -> dict[str, str]:
    """The reader's, with the product's commands on PATH and nothing of the tests'."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAIRGATE_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
