"""The guard: the whole tree ends with the program, and the program's status is passed on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends import guard

LEAVES_A_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True, stdout=subprocess.DEVNULL)
print(child.pid)
"""


def guarded(*program: str, parent: int | None = None) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, guard.__file__, str(parent or os.getpid()), "1", sys.executable]
    return subprocess.run([*argv, "-c", *program], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("program", "status"),
    [("", 0), ("raise SystemExit(9)", 9), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_status_is_the_programs_own(program: str, status: int) -> None:
    assert guarded(program).returncode == status


def test_a_process_the_program_left_behind_is_ended() -> None:
    left = int(guarded(LEAVES_A_CHILD).stdout)
    assert not Path(f"/proc/{left}").exists()


def test_nothing_is_started_when_the_parent_died_before_the_guard_looked() -> None:
    ended = guarded("print('ran')", parent=1)
    assert (ended.returncode, ended.stdout) == (1, "")
