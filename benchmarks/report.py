"""Writes what a run found: tables on the screen, `report.md`, `report.html`, `results.json` and `episodes.html`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from benchmarks import transcripts
from benchmarks.analysis import TrackResult
from benchmarks.curves import TrainingResult
from benchmarks.page import page
from benchmarks.records import write_text
from benchmarks.sections import supplements, training_table
from benchmarks.tables import MARKS, Table, main_table, remarks
from benchmarks.transcripts import Transcript
from benchmarks.viewer.inset import selection, whole_page

PACKAGES = ("agentrec-env", "gymnasium", "numpy", "scipy", "torch", "transformers", "lightgbm", "bm25s", "polars")

NOTES = (
    "Intervals are 95 % paired bootstrap intervals (percentile, 10,000 resamples of tasks, the same for all rows; rows "
    "with several seeds resample their seeds as well, and trained rows with the same seeds share these draws, for seed "
    "k of a stage starts from seed k of the one before it). p values come from a paired randomisation (sign-flip) test "
    "of the mean difference with 50,000 sign patterns, on values averaged over seeds; where a row has several seeds, "
    "from the resamples if that p is larger. Three seeds say little of how seeds differ: where they differ by more "
    "than the noise of tasks, intervals are too narrow and p values too small; the table of seeds shows how much they "
    "do. p values are corrected by Holm over the rows (or pairs) of one table, each metric for itself. d_z is the mean "
    "difference over the standard deviation of the differences.",
    "Planned comparisons were settled before the run: the row that was trained furthest minus each baseline, the "
    "oracle and each other row of the policy, in ndcg@10 and hit@1, each metric corrected over that table's lines.",
    "The best baseline is chosen for each half of the tasks on the other half; where the halves choose differently, "
    "differences are to both, each on its half. Kinds of tasks and transcripts are held against one row, the best "
    "baseline over all tasks. The oracle sorts by the true choice model of the embedded world, which no agent can beat "
    "on average; on other data it gives the answer itself, so that its figures must be 1.",
    "A list holds at most ten items: an item that is not among them counts as missed, for mrr too. Episodes without a "
    "valid list count 0. Agents that rank by scores break ties at random, never by the order of the candidates.",
    "ms is wall time an episode, environment and tools included, with the machine and processes named below; the time "
    "to fit is in the table of seeds. Sampled pools rank methods differently from the whole catalogue (Krichene & "
    "Rendle, KDD 2020): read the tracks side by side.",
    "Policies are trained on training tasks with fresh pools, the best one is chosen on valid tasks, and test tasks "
    "are played once, greedily. Rows of an experiment share the stages that they have in common, seed by seed. PPO "
    "plays as many episodes a step as list-wise GRPO, for as many steps. grpo+grpo goes on with list-wise GRPO for as "
    "many episodes as the steps of grpo+ppr play; the lists that grpo+ppr is mined for beside them are not counted. "
    "grpo+dpo and grpo+ppr start from one policy and mine the same pairs; grpo+dpo takes a pair for each group of a "
    "step and grpo+ppr asks one or two questions about a pair and plays some groups as lists, so that it goes through "
    "fewer. No stage plays again the episodes of one before it. A run keeps the policy that is best on "
    "valid tasks, the one that it started from among them but for warm starts: the table of training says after how "
    "many steps, and 0 means that it plays as the stage before it does. Tokens sampled are those learned from: what is "
    "played to find pairs is not counted, and grpo+dpo's are the tokens of both lists of its pairs. A part that is "
    "left out or changed is compared on the seeds that the row with all parts has too, and both are shown on these. A "
    "tool that is taken from a policy answers for another task (permutation importance): its form stays, its knowledge "
    "goes.",
    "Kinds of tasks: head items are the most frequent fifth of those that occur in the training part, and those that "
    "tie with the last of them. Tools disagree by 1 minus the mean rank correlation of each two signals behind their "
    "lists of candidates; thirds of the tasks. "
    "p values are corrected over all differences of a table. Tokens read are counted once for local models, and as the "
    "server counts them, again with each request, for endpoints.",
)


@dataclass(frozen=True)
class Report:
    """All that is written about a run."""

    results: Sequence[TrackResult]
    facts: Mapping[str, str]
    """What is known of the run itself: command, versions, commit, times."""
    title: str = "AgentRec: recommenders compared"
    training: Sequence[TrainingResult] = ()
    left_out: Sequence[str] = ()
    """What a larger run would have, a sentence each."""
    transcripts: Mapping[str, Sequence[Transcript]] = field(default_factory=dict)
    """Episodes to be read, by heading."""

    def write(self, folder: Path) -> list[Path]:
        """Write the files, each whole; returns their paths. `episodes.html` is there where episodes were kept."""
        texts = {
            "report.md": markdown(self),
            "report.html": page(
                self.title, self.results, NOTES, self.facts, selection(folder), self.training, self.left_out
            ),
            "results.json": to_json(self),
        }
        texts |= whole_page(folder)
        if self.transcripts:
            sections = [transcripts.markdown(_plain(title), chosen) for title, chosen in self.transcripts.items()]
            texts["transcripts.md"] = "# Transcripts\n\n" + "\n".join(sections)
        for name, text in texts.items():
            write_text(folder / name, text)
        return [folder / name for name in texts]

    def show(self, console: Console) -> None:
        """Print the main tables and what must not be missed."""
        for result in self.results:
            console.print()
            console.print(Text(result.protocol, style="dim"))
            if result.rows:
                console.print(_screen(main_table(result)))
            for remark in remarks(result):
                console.print(Text(f"  {remark}"))
            for control in result.controls:
                if control.p < 0.01:
                    console.print(Text(f"  {control.name} does not score as chance: look for a leak", style="bold red"))
        for trained in self.training:
            console.print()
            console.print(_screen(training_table(trained)))
            for remark in trained.remarks:
                console.print(Text(f"  {remark}"))
        if self.left_out:
            console.print(Text("\nLeft out: " + " ".join(self.left_out), style="dim"))
        console.print(Text(f"\n{MARKS} Intervals and tests: see report.md.", style="dim"))


def markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {_plain(report.title)}"]
    if report.left_out:
        parts.append("Left out: " + " ".join(map(_plain, report.left_out)))
    for result in report.results:
        parts += [f"## {_plain(result.dataset)} · {_plain(result.track)}", _plain(result.protocol)]
        if result.rows:
            parts += [_pipes(main_table(result)), MARKS.replace("*", "\\*")]
        parts += [f"- {_plain(remark)}" for remark in remarks(result)]
        for table in supplements(result):
            parts += [f"### {_plain(table.caption)}", _pipes(table)]
    for trained in report.training:
        table = training_table(trained)
        parts += [f"## {_plain(table.caption)}", _pipes(table), *(f"- {_plain(remark)}" for remark in trained.remarks)]
    if report.transcripts:
        parts.append("Episodes to be read are in transcripts.md.")
    parts += ["## Methods", *NOTES, "## Run"]
    parts.append("\n".join(f"- {name}: {_plain(value)}" for name, value in report.facts.items()))
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> str:
    """All numbers as JSON; numbers that do not exist (the spread of one seed) are null."""
    document = {"title": report.title, "run": dict(report.facts), "results": list(report.results)}
    document |= {"training": list(report.training), "left_out": list(report.left_out)}
    return msgspec.json.format(msgspec.json.encode(document), indent=1).decode() + "\n"


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _screen(table: Table) -> ScreenTable:
    styles = {"control": "dim", "baseline": "", "agent": "bold"}
    screen = ScreenTable(title=Text(table.caption), title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(table.columns):
        screen.add_column(Text(column), justify="right" if i else "left", no_wrap=True)
    for role, line in zip(table.roles or ("",) * len(table.lines), table.lines, strict=True):
        # Intervals would not fit on a terminal; half the width of the interval says as much there.
        screen.add_row(*(Text(cell.text + _half(cell.note)) for cell in line), style=styles.get(role, ""))
    return screen


def _half(note: str) -> str:
    bounds = re.fullmatch(r"\[(.+), (.+)\]", note)
    if not bounds:
        return ""
    low, high = (float(bound.replace("−", "-")) for bound in bounds.groups())
    return f" ±{(high - low) / 2:.3f}".replace("0.", ".")


def _pipes(table: Table) -> str:
    head = "| " + " | ".join(map(_plain, table.columns)) + " |"
    rule = "|" + "|".join(":--" if i == 0 else "--:" for i in range(len(table.columns))) + "|"
    lines = [
        "| " + " | ".join(_plain(f"{cell.text} {cell.note}".strip()) for cell in line) + " |" for line in table.lines
    ]
    return "\n".join([head, rule, *lines])


def _plain(text: str) -> str:
    """Text from data and agents with nothing left that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))
