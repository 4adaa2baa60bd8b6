"""The corpus of bad input: requests whose HTTP is bad, or would be read by someone else."""

import json
from collections.abc import Iterator

from tests.fakes.client import head
from tests.fakes.gateway import KEY
from tests.faults.cases import (
    BEARER,
    BODIES,
    CHAT,
    MESSAGES,
    PATHS,
    Case,
    call,
    chat,
    passes,
    raw,
    refused,
)


def hosts() -> Iterator[Case]:
    """T1: what is decided on a path must not be decided on a Host."""
    forged = ("x/health?", "x#", "a/b", "a@b", "a b", "x:80:80", "[::1", "a\\b", "x?y", "é")
    for path in (*PATHS, "/v1/models", "/healthz"):
        for host in forged:
            yield refused(f"{path} of {host}", call(path=path, headers=[("host", host)]))
        at = f"POST {path} HTTP/1.1"
        yield refused(f"{path} of nobody", raw(at, "content-length: 0"))
        yield refused(f"{path} of two", raw(at, "host: a", "host: a", "content-length: 0"))
        yield refused(f"{path} of two names", raw(at, "host: a", "Host: b", "content-length: 0"))
    for path in PATHS:
        line = f"POST {path} HTTP/1.0"
        yield refused(f"{path} of nobody, HTTP/1.0", raw(line, "content-length: 0"))
        yield refused(f"{path} without a key", call(path=path, key=()), 401)
        yield refused(f"{path} as health", call(path=path, headers=[("host", "h")], key=()), 401)
    yield refused("an absolute target", raw(f"POST http://h{CHAT} HTTP/1.1", "host: h"))


def keys() -> Iterator[Case]:
    """T2: a key has a shape, and is looked up by the digest of all of it."""
    values = [
        "", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer{KEY}", f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}", f"Bearer {KEY} {KEY}", f"Bearer {KEY},x",
        f'Bearer "{KEY}"', f"Bearer\t{KEY}", "Bearer ' OR '1'='1' --------", "Bearer " + "a" * 15,
        "Bearer " + "a" * 257, "Bearer " + "a" * 20_000, "Bearer ${jndi:ldap://x/aaaaaaaa}",
        "Bearer ../../../../etc/passwd", "Bearer " + "é" * 20, "Bearer " + "\x80\xff" * 12,
        "Bearer {{7*7}}%s%n%x%x%x%x%x", "Bearer null", "Bearer '; DROP TABLE keys;--------",
    ]  # fmt: skip
    for path in (CHAT, MESSAGES):
        for at, value in enumerate(values):
            sent = call(path=path, key=[("authorization", value)])
            yield refused(f"{path} with value {at}: {value[:30]}", sent, 401)
        for value in ("", "short", "b" * 64, KEY + "\x80", KEY[1:]):
            sent = call(path=path, key=[("x-api-key", value)])
            yield refused(f"{path} with x-api-key {value[:30]}", sent, 401)
        differing = [BEARER, ("x-api-key", "another-key-of-some-length")]
        yield refused(f"{path} with two different keys", call(path=path, key=differing), 401)
        for name, value in (BEARER, ("x-api-key", KEY)):
            twice = call(path=path, key=[(name, value), (name, value)])
            yield refused(f"{path} with {name} twice", twice, 400)
        nul = call(path=path, key=[("authorization", f"Bearer {KEY}\x00")])
        yield refused(f"{path} with a NUL in its key", nul, 400)
        query = call(path=f"{path}?api_key={KEY}&key={KEY}", key=())
        yield refused(f"{path} with its key in the query", query, 401)


#: What vLLM 0.32 answers beside the paths of ours, whichever flags switch it on.
ENGINE_PATHS = """
/health /ping /load /version /metrics /tokenize /detokenize /docs /redoc /openapi.json
/v1/chat/completions/batch /v1/responses /v1/responses/r1 /v1/responses/r1/cancel /v1/systemone
/generative_scoring /invocations /scale_elastic_ep /is_scaling_elastic_ep /kv_event_sources /pause
/resume /is_paused /sleep /wake_up /is_sleeping /update_weights /collective_rpc /server_info
/reset_prefix_cache /reset_mm_cache /start_profile /stop_profile /abort_requests
/inference/v1/generate /inference/v1/chat /cohere/v2/chat /v2/embed /pooling /classify /score
/rerank /v1/score /v1/rerank /v2/rerank /v1/audio/transcriptions /v1/audio/translations
/v1/realtime /v1/load_lora_adapter /v1/unload_lora_adapter /v1/chat/completions/render
/render /derender /admin /status /limits
""".split()


