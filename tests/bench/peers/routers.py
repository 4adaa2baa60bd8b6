"""The routers written in Rust: vllm-router and sglang-router, each from its own environment.

Both run their documented server with its defaults, but for the policy: `power_of_two`, which is
what the gateway's `least_busy` does with two replicas. Their default, `cache_aware`, keeps a tree
of all prompts and costs more.
"""

from tests.bench.install import PACKAGES, installed
from tests.bench.peers.peer import Peer, Place, free_port


def vllm_router(place: Place) -> Peer | None:
    program = installed("vllm-router")
    if program is None:
        return None
    return _router("vllm-router", (str(program),), place)


def sglang_router(place: Place) -> Peer | None:
    program = installed("sglang-router")
    if program is None:
        return None
    python = str(program.parent / "python")
    return _router("sglang-router", (python, "-m", "sglang_router.launch_router"), place)


def _router(name: str, program: tuple[str, ...], place: Place) -> Peer:
    port, metrics_port = free_port(), free_port()
    argv = (
        *program,
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
        *("--policy", "power_of_two", "--worker-urls", *place.urls),
    )
    version = PACKAGES[name].requirement
    return Peer(name, argv, port, "/health", metrics_port=metrics_port, version=version)
