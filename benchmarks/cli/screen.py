"""How `agentrec play` looks: the task, what tools say, the judged list, and the agents' lists beside it.

It shows what an agent is told and no more until the episode is over. Texts of the data are never read as markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agentrec_env.prompts import item_name
from agentrec_env.registry import first_sentence
from agentrec_env.session import Session
from agentrec_env.types import Episode, StopReason
from benchmarks.cli.typed import COMMANDS

_TAGS = re.compile(r"</?observation>")
SHOWN = 5
"""Items of an agent's list that are named."""


class Screen:
    """Draws one session.

    Args:
        console: Where to.
        session: Its episode, begun.
    """

    def __init__(self, console: Console, session: Session) -> None:
        self._console = console
        self._session = session

    def task(self) -> None:
        """The user's history and the pool."""
        session, view = self._session, self._session.view
        self._console.print(Text(session.prompt.split("\n", 1)[0], "bold"))
        table = _table("The user's latest items, oldest first")
        ratings = view.known_ratings[len(view.known_ratings) - len(view.history) :].tolist()
        for item, rating in zip(view.history.tolist(), ratings, strict=True):
            table.add_row("·", self._name(item), Text("" if math.isnan(rating) else f"{rating:g} of 5", "dim"))
        self._console.print(table)
        candidates = session.task.candidates.tolist()
        if not candidates:
            self._console.print("Every item of the catalogue is a candidate: find them with tools.", style="italic")
            return
        table = _table("The two items" if session.rules.mode == "pair" else f"The {len(candidates)} candidates")
        for place, item in enumerate(candidates):
            table.add_row(self._mark(place), self._name(item))
        self._console.print(table)

    def help(self) -> None:
        """The tools and words that may be typed."""
        rules = self._session.rules
        table = _table("What you can type", "left")
        for tool in rules.tools.values() if rules.max_calls else ():
            arguments = " ".join(f"<{name}>" for name in tool.schema["function"]["parameters"].get("properties", {}))
            table.add_row(Text(f"{tool.name} {arguments}".strip(), "cyan"), Text(first_sentence(tool.description)))
        answer = {"pair": "A or B", "catalog": "rank ID ID …"}.get(rules.mode, "8 3 15 …")
        table.add_row(Text(answer, "green"), Text("the answer, most likely first; it ends the episode"))
        for word, about in COMMANDS.items():
            table.add_row(Text(word, "green"), Text(about))
        self._console.print(table)

    def budget(self) -> None:
        """How many calls are left."""
        left = self._session.rules.max_calls - self._session.calls
        self._console.print(f"{left} tool calls left; help lists what you can type.", style="dim", highlight=False)

    def observation(self, text: str) -> None:
        """What the last action brought."""
        if text:
            self._console.print(Panel(Text(_TAGS.sub("", text).strip()), border_style="cyan", box=box.ROUNDED))

    def problem(self, text: str) -> None:
        """A line that was no action."""
        self._console.print(Text(text, "yellow"))

    def result(self) -> None:
        """The judged list with the item that the user took, and what it is worth."""
        session = self._session
        if session.stop is not StopReason.ANSWERED:
            self._console.print(Text(f"The episode ended: {session.stop}. {session.error or ''}", "red"))
        table = _table("Your list")
        for place, item in enumerate(session.ranking, 1):
            table.add_row(f"{place}.", self._name(item), *self._taken(item))
        if session.task.target not in session.ranking:
            table.add_row("–", self._name(session.task.target), *self._taken(session.task.target))
        self._console.print(table)
        terms = ", ".join(f"{name} {value:+.3f}" for name, value in session.terms.items() if value)
        self._console.print(
            Text(f"reward {session.reward:.3f} ({terms or 'no terms'}), N@10 {session.metrics['ndcg@10']:.3f}", "bold")
        )

    def comparison(self, episodes: Mapping[str, Episode]) -> None:
        """The person and the agents on the same task, best list first.

        Args:
            episodes: By who played them, the person's among them.
        """
        table = Table(box=box.SIMPLE_HEAD, title="The same task, by others", title_justify="left")
        for heading in ("who", "place", "N@10", "reward", "calls", f"first {SHOWN}"):
            table.add_column(heading, justify="left" if heading in ("who", f"first {SHOWN}") else "right")
        for name, episode in sorted(episodes.items(), key=lambda pair: -pair[1].metrics["ndcg@10"]):
            row = [
                name,
                str(episode.rank or "–"),
                f"{episode.metrics['ndcg@10']:.3f}",
                f"{episode.reward:.3f}",
                str(episode.calls),
                episode.error or self._first(episode.ranking),
            ]
            table.add_row(*(Text(cell, "bold" if name == "you" else "") for cell in row))
        self._console.print(table)

    def _first(self, ranking: Sequence[int]) -> str:
        candidates = self._session.task.candidates.tolist()
        if not candidates:
            return ", ".join(self._session.view.items.ids[item] for item in ranking[:SHOWN])
        return " ".join(self._mark(candidates.index(item)) for item in ranking[:SHOWN])

    def _mark(self, place: int) -> str:
        """How a candidate is called in an answer."""
        return "AB"[place] if self._session.rules.mode == "pair" else str(place + 1)

    def _name(self, item: int) -> Text:
        return Text(item_name(self._session.view.items, item))

    def _taken(self, item: int) -> tuple[Text, ...]:
        return (Text("← the user took this", "bold green"),) if item == self._session.task.target else ()


def _table(title: str, first: Literal["left", "right"] = "right") -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1))
    table.add_column(justify=first, no_wrap=True)
    return table
