"""vLLM is asked for every path the gateway has."""

from __future__ import annotations

from backends.kinds.vllm import VLLM
from gateway.endpoints import ENDPOINTS


def test_vllm_serves_every_endpoint_itself() -> None:
    assert {endpoint.path for endpoint in ENDPOINTS} == VLLM.paths
