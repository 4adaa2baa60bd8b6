"""vLLM is asked for every path the gateway has."""

from __future__ import annotations

from backends.kinds.vllm import VLLM
from gateway.endpoints import ENDPOINTS


def test_vllm_serves_every_endpoint_itself() -> None:
    assert {endpoint.path for endpoint in ENDPOINTS} == VLLM.paths


def test_vllm_is_judged_by_its_figures_and_not_by_what_it_says_of_its_health() -> None:
    assert VLLM.figures == "/metrics"
