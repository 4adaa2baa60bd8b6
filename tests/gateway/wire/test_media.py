"""Media in messages: `data:` URLs within the caps, and no way past the one parser."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import Raw

from gateway.errors import InvalidRequest
from gateway.settings import Caps, Media
from gateway.wire import caps

CAPS = Caps()
HOSTS = Caps(media=Media(hosts=("images.example.com", "cdn")))
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def message(*parts: object) -> list[object]:
    return [{"role": "user", "content": list(parts)}]


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def accept(messages: object, allowed: Caps = CAPS) -> None:
    caps.messages("messages", Raw(json.dumps(messages).encode()), allowed)


def refuse(messages: object, allowed: Caps = CAPS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        accept(messages, allowed)
    assert caught.value.param == "messages"
    return str(caught.value)


#: Each names a host or a file that a server must not be made to fetch; none is the host allowed.
TRICKS = """
http://images.example.com/a.png
https://evil.example.com/a.png
https://images.example.com.evil.org/a.png
https://images.example.com@evil.org/a.png
https://evil.org@images.example.com/a.png
https://user:pass@images.example.com/a.png
https://images.example.com:pass@evil.org/a.png
https://images.example.com\\@evil.org/a.png
https://evil.org\\@images.example.com/a.png
https://evil.org\\.images.example.com/a.png
https:\\\\images.example.com/a.png
https://images.example.com/\\@evil.org/a.png
https:/images.example.com/a.png
https:images.example.com/a.png
https:///images.example.com/a.png
https:////images.example.com/a.png
//images.example.com/a.png
https://images.example.com:8443/a.png
https://images.example.com:80/a.png
https://images.example.com:x/a.png
https://images.example.com:99999/a.png
https://images.example.com:-443/a.png
https://images.example.com#@evil.org/a.png
https://evil.org#.images.example.com/a.png
https://evil.org?images.example.com/a.png
https://evil.org/images.example.com/a.png
https://images.example.com./a.png
https://.images.example.com/a.png
https://evil.images.example.com/a.png
https://evilcdn/a.png
https://images.example.com%2eevil.org/a.png
https://images.example.com%00.evil.org/a.png
https://images.example.com%5c@evil.org/a.png
https://images%2eexample.com/a.png
https://xn--imges-example-com/a.png
https://images.example.com\u3002evil.org/a.png
https://images\uff0eexample\uff0ecom/a.png
https://\u0069mages.exampl\u0435.com/a.png
https://ima\u00adges.example.com/a.png
https://evil.org\uff0f.images.example.com/a.png
https://127.0.0.1/a.png
https://127.1/a.png
https://2130706433/a.png
https://0x7f000001/a.png
https://0177.0.0.1/a.png
https://0/a.png
https://localhost/a.png
https://169.254.169.254/latest/meta-data
https://[::1]/a.png
https://[::ffff:169.254.169.254]/a.png
https://[fe80::1%25eth0]/a.png
https://[images.example.com]/a.png
https://[::1/a.png
HTTPS://images.example.com/a.png
file:///etc/passwd
file:/etc/passwd
file://images.example.com/etc/passwd
ftp://images.example.com/a.png
gopher://images.example.com/_
jar:https://images.example.com!/a.png
blob:https://images.example.com/a
javascript:alert(1)
data:text/html,<script>
data:image/png,raw
data:image/png;base64
data:;base64,AAAA
data:image/png;base64,AAAA,AAAA
data:image/png;base64,AA%41A
data:image/png;base64,AAAA#https://evil.org
DATA:image/png;base64,AAAA
data:video/jpeg;base64,AAAA
data:video/x-motion-jpeg;base64,AAAA
data:application/json;url=https://evil.org,x
s3://bucket/key
image.png
../image.png
""".split()
SPACED = [
    " https://images.example.com/a.png",
    "https://images.example.com/a.png\n",
    "https://images.example.com\t/a.png",
    "ht\ntps://images.example.com/a.png",
    "https://images.example.com\r\n@evil.org/a.png",
    "https://evil.org\x00.images.example.com/a.png",
    "\x00https://images.example.com/a.png",
    "data:image/png;base64,AAAA\n@evil.org",
]
URLS = pytest.mark.parametrize("url", TRICKS + SPACED)


@URLS
def test_no_url_is_fetched_by_default(url: str) -> None:
    assert "not allowed" in refuse(message(picture(url)))


@URLS
def test_no_trick_makes_another_host_of_an_allowed_one(url: str) -> None:
    assert "not allowed" in refuse(message(picture(url)), HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.com/a.png",
        "https://images.example.com:443/a.png?x=@evil.org",
        "https://images.example.com",
        "https://IMAGES.example.com/a.png",
        "https://cdn/a.png",
    ],
)
def test_an_allowed_host_is_fetched_over_https(url: str) -> None:
    accept(message(picture(url)), HOSTS)
    refuse(message(picture(url)))


def test_every_url_passes_where_urls_are_allowed() -> None:
    accept(message(picture("http://anywhere.example")), Caps(media=Media(urls="allow")))


def test_hosts_narrow_what_is_allowed() -> None:
    some = Caps(media=Media(urls="allow", hosts=("cdn",)))
    accept(message(picture("https://cdn/a.png")), some)
    refuse(message(picture("https://evil.example.com/a.png")), some)


BAD = "http://169.254.169.254/"
#: Every way to put a URL into a message, in both dialects and in vLLM's own forms.
WAYS: list[Callable[[str], object]] = [
    lambda url: message(picture(url)),
    lambda url: message({"type": "text", "text": "x"}, picture(url)),
    lambda url: [*message(), *message(picture(url))],
    lambda url: message({"type": "image_url", "image_url": url}),
    lambda url: message({"image_url": url}),
    lambda url: message({"image_url": {"url": url}, "uuid": None}),
    lambda url: message({"type": "text", "text": "x", "image_url": url}),
    lambda url: message({"type": "image_url", "image_url": {"type": "text", "url": url}}),
    lambda url: message({"type": "image_url", "image_url": {"detail": "low", "url": url}}),
    lambda url: message({"type": "audio_url", "audio_url": {"url": url}}),
    lambda url: message({"audio_url": url}),
    lambda url: message({"type": "video_url", "video_url": {"url": url}}),
    lambda url: message({"video_url": url}),
    lambda url: message({"type": "input_image", "image_url": url}),
    lambda url: message({"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}),
    lambda url: message({"type": "file", "file": {"file_data": url}}),
    lambda url: message({"type": "image", "image": url}),
    lambda url: message({"type": "image_pil", "image_pil": url}),
    lambda url: message({"type": "image_embeds", "image_embeds": url}),
    lambda url: message({"type": "image_embeds", "image_embeds": {"data": url}}),
    lambda url: message({"type": "image_embeds", "image_embeds": {"image_grid_thw": url}}),
    lambda url: message({"type": "image_embeds", "image_embeds": {"type": "text", "data": url}}),
    lambda url: message({"type": "video_embeds", "video_embeds": url}),
    lambda url: message({"type": "image", "source": {"type": "url", "url": url}}),
    lambda url: message({"type": "document", "source": {"type": "url", "url": url}}),
    lambda url: message({"type": "image", "source": {"type": "text", "url": url}}),
    lambda url: message({"type": "tool_result", "content": [picture(url)]}),
    lambda url: message(
        {"type": "tool_result", "content": [{"type": "tool_result", "content": [picture(url)]}]}
    ),
    lambda url: message(
        {
            "type": "document",
            "source": {"type": "content", "content": [{"source": {"type": "url", "url": url}}]},
        }
    ),
    lambda url: [message(picture(url))],
    lambda url: [[], message(), message(picture(url))],
    lambda url: message({"type": "image_url", "image_url": [{"url": url}]}),
]


@pytest.mark.parametrize("way", WAYS, ids=range(len(WAYS)))
def test_a_url_is_seen_wherever_it_stands(way: Callable[[str], object]) -> None:
    assert "not allowed" in refuse(way(BAD))
    accept(way(PIXEL))


@pytest.mark.parametrize("way", WAYS, ids=range(len(WAYS)))
def test_no_key_can_be_spelled_past_the_check(way: Callable[[str], object]) -> None:
    text = json.dumps(way(BAD))
    for plain, spelled in ((r"_url", r"\u005furl"), (r"source", r"s\u006furce"), ("i", r"\u0069")):
        spelling = text.replace(plain, spelled).encode()
        assert json.loads(spelling) == json.loads(text)
        with pytest.raises(InvalidRequest):
            caps.messages("messages", Raw(spelling), CAPS)


@pytest.mark.parametrize("check", [caps.inputs, caps.messages])
@pytest.mark.parametrize("batch", [False, True])
def test_what_is_embedded_is_looked_at_too(check: caps.Check, batch: bool) -> None:
    conversation = message(picture(BAD))
    value = Raw(json.dumps([conversation] if batch else conversation).encode())
    with pytest.raises(InvalidRequest, match="not allowed"):
        check("input", value, CAPS)


def test_the_last_of_two_equal_keys_counts_as_it_does_in_the_engine() -> None:
    twice = '[{"content":[{"image_url":"%s","image_url":"%s"}]}]'
    with pytest.raises(InvalidRequest):
        caps.messages("messages", Raw((twice % (PIXEL, BAD)).encode()), CAPS)
    caps.messages("messages", Raw((twice % (BAD, PIXEL)).encode()), CAPS)
    contents = f'[{{"content":"x","content":[{{"image_url":"{BAD}"}}]}}]'
    with pytest.raises(InvalidRequest):
        caps.messages("messages", Raw(contents.encode()), CAPS)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"type": "text", "text": f"see image_url {BAD}"}],
        [{"type": "text", "text": json.dumps(picture(BAD))}],
        [{"type": "tool_use", "id": "1", "name": "f", "input": {"image_url": BAD, "file": BAD}}],
        [{"type": "tool_result", "tool_use_id": "1", "content": f"image {BAD}"}],
        [{"type": "document", "source": {"type": "text", "data": "Call me, at 10:30."}}],
        [{"type": "image_url", "image_url": None}],
        [{"type": "thinking", "thinking": BAD, "signature": "x"}],
        ["image_url", 1, None, [BAD]],
    ],
)
def test_words_and_the_doings_of_tools_are_no_media(parts: list[object]) -> None:
    accept(message(*parts))


@pytest.mark.parametrize("content", ["text", None, {"image_url": BAD}, 7])
def test_content_that_is_no_list_holds_no_parts(content: object) -> None:
    accept([{"role": "user", "content": content}, {"image_url": BAD}, "x"])


@pytest.mark.parametrize(
    "url",
    [
        PIXEL,
        "data:image/svg+xml;base64,AAAA",
        "data:audio/wav;codecs=1;base64,AAAA",
        "data:video/mp4;base64,AA_-",
        "data:application/pdf;base64,",
        "iVBORw0KGgo=",
    ],
)
def test_a_data_url_and_a_bare_payload_pass(url: str) -> None:
    accept(message(picture(url)))


def test_the_number_of_parts_is_capped_over_all_messages() -> None:
    two = Caps(media=Media(parts=2))
    accept(message(picture(PIXEL)) * 2, two)
    assert refuse(message(picture(PIXEL)) * 3, two) == (
        "`messages`: 3 media parts are over this gateway's cap of 2."
    )
    assert "0." in refuse(message(picture(PIXEL)), Caps(media=Media(parts=0)))


def test_the_decoded_size_is_capped_over_all_messages() -> None:
    url = "data:image/png;base64," + "A" * 400  # 300 bytes
    accept(message(picture(url), picture("A" * 400)), Caps(media=Media(bytes=600)))
    assert refuse(message(picture(url), picture("A" * 400)), Caps(media=Media(bytes=599))) == (
        "`messages`: 600 bytes of media are over this gateway's cap of 599."
    )


def test_frames_glued_into_one_url_are_refused() -> None:
    frames = ",".join(["AAAA"] * 10_000)
    refuse(message({"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}))


@pytest.mark.parametrize(
    "part", [{"type": "prompt_embeds", "data": "AAAA"}, {"prompt_embeds": "A"}]
)
def test_embeddings_for_a_prompt_are_as_privileged_as_the_field(part: dict[str, str]) -> None:
    assert "`prompt_embeds` is not allowed" in refuse(message(part))
    accept(message(part), Caps(privileged={"prompt_embeds": "allow"}))


@pytest.mark.parametrize(
    "part", [{**picture(PIXEL), "uuid": "a"}, {"type": "image_url", "image_url": None, "uuid": "a"}]
)
def test_a_name_for_a_picture_that_others_may_have_sent_is_privileged(part: object) -> None:
    assert "`uuid` is not allowed" in refuse(message(part))
    accept(message(part), Caps(privileged={"uuid": "allow"}))
    accept(message({"type": "text", "text": "x", "uuid": "a"}))


def test_every_tensor_of_embeddings_counts_against_the_size() -> None:
    tensors = {"image_embeds": "A" * 400, "image_grid_thw": "A" * 40}
    part = {"type": "image_embeds", "image_embeds": tensors}
    accept(message(part), Caps(media=Media(bytes=330)))
    assert "330 bytes" in refuse(message(part), Caps(media=Media(bytes=329)))


def test_a_system_prompt_is_looked_at() -> None:
    for value in (b'"text"', b"null", b'[{"type":"text","text":"http://h"}]', b'{"type":"text"}'):
        caps.system("system", Raw(value), CAPS)
    with pytest.raises(InvalidRequest, match="`system`: media URLs"):
        caps.system("system", Raw(json.dumps([picture(BAD)]).encode()), CAPS)


def test_what_the_parser_of_media_cannot_read_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        caps.messages("messages", Raw(b'[{"content":[{"image_url":"\\ud800"}]}]'), CAPS)
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        caps.system("system", Raw(b'[{"image_url":"\\ud800"}]'), CAPS)
