"""LiteLLM's proxy as its page on production has it: one worker, no debug log, no database."""

import secrets

from tests.bench.install import PACKAGES, installed
from tests.bench.peers.peer import Peer, Place, fill, free_port

CONF = """\
model_list:
@deployments@
litellm_settings:
  set_verbose: false
  json_logs: true
  request_timeout: 600
general_settings:
  master_key: @key@
"""
DEPLOYMENT = """\
  - model_name: bench
    litellm_params: {model: hosted_vllm/served, api_base: "@url@/v1", api_key: none}"""
ENV = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks for prices over the network
}


def litellm(place: Place) -> Peer | None:
    program = installed("litellm")
    if program is None:
        return None
    port, key = free_port(), f"sk-{secrets.token_urlsafe(16)}"
    deployments = "\n".join(fill(DEPLOYMENT, {"url": url}) for url in place.urls)
    file = place.folder / "litellm.yaml"
    file.write_text(fill(CONF, {"deployments": deployments, "key": key}))
    address = ("--host", "127.0.0.1", "--port", str(port))
    return Peer(
        "litellm",
        (str(program), "--config", str(file), "--num_workers", "1", *address),
        port,
        "/health/liveliness",
        model="bench",
        headers=(f"authorization: Bearer {key}",),
        env=ENV,
        loose=True,
        share=0.02,
        version=PACKAGES["litellm"].requirement,
    )
