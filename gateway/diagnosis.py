"""What keeps a server from serving, in words: those of `check --probe` and of the diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from backends.base import Origin
from backends.errors import BackendError, ConnectFailed, Refused
from gateway.settings import ReplicaSettings

#: Python's names for what its sockets met, as people say it. TLS has several, with details.
_HOW = {
    "ConnectionRefusedError": "refused",
    "ConnectionResetError": "reset",
    "SSLCertVerificationError": "its certificate is not trusted",
    "SSLError": "TLS failed",
    "OSError": "unreachable",
}


def place(where: str, models: Iterable[str]) -> str:
    """A server and the models it is to serve: `http://gpu1:8000 [llama, qwen]`."""
    names = ", ".join(models)
    return f"{where} [{names}]" if names else where


def silence(exc: BackendError, server: ReplicaSettings, origin: Origin) -> str:
    """Why a server did not tell which models it has, and what to do about it."""
    said = str(exc).removeprefix(f"{origin}: ")
    if isinstance(exc, ConnectFailed):
        return f"no connection ({_how(said)}){_advice(said)}"
    if isinstance(exc, Refused):
        return _refusal(exc.status, server)
    return f"no list of models: {said}"


def misnamed(name: str, wanted: str, has: Sequence[str]) -> str:
    """That a server has not what the model `name` is called there; empty where it has."""
    if wanted in has:
        return ""
    told = ", ".join(has[:10]) or "nothing"
    return f"does not serve {wanted}, it serves {told}: set upstream_model of {name}"


def _how(said: str) -> str:
    kind, colon, detail = said.partition(": ")
    return f"{_HOW.get(kind, kind)}{colon}{detail}"


def _advice(said: str) -> str:
    if said.startswith("SSLCertVerificationError"):
        return ": name its authority with ca_file, and write the URL as its certificate has it"
    return ": does it speak TLS? else write http://" if said.startswith("SSL") else ""


def _refusal(status: int, server: ReplicaSettings) -> str:
    if status >= 500:
        return f"answers {status} to {server.base}/models"
    if status not in (401, 403):
        return f"answers {status} to {server.base}/models: is the path in its URL right?"
    if server.api_key_env is None:
        return f"answers {status}: it wants a credential; name its variable with api_key_env"
    return f"answers {status}: it does not take the credential in {server.api_key_env}"
