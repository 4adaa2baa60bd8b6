"""The command with a witness: `python -m tests.faults.counted FILE serve --config ...`.

Every five seconds the last line of FILE says how many tasks and how many objects there are in the
process, those that nobody waits for any more among them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
from pathlib import Path

from gateway.cli import main

EVERY = 5.0


def _counts() -> dict[str, int]:
    """In a function of its own: a list of all objects that lived on would keep them all alive."""
    gc.collect()
    objects = gc.get_objects()
    tasks = sum(isinstance(each, asyncio.Task) for each in objects)
    return {"tasks": tasks, "objects": len(objects)}


def _witness(file: Path, over: threading.Event) -> None:
    with file.open("a") as out:
        while not over.wait(EVERY):
            out.write(json.dumps(_counts()) + "\n")
            out.flush()


if __name__ == "__main__":
    _over = threading.Event()
    _thread = threading.Thread(target=_witness, args=(Path(sys.argv.pop(1)), _over), daemon=True)
    _thread.start()
    try:
        main()
    finally:
        _over.set()
        _thread.join()
