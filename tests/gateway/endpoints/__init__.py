"""What the tests of the endpoints share: a route to nowhere, and a request read on it."""

from typing import Any, cast

import orjson

from backends.kinds import KINDS
from backends.policies import POLICIES
from backends.pool import Means, Pool
from gateway.endpoints.base import Endpoint
from gateway.route import Route
from gateway.settings import Caps, Timeouts
from gateway.terms import Size

CAPS = Caps()


def route(kind: str = "vllm", **more: Any) -> Route:
    """A `Route` whose pool has no replica; nothing can be sent on it."""
    nowhere = cast(Any, None)
    means = Means(nowhere, nowhere, nowhere)
    pool = Pool("pool", KINDS[kind], (), POLICIES["round_robin"](), means)
    given = {"caps": CAPS, "timeouts": Timeouts(), "event_limit": 1 << 20, **more}
    return Route(model="tiny", pool=pool, upstream_model="upstream", **given)


def upstream(
    endpoint: Endpoint, allowed: Caps = CAPS, kind: str = "vllm", **fields: Any
) -> dict[str, Any]:
    """The body a server is sent for these fields."""
    ask = endpoint.read(orjson.dumps(fields))
    body = endpoint.translator(ask, route(kind), allowed).request("upstream")
    document: dict[str, Any] = orjson.loads(body)
    return document


def sized(endpoint: Endpoint, allowed: Caps = CAPS, **fields: Any) -> Size:
    """How large a request with these fields is."""
    ask = endpoint.read(orjson.dumps({"model": "m", **fields}))
    return endpoint.translator(ask, route(), allowed).size