def paths() -> Iterator[Case]:
    """T10: a fixed table of paths, and no other spelling of any."""
    for path in (*ENGINE_PATHS, *PATHS):
        rest = path[1:]
        spellings = {
            f"/{path}", f"/%2f{rest}", f"/./{rest}", f"/v1/../{rest}", f"/v1/%2e%2e/{rest}",
            path.replace("/", "%2f"), path.replace("/", "//"), path.upper(), path + "/",
            path + "%00", f"{CHAT}/../../..{path}", f"{CHAT}%2f..%2f{rest}", path + ";x",
            f"/v1/v1{path}", path.title(), path + "%20", f"/x{path}", path + "%3f",
            f"/%{ord(rest[0]):x}{rest[1:]}",
        }  # fmt: skip
        if path in ENGINE_PATHS:
            yield refused(f"GET {path}", head("GET", path, [BEARER]), 404)
            spellings.add(path)
        else:
            yield refused(f"GET {path}", head("GET", path, [BEARER]), 405)
        for spelling in sorted(spellings):
            name = spelling if spelling.startswith("/") else "/" + spelling
            yield refused(f"POST {name}", call(path=name), 404)
    for path in ("/v1/models/../pause", "/v1/models/..%2f..%2fpause", "/v1/models/x/../../pause"):
        yield refused(f"GET {path}", head("GET", path, [BEARER]), 404, "model_not_found")


_HOP_BY_HOP = """connection: x-foo, keep-alive|keep-alive: timeout=5|proxy-connection: keep-alive|
te: trailers|trailer: x-foo|proxy-authorization: Basic eDp5|proxy-authenticate: x|upgrade: h2c|
x-foo: hop""".replace("\n", "").split("|")
_READ_BY_ENGINES = """x-vllm-priority x-data-parallel-rank x-session-id session-id traceparent-x
tracestate baggage cookie origin referer user-agent accept accept-language from via forwarded
x-forwarded-for x-forwarded-proto x-real-ip openai-organization openai-project x-stainless-lang
x-stainless-retry-count endpoint-load-metrics-format x-http-method-override x-method-override
anthropic-dangerous-direct-browser-access range if-none-match if-modified-since cache-control pragma
prefer priority date max-forwards x-client-request-id idempotency-key""".split()


def headers() -> Iterator[Case]:
    """T11: what upstream sees is a list, whatever was sent."""
    body = BODIES[CHAT]
    for path in PATHS:
        fields = [(name, "1") for name in _READ_BY_ENGINES]
        yield passes(f"known names to {path}", call(path=path, headers=fields), BODIES[path])
    yield passes("its own credential", call(headers=[("x-api-key", KEY)]), body)
    for start in range(0, 240, 60):
        odd = [(f"x-odd-{at}", f"value {at}") for at in range(start, start + 60)]
        yield passes(f"odd names from {start}", call(headers=odd), body)
    hop = [(name, value) for name, _, value in (line.partition(": ") for line in _HOP_BY_HOP)]
    yield passes("hop-by-hop fields", call(headers=hop), body)
    yield passes("connection names ours", call(headers=[("connection", "content-length")]), body)
    for name in ("traceparent", "anthropic-version", "anthropic-beta"):
        for value in ("\x80\xff" * 10, "x" * 2000, "a\tb"):
            yield passes(f"{name} of {value[:6]!a}", call(headers=[(name, value)]), body)
    yield passes(
        "names with underscores", call(headers=[("x_request_id", "a"), ("host_", "b")]), body
    )


def identities() -> Iterator[Case]:
    """T12: the id that travels is ours; the caller's is a word in the log, if it is a clean one."""
    clean = ["client-1", "client-1", "a" * 128, "6f1c:9/2+3=4@x._"]
    odd = ["a" * 129, "a b", 'a"b', "a\\nb", "<script>", "é" * 4, "\x80", "", "a,b", "x" * 30_000]
    for value in (*clean, *odd):
        sent = call(headers=[("x-request-id", value)])
        known = value if value in clean else ""
        yield Case(f"id {value[:20]!a}", sent, 200, None, "", BODIES[CHAT], known)
    for name in ("request-id", "x-client-request-id", "x-correlation-id"):
        yield passes(f"id in {name}", call(headers=[(name, "client-1")]), BODIES[CHAT])
    yield passes("id in the body", call(chat(id="mine", trace_id="mine")), BODIES[CHAT])


#: Hosts, credentials and lengths of a request that is otherwise good.
_GOOD = ("host: h", "authorization: " + BEARER[1], "content-type: application/json")
_BODY = b'{"model":"tiny","messages":[]}'
_SECOND = (
    b"GET /v1/models HTTP/1.1\r\nhost: h\r\nauthorization: " + BEARER[1].encode() + b"\r\n\r\n"
)


