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


def test_what_is_no_dead_socket_is_left_alone(tmp_path: Path) -> None:
    """A typing error in `listen` must not cost a file, or another service its socket."""
    file, link, used = tmp_path / "fairgate.yaml", tmp_path / "link", tmp_path / "used"
    file.write_text("precious")
    link.symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(used))
        for path in (file, link, used):
            with pytest.raises(CannotStart, match="cannot listen on"):
                check_free([Address.parse(f"unix:{path}")])
        assert used.is_socket()
    assert (file.read_text(), link.is_symlink()) == ("precious", True)


def test_a_dead_socket_is_replaced_and_a_successor_s_is_not_removed(tmp_path: Path) -> None:
    """A gateway that serves to its end has left its path to the one that came after it."""
    path = tmp_path / "data.sock"
    address = Address.parse(f"unix:{path}")
    with contextlib.ExitStack() as later:
        with contextlib.ExitStack() as ending:
            bound(address, ending).close()
            successor = bound(address, later)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
            successor.accept()[0].close()
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "no certificate\n"])
async def test_a_certificate_that_is_none_is_told_before_anything_is_served(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "cert.pem"
    file.write_text(text)
    with pytest.raises(CannotStart, match="^tls: the certificate or its key: "):
        server(None, ssl_certfile=str(file), ssl_keyfile=str(file))
