"""What keeps a server from serving, in the words of `check --probe` and of the diagnostics."""

import pytest

from backends.base import Origin
from backends.errors import BackendError, BadAnswer, ConnectFailed, Refused
from gateway.diagnosis import misnamed, place, silence
from gateway.settings import ReplicaSettings

ORIGIN = Origin("gpu1", 8000)
OPEN = ReplicaSettings(url="http://gpu1:8000")
KEYED = ReplicaSettings(url="http://gpu1:8000", api_key_env="TOKEN", api_key="sk", insecure=True)


@pytest.mark.parametrize(
    ("exc", "server", "told"),
    [
        (ConnectFailed(f"{ORIGIN}: ConnectionRefusedError"), OPEN, "no connection (refused)"),
        (ConnectFailed(f"{ORIGIN}: no connection in time"), OPEN, "(no connection in time)"),
        (
            ConnectFailed(f"{ORIGIN}: SSLCertVerificationError: self-signed"),
            OPEN,
            "no connection (its certificate is not trusted: self-signed): name its authority with",
        ),
        (ConnectFailed(f"{ORIGIN}: SSLError"), OPEN, "(TLS failed): does it speak TLS?"),
        (Refused(401), OPEN, "answers 401: it wants a credential; name its variable with api_key_"),
        (Refused(403), KEYED, "answers 403: it does not take the credential in TOKEN"),
        (Refused(404), OPEN, "answers 404 to /v1/models: is the path in its URL right?"),
        (BadAnswer("/v1/models is not JSON"), OPEN, "no list of models: /v1/models is not JSON"),
    ],
    ids=str,
)
def test_a_silence_is_told_with_what_to_do(
    exc: BackendError, server: ReplicaSettings, told: str
) -> None:
    said = silence(exc, server, ORIGIN)
    assert told in said
    assert type(exc).__name__ not in said


def test_a_server_that_is_not_ready_yet_is_not_asked_elsewhere() -> None:
    assert silence(Refused(503), OPEN, ORIGIN) == "answers 503 to /v1/models"


def test_a_wrong_name_is_told_with_those_there_are() -> None:
    assert misnamed("llama", "llama", ["qwen", "llama"]) == ""
    told = "does not serve big, it serves qwen, tiny: set upstream_model of llama"
    assert misnamed("llama", "big", ["qwen", "tiny"]) == told
    assert "it serves nothing" in misnamed("llama", "big", [])


def test_a_place_has_its_models() -> None:
    assert place("http://gpu1:8000", ["a", "b"]) == "http://gpu1:8000 [a, b]"
    assert place("http://gpu1:8000", []) == "http://gpu1:8000"
