"""The command `kronos search`: the query, the ranking of hits, and the explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kronos.cli.common import (
    AsOf,
    Json,
    Limit,
    Namespace,
    Store,
    Where,
    open_store,
    parse_time,
    parse_where,
)
from kronos.cli.printing import err, memory_fields, one_line, out, print_json, show
from kronos.errors import InputError

if TYPE_CHECKING:
    from kronos.types import Explanation, Hit, Hits


def search(
    query: Annotated[
        str | None, typer.Argument(help="What to look for, in natural language.")
    ] = None,
    store: Store = None,
    limit: Limit = 10,
    where: Where = None,
    namespace: Namespace = None,
    mode: Annotated[
        str, typer.Option(help="hybrid, dense (by meaning) or lexical (by words, without a model).")
    ] = "hybrid",
    near: Annotated[
        str | None, typer.Option(metavar="ID", help="Instead of a query: memories like this one.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Leave out hits below this score.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Keep only the best hit for each value of a metadata key, namespace or parent_id.",
        ),
    ] = None,
    as_of: AsOf = None,
    expand: Annotated[
        int, typer.Option(help="Add memories that are up to this many links away from a hit.")
    ] = 0,
    expand_outside: Annotated[
        bool,
        typer.Option(
            "--expand-outside",
            help="Also add linked memories that the namespace or the filter leaves out.",
        ),
    ] = False,
    recency: Annotated[float, typer.Option(help="Weight of a memory's age.")] = 0.0,
    half_life: Annotated[
        str, typer.Option(metavar="TIME", help="Half-life for --recency: 30m, 12h, 7d, 4w.")
    ] = "7d",
    importance: Annotated[float, typer.Option(help="Weight of a memory's importance.")] = 0.0,
    diversity: Annotated[
        float, typer.Option(help="0 to 1: how much a hit loses for similarity to better hits.")
    ] = 0.0,
    rerank: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A cross-encoder that ranks the best hits again."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show the steps of the search, and the parts of each score."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Search memories by meaning and by words."""
    from kronos.search.ranking import Ranking

    if (query is None) == (near is None):
        raise InputError("search needs a query, or --near and an id", field="query")
    condition, moment = parse_where(where), parse_time(as_of, "--as-of")
    ranking = Ranking(
        recency=recency,
        half_life=half_life,
        importance=importance,
        diversity=diversity,
        rerank=rerank,
    )
    # Diversity compares vectors, and pending memories must be embedded first.
    embeds = mode in ("hybrid", "dense") or diversity > 0
    if near is not None and moment is None and _all_is_embedded(store):
        embeds = False  # the memory's own vector is the query
    with open_store(store, embeds=embeds) as memories:
        hits = memories.search(
            query,
            limit=limit,
            where=condition,
            namespace=namespace,
            mode=mode,  # type: ignore[arg-type]  # the store checks it
            near=near,
            min_score=min_score,
            ranking=ranking,
            group_by=group_by,
            as_of=moment,
            expand=expand,
            expand_outside=expand_outside,
            explain=explain,
        )
    if as_json:
        _print_as_json(hits)
    else:
        _show_hits(hits)


def _all_is_embedded(store: str | None) -> bool:
    """Whether every memory has a vector in the active space."""
    with open_store(store, embeds=False) as memories:
        spaces = memories.stats().spaces
    return not any(each.pending for each in spaces if each.space.state == "active")


# -- Printing -----------------------------------------------------------------------------------


def _print_as_json(hits: Hits) -> None:
    from dataclasses import asdict

    found = [_hit_fields(hit) for hit in hits]
    if hits.explanation is None:
        print_json(found)
    else:
        print_json({"hits": found, "explanation": asdict(hits.explanation)})


def _hit_fields(hit: Hit) -> dict[str, Any]:
    found: dict[str, Any] = {"score": hit.score, "rank": hit.rank, "embedder": hit.embedder}
    if hit.shares is not None:
        found["shares"] = dict(hit.shares)
    if hit.via is not None:
        found["via"] = hit.via
    return {**found, **memory_fields(hit.memory)}


def _show_hits(hits: Hits) -> None:
    if hits.explanation is not None:
        _show_explanation(hits.explanation)
        if hits:
            _show_shares(hits)
    else:
        for hit in hits:
            via = "" if hit.via is None else f"  via {hit.via}"
            show(hit.memory, f"{hit.score:.3f}{via}")
    if not hits:
        err.print("nothing found")


def _show_explanation(explanation: Explanation) -> None:
    out.print(escape(f"mode {explanation.mode}, embedder {explanation.embedder}"))
    table = Table("step", "detail", box=None)
    table.add_column("count", justify="right")
    table.add_column("ms", justify="right")
    for step in explanation.steps:
        milliseconds = f"{step.seconds * 1000:.1f}"
        table.add_row(escape(step.name), escape(step.detail), str(step.count), milliseconds)
    out.print(table)


def _show_shares(hits: Hits) -> None:
    """Print a row for each hit. A hit that `--expand` added has no shares, but names its hit."""
    signals = [*dict.fromkeys(signal for hit in hits for signal in hit.shares or ())]
    table = Table(box=None)
    for name in ("rank", "score", *signals):
        table.add_column(escape(name), justify="right")
    table.add_column("text")
    for hit in hits:
        shares = hit.shares or {}
        own = [f"{shares[signal]:.3f}" if signal in shares else "" for signal in signals]
        via = "" if hit.via is None else f"via {hit.via}: "
        text = escape(via + one_line(hit.content))
        table.add_row(str(hit.rank), f"{hit.score:.3f}", *own, text)
    out.print(table)
