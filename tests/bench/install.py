"""`python -m tests.bench.install`: the peers that the package index has, each by itself.

Every one gets an environment of its own below the user's data folder, as their libraries' pins
fight with everyone's. One that cannot be installed is reported and the others go on.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.install import pip_settings

#: Written last: an environment without it, or with another version in it, is made anew.
MARKER = "installed.txt"
LAST_LINES = 8


class Failed(Exception):
    """A step did not work; the message is the end of its output."""


@dataclass(frozen=True)
class Package:
    """What is asked for, and the program that must be there afterwards.

    `any_version` are the libraries whose pin is not kept: mirrors have the newest ones late.
    """

    requirement: str
    program: str
    any_version: Sequence[str] = ()


PACKAGES = {
    "vllm-router": Package("vllm-router==0.1.17", "vllm-router"),
    "sglang-router": Package("sglang-router==0.3.2", "sglang-router"),
    "litellm": Package(
        "litellm[proxy]==1.109.1",
        "litellm",
        # Certificates, and what its database and its enterprise edition need.
        any_version=("certifi", "litellm-proxy-extras", "litellm-enterprise"),
    ),
}


def home(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where a peer lives: FAIRGATE_PEERS_HOME, else the user's data folder."""
    if told := environ.get("FAIRGATE_PEERS_HOME"):
        return Path(told).expanduser() / name
    data = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "fairgate" / "peers" / name


def installed(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The peer's program, if it was installed to its end in the version that is wanted."""
    folder, package = home(name, environ), PACKAGES[name]
    with contextlib.suppress(OSError):
        if (folder / MARKER).read_text().strip() == package.requirement:
            return folder / "env" / "bin" / package.program
    return None


def install(name: str, say: Callable[[str], None]) -> bool:
    """Makes the environment unless it is there; whether the peer can be used."""
    package, folder = PACKAGES[name], home(name)
    if installed(name):
        say(f"{name}: {package.requirement} is there")
        return True
    say(f"{name}: installing {package.requirement} in {folder}")
    started = time.monotonic()
    try:
        _make(package, folder)
    except (Failed, OSError) as exc:
        say(f"{name}: FAILED, left out:\n{exc}")
        return False
    say(f"{name}: done after {time.monotonic() - started:.0f} s")
    return True


def _make(package: Package, folder: Path) -> None:
    """uv finds the versions, as pip cannot leave out a pin; pip fetches them, as it does here."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted, overrides, versions = (
        str(folder / name) for name in ("wanted.txt", "overrides.txt", "versions.txt")
    )
    Path(wanted).write_text(f"{package.requirement}\n")
    Path(overrides).write_text("".join(f"{each}\n" for each in package.any_version))
    env = folder / "env"
    python = str(env / "bin" / "python")
    pip = (python, "-m", "pip")
    _run(sys.executable, "-m", "venv", str(env))
    _run(*pip, "install", "--quiet", "uv")
    sources = _sources(_run(*pip, "config", "list"))
    resolve = (str(env / "bin" / "uv"), "pip", "compile", "--python", python, "--quiet")
    _run(*resolve, *sources, "--overrides", overrides, "--output-file", versions, wanted)
    _run(*pip, "install", "--quiet", "--no-deps", "--requirement", versions)
    if not (env / "bin" / package.program).is_file():
        raise Failed(f"{package.requirement} has no program {package.program}")
    (folder / MARKER).write_text(f"{package.requirement}\n")


def _sources(config: Sequence[str]) -> list[str]:
    """pip's own sources as uv's options: the best version of all of them, as pip takes it."""
    setting = pip_settings(config)
    options = ["--index-strategy", "unsafe-best-match"]
    for name, option in (
        ("index-url", "--default-index"),
        ("extra-index-url", "--extra-index-url"),
        ("find-links", "--find-links"),
    ):
        for source in setting.get(name, "").split():
            options += [option, source]
    return options


def _run(*argv: str) -> list[str]:
    """The lines of its output; Failed with the last of them."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = done.stdout.splitlines()
    if done.returncode != 0:
        raise Failed("\n".join(f"  {line}" for line in lines[-LAST_LINES:]))
    return lines


def main(argv: Sequence[str]) -> int:
    names = argv or list(PACKAGES)
    if unknown := set(names) - set(PACKAGES):
        print(f"no such peer: {', '.join(sorted(unknown))}; known: {', '.join(PACKAGES)}")
        return 2
    results = [install(name, lambda line: print(line, flush=True)) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
