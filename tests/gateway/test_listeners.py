"""Where a process listens: what can be listened on, and what of TLS is of no use."""

import contextlib
import re
import socket
from pathlib import Path

import pytest

from gateway.listeners import CannotStart, bound, check_free, server
from gateway.units import Address


@pytest.mark.parametrize(
    "address", ["192.0.2.1:0", "unix:/nowhere/at/all.sock", "no-such-host.invalid:0"]
)
def test_an_address_that_is_not_ours_cannot_be_listened_on(address: str) -> None:
    with pytest.raises(CannotStart, match="cannot listen on"):
        check_free([Address.parse(address)])


@pytest.mark.parametrize(
    ("setting", "fixes"),
    [("listen", ("--listen", "LISTEN=")), ("admin_listen", ("--admin-listen", "in the file"))],
)
@pytest.mark.parametrize("kind", ["port", "socket"])
def test_a_taken_address_is_told_with_its_setting_and_what_to_do(
    tmp_path: Path, kind: str, setting: str, fixes: tuple[str, str]
) -> None:
    with contextlib.ExitStack() as held:
        address = Address.parse("127.0.0.1:0" if kind == "port" else f"unix:{tmp_path}/s")
        taken = bound(address, held)
        if kind == "port":
            address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(
            CannotStart, match=f"^cannot listen on {re.escape(str(address))}: "
        ) as told:
            bound(address, held, setting)
    for each in (f"`{setting}`", *fixes):
        assert each in str(told.value)


def test_a_free_address_stays_free_after_it_was_looked_at() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for _ in range(2):
        check_free([Address.parse(f"127.0.0.1:{port}")])


@pytest.mark.parametrize("text", ["", "no certificate\n"])
async def test_a_certificate_that_is_none_is_told_before_anything_is_served(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "cert.pem"
    file.write_text(text)
    with pytest.raises(CannotStart, match="^tls: the certificate or its key: "):
        server(None, ssl_certfile=str(file), ssl_keyfile=str(file))
