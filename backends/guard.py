"""Runs one program, and leaves no process of its tree behind: `guard.py PARENT GRACE PROGRAM…`.

vLLM is a tree: the API server, the engine's core, its workers. A guard ends the tree when the
program ends, when it is told to (SIGTERM), and when the process PARENT dies, even by SIGKILL:
the kernel signals it then. A program that is told has GRACE seconds to end by itself. Run by path,
this imports nothing but the standard library.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
PR_SET_CHILD_SUBREAPER = 36


def guard(parent: int, grace: float, argv: list[str]) -> int:
    """Runs `argv` and takes its whole tree down: with it, on SIGTERM, and when `parent` dies."""
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    die_with_parent(signal.SIGTERM)
    # Whatever loses its parent in the tree becomes our child, so that we can end it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    engine = os.posix_spawnp(argv[0], argv, os.environ, setsigmask=[])
    deadline: float | None = None
    while True:
        left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        caught = signal.sigtimedwait(watched, left)
        if caught is None and deadline is not None:
            status = 128 + signal.SIGKILL
            break
        if caught is not None and caught.si_signo != signal.SIGCHLD:
            os.kill(engine, signal.SIGTERM)
            deadline = time.monotonic() + grace
        ended = reap()
        if engine in ended:
            status = ended[engine]
            break
    kill_children()
    return status


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when its parent dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def reap() -> dict[int, int]:
    """Status by pid of the children that have ended, as a shell counts it."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(found[1])
            ended[found[0]] = code if code >= 0 else 128 - code
    return ended


def kill_children() -> None:
    """Kills generation after generation: the children of a killed one become ours."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
