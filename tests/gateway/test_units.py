"""Single settings as text: each parser takes what it says and repeats nothing that it refuses."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import units
from gateway.units import Address


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("250ms", 0.25), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), ("31d", 2678400)],
)
def test_a_duration_is_seconds(text: str, value: float) -> None:
    assert units.seconds(text) == value
    assert units.seconds(units.duration_text(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("3B", 3), ("64KiB", 65536), ("32MiB", 1 << 25), ("1GiB", 1 << 30)],
)
def test_a_size_is_bytes(text: str, value: int) -> None:
    assert units.size(text) == value
    assert units.size_text(value) == text


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 s", "1e3s", "٣s", "inf", "32d", "1S", "1s\n"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted a duration"):
        units.seconds(text)


@pytest.mark.parametrize("text", ["", "1.5MiB", "-1B", "1KB", "1mib", "9999999999GiB", "1B\n"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted a size"):
        units.size(text)


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:8080", Address(host="127.0.0.1", port=8080), True),
        ("localhost:0", Address(host="localhost", port=0), True),
        ("0.0.0.0:80", Address(host="0.0.0.0", port=80), False),
        ("gateway.internal:65535", Address(host="gateway.internal", port=65535), False),
        ("[::1]:80", Address(host="::1", port=80), True),
        ("[::]:80", Address(host="::", port=80), False),
        ("unix:/run/f.sock", Address(path="/run/f.sock"), True),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: Address, loopback: bool) -> None:
    assert Address.parse(text) == address
    assert str(address) == text
    assert address.loopback is loopback


@pytest.mark.parametrize(
    "text",
    ["", ":80", "8080", "h:", "h:x", "h:65536", "::1:80", "[::1]", "[x]:80", "[:::]:80", "h h:1",
     "http://h:80", "unix:run", "unix:", "unix:/a\0", "unix:/" + "a" * 107, "h:80\n"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)


@pytest.mark.parametrize(
    "text",
    ["h", "http://", "http:///v1", "ftp://h", "http://h:0", "http://h:99999", "http://h:x", "http://[",
     "http://u:p@h", "http://h?a", "http://h#a", "http://h/\xe9", "http://h /", "unix:/s"],
)  # fmt: skip
def test_what_is_no_server_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        units.server_url(text)


def test_a_name_shows_every_character_it_has() -> None:
    assert units.model_name("meta-llama/Llama-3.1-8B:q4") == "meta-llama/Llama-3.1-8B:q4"
    assert units.label("ann's laptop") == "ann's laptop"
    for text in ("", "a" * 129, "a b", "a\n", "a\u200b", "\ud800"):
        with pytest.raises(ValueError, match="wanted a name"):
            units.model_name(text)
    for text in ("", "a" * 129, " a", "a\n", "\x1b[1m"):
        with pytest.raises(ValueError, match="wanted a name"):
            units.label(text)


def test_networks_and_origins_are_checked() -> None:
    assert units.network("10.0.0.0/8") == "10.0.0.0/8"
    assert units.network("::1") == "::1/128"
    assert units.origin("*") == "*"
    assert units.origin("https://a.example:8443") == "https://a.example:8443"
    # As browsers send them: what is written otherwise would never be met.
    assert units.origin("HTTPS://A.example:443") == "https://a.example"
    assert units.origin("http://a.example:443") == "http://a.example:443"
    assert units.origin("http://[::1]:80") == "http://[::1]"
    for never in ("https://a.example/", "https://*.a.example", "https://é.example", "https://a:x"):
        with pytest.raises(ValueError, match="wanted an origin"):
            units.origin(never)


def test_a_host_of_media_is_one_that_can_be_met() -> None:
    assert units.media_host("Images.Example.com") == "images.example.com"
    for never in ("https://a.example", "*.example", "a.example:443", "a.example.", "a/b", " ", "é"):
        with pytest.raises(ValueError, match="wanted a host"):
            units.media_host(never)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h",
        "redis://h/",
        "redis://user:a%40b@h:6379/3?ssl_ca_certs=/etc/ca.pem",
        "rediss://[::1]:6380/0",
        "redis+sentinel://:secret@a,b:26379/mymaster",
        "redis+sentinel://a/mymaster/1?ssl=true",
        "redis+cluster://a:7000,[::1]:7001",
        "redis+cluster://a/0",
    ],
)
def test_every_form_of_a_redis_url_is_taken_as_it_is(url: str) -> None:
    assert units.redis_url(url) == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis:h", "wanted redis://, rediss://"),
        ("REDIS://h", "wanted redis://, rediss://"),
        ("redis://", "wanted redis://host or host:port"),
        ("redis:///0", "wanted redis://host or host:port"),
        ("redis://h:port/0", "the port from 1 to 65535"),
        ("redis://h:70000/0", "the port from 1 to 65535"),
        ("redis://h:0/0", "the port from 1 to 65535"),
        ("redis://[::1/0", "wanted redis://host or host:port"),
        ("redis://:a#b@h/0", "# is %23"),
        ("redis://u:a/b@h/0", "/ is %2F"),
        ("redis://a b/0", "wanted redis://host or host:port"),
        ("redis://h/cache", "wanted a database's number after the host"),
        ("redis://a,b/0", "several hosts are for redis+sentinel:// and redis+cluster://"),
        ("redis+sentinel://a,b", "wanted the service's name after the hosts"),
        ("redis+sentinel://a//0", "wanted the service's name after the hosts"),
        ("redis+sentinel://a/mymaster/one", "wanted the service's name after the hosts"),
        ("redis+cluster://a,,b", "wanted redis+cluster://host or host:port"),
        ("redis+cluster://a/1", "a cluster has no databases"),
    ],
)
def test_a_redis_url_that_leads_nowhere_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        units.redis_url(url)


PARSERS = (
    units.seconds,
    units.size,
    Address.parse,
    units.model_name,
    units.label,
    units.digest,
    units.environment_name,
    units.midnight,
    units.network,
    units.origin,
    units.redis_url,
    units.server_url,
)


@given(st.sampled_from(PARSERS), st.text(max_size=20))
def test_a_parser_raises_nothing_but_value_error(parser: object, text: str) -> None:
    assert callable(parser)
    try:
        parser(text)
    except ValueError:
        return


@pytest.mark.parametrize("parser", PARSERS[2:])
def test_a_refusal_never_repeats_the_text(parser: object) -> None:
    assert callable(parser)
    with pytest.raises(ValueError) as caught:
        parser(" sk-secret@\n")
    assert "sk-secret" not in str(caught.value)
