"""Server software, one kind a file."""

from __future__ import annotations

from backends.base import Kind
from backends.kinds.openai import OpenAI
from backends.kinds.vllm import VLLM

KINDS: dict[str, Kind] = {kind.name: kind for kind in (VLLM(), OpenAI())}
