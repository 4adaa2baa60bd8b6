"""The figures of all rounds as one table: medians, spread, ratios within a round."""

import statistics
from collections.abc import Iterator, Mapping

from tests.bench.measures import FIRST_EVENTS, MEASURES, Figures, Rounds

SATURATED = 0.9  # of the core that stand-in and generator share: above it, they are the limit
Results = Mapping[int, Figures]  # of one peer, by round


def with_added(rounds: Rounds) -> Rounds:
    """`rounds` with what each peer adds to the first event: its time minus direct's."""
    for peers in (rounds.get(name, {}) for name in FIRST_EVENTS):
        direct = peers.get("direct", {})
        for peer, results in peers.items():
            for number, figures in results.items():
                if peer != "direct" and number in direct and not direct[number]["errors"]:
                    for end in ("p50", "p99"):
                        base = direct[number][f"first_us_{end}"]
                        figures[f"added_us_{end}"] = figures[f"first_us_{end}"] - base
    return rounds


def values(results: Results, field: str) -> dict[int, float]:
    """By round; a round with an error is a failure, never a slow or fast figure."""
    return {n: r[field] for n, r in results.items() if not r["errors"] and r.get(field)}


def ratios(peers: Mapping[str, Results], peer: str, base: str, field: str) -> dict[int, float]:
    """Of `peer` to `base`, both in the same round; only where both have the figure."""
    below = values(peers.get(base, {}), field)
    above = values(peers.get(peer, {}), field)
    return {n: value / below[n] for n, value in above.items() if n in below}


def table(rounds: Rounds, base: str) -> Iterator[str]:
    """A line for each figure and peer, in Markdown."""
    yield _line("measure", "peer", "median", "least", "most", f"/ {base}")
    yield "|---|---|--:|--:|--:|--:|"
    for measure in MEASURES:
        peers = rounds.get(measure.name, {})
        for field, title in measure.columns:
            for peer, results in peers.items():
                yield from _row(f"{measure.name}: {title}", peer, base, field, peers, results)


def _row(
    label: str,
    peer: str,
    base: str,
    field: str,
    peers: Mapping[str, Results],
    results: Results,
) -> Iterator[str]:
    good = values(results, field)
    if good:
        ratio = ratios(peers, peer, base, field).values()
        numbers = (statistics.median(good.values()), min(good.values()), max(good.values()))
        told = f"{statistics.median(ratio):.2f}" if ratio else "-"
        yield _line(label, peer, *(f"{number:,.1f}" for number in numbers), told)
    elif all(figures["errors"] for figures in results.values()):
        yield _line(label, peer, "failed", "", "", "")


def _line(label: str, peer: str, *cells: str) -> str:
    return f"| {label:<34} | {peer:<13} | " + " | ".join(f"{cell:>10}" for cell in cells) + " |"


def checked(rounds: Rounds) -> Iterator[str]:
    """How it was seen whether stand-in and generator were the limit."""
    for name, what in (("plain", "requests"), ("flood", "events")):
        peers = rounds.get(name, {})
        best = {
            peer: max(values(each, f"{what}_per_s").values(), default=0)
            for peer, each in peers.items()
        }
        direct = best.pop("direct", 0)
        if direct and any(best.values()):
            fastest = max(best, key=lambda peer: best[peer])
            yield (
                f"{name}: with nothing between, stand-in and generator came to {direct:,.0f} "
                f"{what}/s, {direct / best[fastest]:.1f} x the fastest peer ({fastest})"
            )
    full = {
        name: [peer for peer, results in peers.items() if peer != "direct" and _full(results)]
        for name, peers in rounds.items()
    }
    told = "; ".join(f"{name} ({', '.join(peers)})" for name, peers in full.items() if peers)
    yield (
        f"the core of stand-in and generator was over {SATURATED:.0%} busy in: "
        f"{told or 'nothing'}. There trust the CPU, not rates and latencies"
    )


def _full(results: Results) -> bool:
    return statistics.median(figures["busy"] for figures in results.values()) > SATURATED
