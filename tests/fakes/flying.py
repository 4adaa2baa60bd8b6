"""A call on its way to an engine and the attempt it belongs to, where nothing flies."""

from __future__ import annotations

from backends.errors import BackendError


class Flying:
    """A call on its way. Mutable state: `failures`, what it was ended with."""

    def __init__(self) -> None:
        self.failures: list[BackendError] = []

    def fail(self, exc: BackendError) -> None:
        self.failures.append(exc)

    def pause(self) -> None:
        return None

    def resume(self) -> None:
        return None


class Waiting:
    """An attempt whose engine last spoke at `heard`."""

    def __init__(self, heard: float, *, movable: bool = True) -> None:
        self.heard = heard
        self._movable = movable

    def movable(self) -> bool:
        return self._movable
