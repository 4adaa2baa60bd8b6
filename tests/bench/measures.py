"""What is measured: the loads, and the figures of each that are worth a line."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.peers import Peer

Figures = dict[str, float]
#: Measure, then peer, then round.
Rounds = dict[str, dict[str, dict[int, Figures]]]


@dataclass(frozen=True)
class Measure:
    """One load. `per` is what the CPU time is divided by: requests or events."""

    name: str
    requests: int
    options: Sequence[str]
    path: str = "/v1/chat/completions"
    per: str = "requests"
    pace: int = 0  # microseconds between the events of a stream
    streams: int = 0  # open at once, where memory is looked at
    rate: str = ""  # an open loop at half of the gateway's maximum of these
    peers: Sequence[str] = ()  # who takes part; none: all
    once: bool = False  # in the first round alone
    #: How often in a round, all peers in turn each time: a machine that others use, too, is slower
    #: for some seconds, and what is seen then should not be one peer's alone.
    turns: int = 3

    def takes(self, peer: Peer) -> bool:
        if self.peers and peer.name not in self.peers:
            return False
        return not peer.only or self.name in peer.only

    def load(self, peer: Peer, scale: float) -> tuple[int, tuple[str, ...]]:
        """How many requests, and the generator's options; a slow peer gets its share."""
        if not self.streams:
            return max(20, round(self.requests * peer.share * scale)), tuple(self.options)
        streams = max(20, round(self.streams * peer.share))
        return streams, (*self.options, "--connections", str(streams))

    @property
    def columns(self) -> Sequence[tuple[str, str]]:
        """The figures worth a line: a field of the result and how it is called."""
        cpu = ("cpu_us", f"CPU us per {self.per[:-1]}")
        if self.name in FIRST_EVENTS:
            ends = ("p50", "p99")
            seen = [(f"first_us_{end}", f"first event {end} us") for end in ends]
            return [*seen, *((f"added_us_{end}", f"added to {end} us") for end in ends)]
        if self.streams:
            memory = ("stream_kb", "KB per open stream")
            return [cpu, ("idle_mb", "memory idle MB"), ("peak_mb", "memory peak MB"), memory]
        return [cpu, ("per_core", f"{self.per}/s per core")]


#: Those that look at the time to the first event: of streams as engines send them, and of a rush of
#: short ones.
FIRST_EVENTS = ("first event", "first event of a rush")


def _plain(
    name: str, requests: int, connections: int, prompt: int = 1024, turns: int = 3
) -> Measure:
    options = ("--connections", str(connections), "--prompt-bytes", str(prompt))
    return Measure(name, requests, options, turns=turns)


#: Microseconds between the events of a stream, as an engine sends them.
PACE = 20_000
#: What requests cost is judged the most closely, and a turn of it is over in a second.
_CLOSELY = 7

#: The paced streams come first: their memory is that of a process that has just started.
MEASURES = (
    Measure("paced", 500, ("--stream",), per="events", pace=PACE, streams=500, turns=1),
    _plain("plain", 5000, 64, turns=_CLOSELY),
    _plain("plain c1", 1000, 1),
    _plain("plain c500", 5000, 500),
    _plain("plain 8 KB", 4000, 64, 8192, turns=_CLOSELY),
    _plain("plain 400 KB", 250, 16, 400_000),
    Measure("messages", 3000, ("--connections", "64"), path="/v1/messages"),
    Measure("embeddings", 3000, ("--connections", "64"), path="/v1/embeddings"),
    Measure("flood", 1500, ("--connections", "64", "--stream"), per="events"),
    Measure(
        "first event",
        1000,
        ("--connections", "1500", "--stream"),
        per="events",
        pace=PACE,
        rate="paced streams",
        peers=("direct", "nginx", "vllm-router", "fairgate"),
    ),
    Measure(
        "first event of a rush",
        3000,
        ("--connections", "500", "--stream", "--events", "10"),
        per="events",
        rate="short streams",
        turns=5,
    ),
    Measure(
        "rated",
        3000,
        ("--connections", "500"),
        rate="requests",
        peers=("fairgate", "redis", "two"),
        turns=_CLOSELY,
    ),
    Measure(
        "many",
        5000,
        ("--stream", "--events", "12", "--rate", "1000"),
        per="events",
        pace=1_000_000,
        streams=5000,
        peers=("nginx", "haproxy", "vllm-router", "fairgate"),
        once=True,
        turns=1,
    ),
)
#: Run against the gateway alone, to know its maximum of requests and of streams.
MAXIMA = {
    "requests": _plain("maximum of requests", 8000, 64),
    "short streams": Measure(
        "maximum of short streams", 3000, ("--connections", "64", "--stream", "--events", "10")
    ),
    "paced streams": Measure(
        "maximum of paced streams", 1000, ("--connections", "500", "--stream"), pace=PACE
    ),
}


def chosen(only: str | None, quick: bool) -> list[Measure]:
    """Those whose name starts with one of the words, commas between them; none: all.

    A quick run has those that take long only if they are asked for.
    """
    if only is None:
        return [measure for measure in MEASURES if not (quick and measure.once)]
    words = only.split(",")
    return [measure for measure in MEASURES if any(map(measure.name.startswith, words))]
