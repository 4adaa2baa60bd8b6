"""Any OpenAI-compatible server is asked for what all of them have."""

from __future__ import annotations

from backends.kinds.openai import OpenAI


def test_only_the_paths_of_the_openai_api_are_asked_for() -> None:
    assert OpenAI.paths == {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}


def test_it_is_not_known_to_publish_figures() -> None:
    assert OpenAI.figures is None
