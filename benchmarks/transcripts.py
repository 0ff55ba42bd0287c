"""Ten episodes of an agent to be read: right where the best baseline went wrong, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentrec_env import episodes as files
from agentrec_env.types import Episode, StopReason
from benchmarks.played import Played
from benchmarks.records import Folder, Place
from benchmarks.suite import PRIMARY

EACH = 5
"""Good ones, and bad ones."""
MISSED = 99
"""Place of an item that is not in the list, in the order of how bad an episode is."""


@dataclass(frozen=True)
class Transcript:
    """An episode in words."""

    heading: str
    text: str


def transcripts(folder: Folder, place: Place, name: str, reference: Played | None) -> list[Transcript]:
    """The episodes of the first block of a unit that tell most, good ones first; none where they were not kept.

    Args:
        folder: Of the results.
        place: Of the unit.
        name: Of its row.
        reference: The row that it is held against; None: against nobody.
    """
    path = folder.episodes(place, 0)
    try:
        held = files.read(path, strict=False)
    except (OSError, files.EpisodeFileError):
        return []
    others: dict[int, int] = {}
    if reference is not None:
        others = {record.task: record.rank or MISSED for record in reference.records(next(iter(reference.seeds)))}
    titles = held.header.items

    def lead(episode: Episode) -> tuple[int, int]:
        own = episode.rank or MISSED
        return others.get(episode.task_index, own) - own, -own

    good = [each for each in held.episodes if each.stop is StopReason.ANSWERED and each.rank == 1]
    bad = [each for each in held.episodes if each.stop is not StopReason.ANSWERED or each.rank != 1]
    good = sorted(good, key=lead, reverse=True)[:EACH]
    invalid = [each for each in bad if each.stop is not StopReason.ANSWERED][:2]
    bad = [*invalid, *sorted((each for each in bad if each not in invalid), key=lead)][:EACH]
    against = None if reference is None else reference.row.name
    return [
        Transcript(_heading(kind, name, each, against, others), _text(each, titles))
        for kind, chosen in (("good", good), ("bad", bad))
        for each in chosen
    ]


def markdown(title: str, chosen: Sequence[Transcript]) -> str:
    """A section with each transcript as it is, in a fence that nothing in it can close."""
    parts = [f"## {title}"]
    for each in chosen:
        fence = "~" * (3 + max((len(run) for run in each.text.split() if set(run) == {"~"}), default=0))
        parts += [f"### {each.heading}", f"{fence}text\n{each.text}\n{fence}"]
    return "\n\n".join(parts) + "\n"


def _heading(kind: str, name: str, episode: Episode, against: str | None, others: dict[int, int]) -> str:
    place = f"place {episode.rank}" if episode.rank else f"no place ({episode.stop})"
    told = f"{kind}: task {episode.task_index}, {name} gives the item taken {place}"
    other = others.get(episode.task_index)
    if against is None or other is None:
        return told
    return f"{told}, {against} {'none' if other == MISSED else f'place {other}'}"


def _text(episode: Episode, titles: object) -> str:
    parts = [episode.prompt]
    for turn in episode.turns:
        parts.append(f"--- agent\n{turn.action}")
        if turn.observation:
            parts.append(f"--- environment\n{turn.observation}")
    names = titles if isinstance(titles, dict) else {}
    lines = [
        f"{place:3}. {names.get(item, item)}{'  <- taken' if item == episode.target else ''}"
        for place, item in enumerate(episode.ranking, 1)
    ]
    if episode.target not in episode.ranking:
        lines.append(f"  -  {names.get(episode.target, episode.target)}  <- taken, not in the list")
    value = episode.metrics.get(PRIMARY, 0.0)
    parts.append(f"--- end: {episode.stop}, {PRIMARY} {value:.3f}, reward {episode.reward:.3f}\n" + "\n".join(lines))
    if episode.error:
        parts.append(episode.error)
    return "\n".join(parts)