def smuggling() -> Iterator[Case]:
    """T17: what two servers could read differently is not read at all."""
    length = f"content-length: {len(_BODY)}"
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_BODY), _BODY)
    framings: dict[str, tuple[str, ...]] = {
        "both": (length, "transfer-encoding: chunked"),
        "both, the other way": ("transfer-encoding: chunked", length),
        "both, zero": ("content-length: 0", "transfer-encoding: chunked"),
        "identity": ("transfer-encoding: identity", length),
        "gzip before": ("transfer-encoding: gzip, chunked",),
        "gzip after": ("transfer-encoding: chunked, gzip",),
        "two codings": ("transfer-encoding: gzip", "transfer-encoding: chunked"),
        "chunked twice": ("transfer-encoding: chunked", "transfer-encoding: chunked"),
        "chunked, chunked": ("transfer-encoding: chunked, chunked",),
        "quoted": ('transfer-encoding: "chunked"',),
        "xchunked": ("transfer-encoding: xchunked",),
        "chunked with a parameter": ("transfer-encoding: chunked;q=1",),
        "a vertical tab": ("transfer-encoding: \x0bchunked",),
        "an empty coding": ("transfer-encoding:", length),
        "a name with a space": ("transfer-encoding : chunked",),
        "a folded coding": ("transfer-encoding:\r\n chunked",),
        "a NUL in the coding": ("transfer-encoding: chunked\x00",),
        "two lengths": (length, "content-length: 5"),
        "two equal lengths": (length, length),
        "a list of lengths": (f"content-length: {len(_BODY)}, {len(_BODY)}",),
        "a signed length": (f"content-length: +{len(_BODY)}",),
        "a negative length": ("content-length: -1",),
        "a hexadecimal length": ("content-length: 0x1e",),
        "a length with a space": ("content-length: 3 0",),
        "a length of a word": ("content-length: x",),
        "an underscored length": ("content-length: 3_0",),
        "a length past 64 bits": ("content-length: 18446744073709551646",),
        "an empty length": ("content-length:",),
        "a folded field": (length, "x-a: b\r\n c"),
        "a name with a space before": (length, " x-a: b"),
        "a name with a space after": (length, "x-a : b"),
        "a name of brackets": (length, "x[a]: b"),
        "no colon": (length, "x-a"),
        "an empty name": (length, ": b"),
        "a bare return": (length, "x-a: b\rc: d"),
        "a bare line feed": (length, "x-a: b\nc: d"),
        "a NUL": (length, "x-a: b\x00c"),
        "two hosts": (length, "host: h"),
        "two keys": (length, "authorization: " + BEARER[1]),
    }
    for name, framing in framings.items():
        body = _BODY if any("content-length: 3" in f for f in framing) else chunked
        lines = raw(f"POST {CHAT} HTTP/1.1", *_GOOD, *framing)
        yield refused(name, lines + body + _SECOND)
    starts = (
        f"POST {CHAT}", f"POST {CHAT} HTTP/0.9", f"POST {CHAT} HTTP/2.0", f"POST {CHAT} HTTP/1.2",
        f"POST {CHAT} HTTP/1.10", f"POST {CHAT} http/1.1", f"POST {CHAT} HTTPS/1.1",
        f" POST {CHAT} HTTP/1.1", f"POST\t{CHAT}\tHTTP/1.1", "POST HTTP/1.1",
        f"P\x00ST {CHAT} HTTP/1.1", f"FETCH {CHAT} HTTP/1.1", f"post {CHAT} HTTP/1.1",
        "POST * HTTP/1.1", f"POST {CHAT[1:]} HTTP/1.1", f"POST {CHAT}\x00 HTTP/1.1",
        f"POST {CHAT} HTTP/1.1 x", "\x16\x03\x01", "PRI * HTTP/2.0", "OPTIONS * HTTP/1.1",
        f"POST http://h{CHAT} HTTP/1.1", f"POST //h{CHAT}\\ HTTP/9",
    )  # fmt: skip
    for start in starts:
        yield Case(f"{start!a}", raw(start, *_GOOD, length, body=_BODY) + _SECOND, 400)
    one_zero = raw(f"POST {CHAT} HTTP/1.0", *_GOOD, "transfer-encoding: chunked", body=chunked)
    yield refused("chunked on HTTP/1.0", one_zero + _SECOND)
    for name, broken in _CHUNKS.items():
        lines = raw(f"POST {CHAT} HTTP/1.1", *_GOOD, "transfer-encoding: chunked")
        yield refused(f"chunks: {name}", lines + broken + _SECOND)
    for method in ("TRACE", "CONNECT"):
        yield refused(f"{method}", raw(f"{method} /v1/models HTTP/1.1", *_GOOD) + _SECOND, 405)


