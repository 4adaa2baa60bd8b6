"""The corpus of bad input: pictures, sound and files inside messages."""

import json
from collections.abc import Iterator
from typing import Any

from tests.faults.cases import BODIES, COUNT, MESSAGES, Case, call, chat, passes, refused

URLS = (
    "http://10.0.0.1/", "https://10.0.0.1/", "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/", "http://[::ffff:169.254.169.254]/", "http://[::ffff:a9fe:a9fe]/",
    "http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/", "http://0/",
    "http://127.1/", "http://127.0.0.1:8000/pause", "http://localhost/", "http://LOCALHOST/",
    "http://localhost./", "http://127.0.0.1.nip.io/", "http://①②⑦.⓪.⓪.①/", "http://ⓛocalhost/",
    "https://media.example\\@10.0.0.1/", "https://10.0.0.1\\@media.example/",
    "https://media.example@10.0.0.1/", "https://10.0.0.1@media.example/",
    "https://media.example:x@10.0.0.1/", "https://media.example#@10.0.0.1/",
    "https://10.0.0.1#media.example", "https://10.0.0.1?media.example",
    "https://10.0.0.1/media.example", "https://media.example.evil.example/",
    "https://evil-media.example/", "https://sub.media.example/", "https://media.example:8443/",
    "https://media.example:80/", "https://media.example:x/", "https://media.example:443:1/",
    "http://media.example/", "HTTPS://media.example/", "https:media.example/",
    "https:/media.example/", "https:///media.example/", "https:\\\\media.example/",
    "//media.example/", "\\\\media.example\\x", "https://media.example\t/",
    "https://media.example\n/", " https://media.example/", "https://media.example\x00/",
    "https://media%2eexample/", "https://media.example%00.evil.example/",
    "https://mediа.example/", "https://[media.example]/", "https://[v1.media.example]/",
    "https://media。example/", "file:///etc/passwd", "FILE:///etc/passwd",
    "file://localhost/etc/passwd", "ftp://media.example/", "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/", "jar:https://media.example!/", "javascript:alert(1)",
    "blob:https://x/", "data:text/html,<script>", "data:image/png,raw", "data:;base64,aGk=",
    "data:image/png;base64,@@", "DATA:image/png;base64,aGk=",
    "data:image/png;base64,aGk=\nhttp://10.0.0.1/", "s3://bucket/x", "http:10.0.0.1",
    "http:/10.0.0.1/", "h\nttp://10.0.0.1/", "\thttp://10.0.0.1/",
)  # fmt: skip


def urls() -> Iterator[Case]:
    """T8: the engine is never made to fetch what the settings do not allow."""
    for url in URLS:
        for config in ("", "media host"):
            body = chat(messages=_parts({"type": "image_url", "image_url": {"url": url}}))
            yield Case(f"image_url {url!a} {config}", call(body), 400, config=config)
    inner: Any = URLS[0]
    shapes: list[dict[str, Any]] = [
        {"type": kind, kind: inner} for kind in ("image_url", "audio_url", "video_url")
    ]
    shapes += [
        {"type": "audio_url", "audio_url": {"url": inner}},
        {"type": "video_url", "video_url": {"url": inner}},
        {"image_url": {"url": inner}},
        {"image_url": inner},
        {"type": "text", "text": "x", "image_url": inner},
        {"type": "input_image", "image_url": inner},
        {"type": "input_audio", "input_audio": {"url": inner}},
        {"type": "file", "file": {"file_data": inner}},
        {"type": "tool_result", "content": [{"type": "image_url", "image_url": inner}]},
    ]
    for shape in shapes:
        yield refused(f"part {json.dumps(shape)}", call(chat(messages=_parts(shape))))
    escaped = json.dumps(chat(messages=_parts(shapes[0]))).replace("image_url", r"im\u0061ge_url")
    yield refused("an escaped key", call(escaped.encode()))
    twice = b'{"url":"data:image/png;base64,aGk=","url":"http://10.0.0.1/"}'
    part = b'[{"role":"user","content":[{"type":"image_url","image_url":%b}]}]' % twice
    yield refused("a second url", call(b'{"model":"tiny","messages":%b}' % part))
    source = {"type": "image", "source": {"type": "url", "url": inner}}
    document = {"type": "document", "source": {"type": "url", "url": inner}}
    for part_of in (source, document, {"type": "tool_result", "content": [source]}):
        body = BODIES[MESSAGES] | {"messages": _parts(part_of)}
        yield refused(f"messages {part_of['type']}", call(body, MESSAGES))
        yield refused(f"count_tokens {part_of['type']}", call(body, COUNT))
    system = BODIES[MESSAGES] | {"system": [source]}
    yield refused("a system of pictures", call(system, MESSAGES))
    allowed = chat(messages=_parts(_picture("https://media.example/a.png")))
    yield passes("a host that is allowed", call(allowed), allowed, "media host")
    yield refused("the same where it is not", call(allowed))


def bombs() -> Iterator[Case]:
    """T9: how many parts and how many bytes of media one call may hold."""
    url = "data:image/png;base64,"
    for parts in (16, 17, 1000):
        body = chat(messages=_parts(*[_picture(url + "aGk=")] * parts))
        if parts == 16:
            yield passes("16 parts", call(body), body)
        else:
            yield refused(f"{parts} parts", call(body))
    spread = chat(messages=_parts(_picture(url + "aGk=")) * 17)
    yield refused("17 parts in as many messages", call(spread))
    results = [{"type": "tool_result", "content": [_picture(url + "aGk=")]}] * 17
    yield refused("17 parts in tool results", call(chat(messages=_parts(*results))))
    frames = "data:video/jpeg;base64," + ",".join(["aGk="] * 10_000)
    for name, video in (("glued", frames), ("one", "data:video/jpeg;base64,aGk=")):
        part = {"type": "video_url", "video_url": {"url": video}}
        yield refused(f"a video of frames, {name}", call(chat(messages=_parts(part))))
    half = _picture(url + "a" * 3000)
    for name, pictures, status in (
        ("4,500 bytes in two", [half, half], 400),
        ("2,250", [half], 200),
    ):
        body = chat(messages=_parts(*pictures))
        upstream = body if status == 200 else None
        yield Case(name, call(body), status, None, "small media", upstream)
    audio = {"type": "input_audio", "input_audio": {"data": "a" * 8000, "format": "wav"}}
    yield Case(
        "6,000 bytes of sound", call(chat(messages=_parts(audio))), 400, config="small media"
    )
    source = {"type": "image", "source": {"type": "base64", "data": "a" * 8000}}
    body = BODIES[MESSAGES] | {"messages": _parts(source)}
    yield Case("6,000 bytes of source", call(body, MESSAGES), 400, config="small media")
    text = b'{"model":"tiny","messages":[{"content":[' + b'{"image_url":1,"content":[' * 2000
    yield refused("nested parts", call(text + b"]}" * 2000 + b"]}]}"), code="invalid_json")


def _parts(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def _picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