_CHUNKS = {
    "no number": b"\r\n{}\r\n0\r\n\r\n",
    "a negative size": b"-2\r\n{}\r\n0\r\n\r\n",
    "a size with a sign": b"+2\r\n{}\r\n0\r\n\r\n",
    "a size with 0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "a size past 64 bits": b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "a space before the size": b" 2\r\n{}\r\n0\r\n\r\n",
    "a word": b"zz\r\n{}\r\n0\r\n\r\n",
    "a size too small": b"1\r\n{}\r\n0\r\n\r\n",
    "no line after the data": b"2\r\n{}0\r\n\r\n",
    "a bare line feed": b"2\n{}\r\n0\r\n\r\n",
    "a NUL in an extension": b"2;a=\x00\r\n{}\r\n0\r\n\r\n",
}


def floods() -> Iterator[Case]:
    """T18: a head has a size, and so many fields."""
    good = ("host: h", "authorization: " + BEARER[1])
    for name, lines in {
        "one field of 33 KiB": ("x: " + "a" * 33 * 1024,),
        "a key of 33 KiB": ("x-api-key: " + "a" * 33 * 1024,),
        "a name of 33 KiB": ("a" * 33 * 1024 + ": x",),
        "99 more fields": tuple(f"x-{at}: y" for at in range(99)),
        "a thousand fields": tuple(f"x-{at}: y" for at in range(1000)),
        "a thousand equal ones": ("x: y",) * 1000,
        "40 fields of 1 KiB": ("x: " + "a" * 1024,) * 40,
        "20,001 fields of 1 KB": ("x: " + "a" * 1000,) * 20_001,
    }.items():
        for path in ("/v1/models", MESSAGES):
            request = raw(f"GET {path} HTTP/1.1", *good, *lines)
            yield refused(f"{name} to {path}", request, 431)
    target = raw(f"GET /{'a' * 40_000} HTTP/1.1", *good)
    yield refused("a target of 40 KB", target, 431)
    fields = [(f"x-{at}", "y") for at in range(96)]
    yield passes("100 fields", call(headers=fields), BODIES[CHAT])
    yield passes("31 KB", call(headers=[("x", "a" * 31_000)]), BODIES[CHAT])


def bodies() -> Iterator[Case]:
    """T19: bytes are counted as they come, and only plain JSON is read."""
    cap = 64 * 1024
    for path in PATHS:
        for size in (cap, cap + 1):
            body = _padded(path, size)
            chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in _pieces(body)) + b"0\r\n\r\n"
            coding = [
                BEARER,
                ("content-type", "application/json"),
                ("transfer-encoding", "chunked"),
            ]
            for name, sent in (
                ("a length", call(body, path)),
                ("chunks", head("POST", path, coding) + chunks),
            ):
                upstream = BODIES[path] if size == cap else None
                status = 200 if upstream else 413
                yield Case(
                    f"{size} to {path} with {name}", sent, status, None, "small bodies", upstream
                )
    lie = [("content-length", str(1 << 40))]
    yield Case("a length of a terabyte", call(b"", headers=lie), 413, config="small bodies")
    for encoding in ("gzip", "deflate", "br", "zstd", "GZIP", "gzip, gzip", "x", "identity, gzip"):
        sent = call(b"\x1f\x8b\x08\x00" * 64, headers=[("content-encoding", encoding)])
        yield refused(f"encoding {encoding}", sent, 415)
    yield passes("no coding", call(headers=[("content-encoding", "identity")]), BODIES[CHAT])
    for kind in _KINDS:
        fields = [BEARER, ("content-type", kind), ("content-length", str(len(_BODY)))]
        for path in (CHAT, MESSAGES):
            yield refused(f"{path} of {kind}", head("POST", path, fields) + _BODY, 415)
    untyped = head("POST", CHAT, [BEARER, ("content-length", str(len(_BODY)))]) + _BODY
    yield refused("no content-type", untyped, 415)
    yield passes("utf-8", _typed('application/json; charset="UTF-8"'), BODIES[CHAT])


_KINDS = (
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json",
    "", "application/jsonp", "application/json; charset=utf-16",
    "application/json; charset=latin-1", "application/json, text/plain", "text/json",
    "application/json; boundary=x",
)  # fmt: skip


def _typed(kind: str) -> bytes:
    body = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
    return head("POST", CHAT, [BEARER, ("content-type", kind)], body) + body


def _padded(path: str, size: int) -> bytes:
    body = json.dumps(BODIES[path]).encode()
    return body + b" " * (size - len(body))


def _pieces(body: bytes) -> Iterator[bytes]:
    for at in range(0, len(body), 8192):
        yield body[at : at + 8192]
