"""The command line `agentrec`: what it says, what it refuses and how, and that a person can play."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from agentrec_env.data.dataset import Dataset
from agentrec_env.data.load import DATASETS
from agentrec_env.rewards import REWARDS
from agentrec_env.tools import TOOLS, Tool, resolve_tools, tool
from agents import AGENTS
from algos import ALGORITHMS
from benchmarks.cli import main as cli
from benchmarks.cli.main import COMMANDS, main
from benchmarks.cli.typed import MistypedError, action
from tests.conftest import random_dataset
from tests.test_layers import HEAVY

ROOT = Path(__file__).resolve().parents[2]


def dataset() -> Dataset:
    """For `tests.benchmarks.test_cli:dataset`."""
    return random_dataset()


def in_seconds() -> Dataset:
    """A dataset whose times are seconds where milliseconds are asked for."""
    made = random_dataset()
    assert made.time is not None
    return Dataset.build("bad", made.items, made.user_ids, made.user, made.item, made.rating, made.time // 1000)


def first_ten(observation: dict[str, Any]) -> str:
    return "<answer>[1, 2, 3]</answer>"


def rambling(observation: dict[str, Any]) -> str:
    return "hm"


HERE = "tests.benchmarks.test_cli"
SMALL = ["--dataset", f"{HERE}:dataset", "--candidates", "5", "--task", "1"]


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_script_is_installed_under_this_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["agentrec"].partition(":")
    assert getattr(import_module(module), function) is main


def test_help_names_all_and_explains_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "--help")
    assert code == 0
    for name, (_, about) in COMMANDS.items():
        assert f"  {name}" in out
        assert about in out
    for line in ("exit codes:", "  0 ", "  1 ", "  2 ", "  130 "):
        assert line in out
    assert told(capsys)[:2] == (2, out)
    assert told(capsys, "--version")[1].startswith("agentrec ")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, name, "--help")
    assert code == 0
    assert "examples:" in out
    assert out.count(f"agentrec {name}") >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pley"], "agentrec: unknown command 'pley'. Did you mean 'play'?"),
        (["list", "agent"], "unknown kind 'agent'. Did you mean 'agents'?"),
        (["run", "--taks", "5"], "agentrec run: unknown option '--taks'. Did you mean '--tasks'?"),
        (["run", "--only", "populrity"], "agentrec run: unknown row or track 'populrity'. Did you mean 'popularity'?"),
        (["train", "grop"], "agentrec train: unknown algorithm 'grop'. Did you mean 'grpo'?"),
        (["check", "agnet", "x"], "unknown value 'agnet'. Did you mean 'agent'?"),
        (["check", "agent", "scritped"], "agentrec check: unknown agent 'scritped'. Did you mean 'scripted'?"),
        (["check", "tool", "score_candidate"], "Did you mean 'score_candidates'?"),
        (["check", "tool", "score_candidates", "--args", '{"a": 1}'], "a tool takes none"),
        (["check", "dataset", "nowhere"], "agentrec check: unknown dataset 'nowhere'"),
        (["check", "dataset", f"{HERE}:first_ten"], "agentrec check: "),
        (["check", "env", "AgentRec-Amazn-v0"], "AgentRec-Amazon"),
        (["data", "describe", "synthtic"], "Did you mean 'synthetic'?"),
        (["data", "describe", f"{HERE}:HERE"], "is a str; it must be an agentrec_env.data.dataset.Dataset"),
        (["data", "descrbe", "x"], "Did you mean 'describe'?"),
        (["view", "no-such-run"], "no-such-run"),
        (["play", *SMALL, "--against", "scritped"], "Did you mean 'scripted'?"),
        (["play", *SMALL, "--env", "{"], "not JSON"),
        (["play", *SMALL, "--env", '{"max_cals": 3}'], "Did you mean 'max_calls'?"),
        (["play", "--dataset", f"{HERE}:dataset", "--candidates", "5", "--task", "99999"], "got 99999"),
        (["play", "AgentRec-Amazom-v0"], "Did you mean"),
        (["play", "CartPole-v1"], "only a RecEnv can be played"),
        (["play", "no_such_module_x:Shop-v0"], "No module named 'no_such_module_x'"),
    ],
)
def test_what_cannot_be_used_is_told_with_the_nearest_name(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = told(capsys, *arguments)
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert not [*tmp_path.iterdir()]


def test_lists_hold_all_names_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = told(capsys, "list")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
    for registry in (AGENTS, TOOLS, DATASETS, REWARDS, ALGORITHMS):
        for name in registry.names():
            assert len(lines[name]) > 2, f"{registry.kind} {name} says nothing of itself"
    assert len(lines["AgentRec-Amazon-v0"]) > 2
    _, some, _ = told(capsys, "list", "algorithms", "datasets")
    assert "grpo" in some
    assert "get_user_profile" not in some
    assert "Video_Games" in some
    assert "Video_Games" not in out


def test_help_and_lists_need_nothing_heavy() -> None:
    code = "import sys; from benchmarks.cli.main import main; main([{}]); print(*sorted(sys.modules), file=sys.stderr)"
    for arguments, without in (("'--help'", {"numpy", "gymnasium", "rich", *HEAVY}), ("'list'", {*HEAVY, "tyro"})):
        run = subprocess.run([sys.executable, "-c", code.format(arguments)], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert not without & {name.partition(".")[0] for name in run.stderr.split()}


@pytest.mark.slow
def test_a_reader_who_leaves_is_no_error() -> None:
    command = [sys.executable, "-c", "import sys; from benchmarks.cli.main import main; sys.exit(main(['list']))"]
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2, "pip install 'agentrec-env[llm]'"),
        (ModuleNotFoundError("No module named 'lightgbm'", name="lightgbm"), 2, "pip install 'agentrec-env[bench]'"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_is_missing_or_stopped(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def fails(arguments: Sequence[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_command", lambda name: fails)
    assert told(capsys, "list")[::2] == (code, f"agentrec list: {error}. Run: {message}\n" if message else "\n")


def test_modules_beside_the_person_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "my_own_shop.py").write_text(f"from {HERE} import dataset as sales\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code, out, _ = told(capsys, "data", "describe", "my_own_shop:sales")
    assert code == 0
    assert "made by my_own_shop:sales" in out
    assert "320" in out


def test_checks_say_what_holds_and_what_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "check", "dataset", f"{HERE}:dataset")
    assert code == 0
    assert out.count("pass  ") == 7
    assert "FAIL" not in out
    assert out.endswith(f"dataset {HERE}:dataset: 7 points, all hold\n")
    code, out, _ = told(capsys, "check", "dataset", f"{HERE}:in_seconds")
    assert code == 1
    assert "FAIL  times are milliseconds since 1970" in out
    assert "are they seconds?" in out
    assert "pass  items are in the catalogue" in out
    assert out.endswith("7 points, 1 do not hold\n")


def test_an_agent_that_fails_a_check_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "check", "agent", f"{HERE}:rambling")
    assert code == 1
    assert "FAIL  its actions are in the grammar" in out
    assert "pass  equal seeds give equal episodes" in out


@pytest.mark.slow
def test_agents_and_tools_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "check", "agent", f"{HERE}:first_ten")[0] == 0
    assert told(capsys, "check", "agent", "scripted", "--args", '{"tools": ["score_candidates"]}')[0] == 0
    code, out, _ = told(capsys, "check", "tool", "tests.fakes:broken")
    assert code == 1
    assert "a bug in the tool" in out


@pytest.mark.slow
def test_environments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "check", "env", "AgentRec-AmazonPair-v0", "--args", '{"tools": ["get_user_profile"]}')
    assert code == 0, out
    assert "pass  gymnasium check_env" in out
    assert told(capsys, "check", "env", "agentrec_env.env:RecEnv", "--args", '{"tools": []}')[0] == 0


def test_run_lists_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, "run", "--list")
    assert code == 0
    assert "popularity" in out
    assert "pool-20" in out


@pytest.mark.slow
def test_run_is_the_comparison(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chosen = [
        "--quick",
        "--only",
        "popularity",
        "pool-20",
        "--agent",
        f"{HERE}:first_ten",
        "--tasks",
        "16",
        "--jobs",
        "0",
    ]
    out = tmp_path / "out"
    code, shown, _ = told(capsys, "run", "--dataset", f"{HERE}:dataset", *chosen, "--out", str(out))
    assert code == 0
    assert "popularity" in shown
    (track,) = json.loads((out / "results.json").read_text())["results"]
    assert {row["name"] for row in track["rows"]} == {"popularity", f"{HERE}:first_ten"}


def played(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any, lines: Sequence[str], *arguments: str
) -> tuple[int, str]:
    """Exit code and output of an episode with these lines typed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    code, out, err = told(capsys, "play", *SMALL, *arguments)
    return code, " ".join((out + err).split())


def test_a_person_plays(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    lines = [
        "",
        "help",
        "get_user_profle",
        "get_user_profile",
        "show",
        "3 3",
        "9",
        "item_info_search",
        "[2, 1, 5, 4, 3]",
    ]
    code, out = played(capsys, monkeypatch, lines)
    assert code == 0
    assert out.count("The 5 candidates") == 2
    assert "get_similar_items <item_title>" in out
    assert "Did you mean 'get_user_profile'?" in out
    assert "3 stands in the answer twice" in out
    assert "9 is not a candidate" in out
    assert "item_info_search needs item_name" in out
    shown, _, end = out.partition("Your list")
    assert "the user took this" not in shown
    assert end.count("← the user took this") == 1
    assert "10 tool calls left" in shown
    table = end.partition("The same task, by others")[2]
    for who in ("you", "scripted", "popularity", "item_knn"):
        assert who in table
    assert " 2 1 5 4 3" in table.partition("you")[2]


def test_a_person_leaves(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    for lines in ([], ["get_user_profile"], ["quit", "1 2"]):
        code, out = played(capsys, monkeypatch, lines)
        assert code == 1
        assert "Left before the end" in out
        assert "the user took this" not in out


def test_a_person_answers_for_pairs_and_catalogues(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("rank 1\nb\n"))
    pair = "agentrec_env:AgentRec-AmazonPair-v0"
    code, out, _ = told(capsys, "play", pair, "--dataset", f"{HERE}:dataset", "--task", "0")
    assert code == 0
    assert "likely to choose next?" in out
    assert "the answer is A or B" in out
    assert "reward 1.000 (correct +1.000)" in out or "reward 0.000 (no terms)" in out
    lines = ["rank B0001 B0002 B0001", "rank B0001, B0002"]
    code, out = played(capsys, monkeypatch, lines, "--candidates", "catalog", "--against", "popularity")
    assert code == 0
    assert "Every item of the catalogue is a candidate" in out
    assert "B0001 stands in the answer twice" in out
    assert "B0001, B0002" in out


def test_invalid_grammar_costs_what_it_costs_an_agent(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    code, out = played(capsys, monkeypatch, ["<answer>x</answer>", "<answer>y</answer>"], "--against")
    assert code == 0
    assert "Invalid action: " in out
    assert "The episode ended: invalid" in out
    assert "reward -1.000" in out
    assert "The same task" not in out


@tool(register=False, guarded=False)
def compare(view: Any, first: str, second: int, third: bool = False) -> str:
    """Compare things.

    Args:
        first: A text.
        second: A number.
        third: A switch.
    """
    return ""


TYPED = {**resolve_tools(["search_items", "get_user_profile", compare])}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("get_user_profile", '<tool_call>{"name": "get_user_profile", "arguments": {}}</tool_call>'),
        ("search_items a 'b", '<tool_call>{"name": "search_items", "arguments": {"query": "a \'b"}}</tool_call>'),
        ("search_items query='a b'", '<tool_call>{"name": "search_items", "arguments": {"query": "a b"}}</tool_call>'),
        (
            'compare "a b" 3 true',
            '<tool_call>{"name": "compare", "arguments": {"first": "a b", "second": 3, "third": true}}</tool_call>',
        ),
        (
            "compare second=3 first=7",
            '<tool_call>{"name": "compare", "arguments": {"second": 3, "first": "7"}}</tool_call>',
        ),
        ("3, 1 2", "<answer>\\boxed{[3, 1, 2]}</answer>"),
        ("[3,1]", "<answer>\\boxed{[3, 1]}</answer>"),
        ("rank 2", "<answer>\\boxed{[2]}</answer>"),
        ("<answer>[9, 9]</answer>", "<answer>[9, 9]</answer>"),
    ],
)
def test_what_is_typed(line: str, text: str) -> None:
    assert action(line, TYPED, "rank", 5) == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("compare a", "compare needs second"),
        ("compare a b", "second of compare must be of type integer"),
        ("compare a 1 true more", "compare <first> <second> <third>"),
        ("get_user_profile now", "get_user_profile is called as: get_user_profile"),
        ("rank one two", "a ranking holds candidate numbers, 1 to 5"),
        ("rank", "empty list"),
        ("0", "0 is not a candidate"),
        ("-3 2", "-3 is not a candidate"),
    ],
)
def test_slips_cost_nothing(line: str, message: str) -> None:
    tools: dict[str, Tool] = TYPED
    with pytest.raises(MistypedError, match=message):
        action(line, tools, "rank", 5)


class Terminal:
    """A program in a pseudo-terminal of its own, as a person sees it."""

    def __init__(self, command: Sequence[str]) -> None:
        import pty

        child, self._handle = pty.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, and so inherited, where tests run in the background
            os.chdir(ROOT)
            os.environ.update(TERM="xterm-256color", COLUMNS="100", LINES="50")
            os.execv(command[0], command)
        self._child = child
        self._found = 0
        self.seen = ""

    def until(self, text: str) -> None:
        """Read until `text` comes after what was found before."""
        while (found := self.seen.find(text, self._found)) < 0:
            assert self._read(), f"it ended before {text!r}: {self.seen[self._found :]!r}"
        self._found = found + len(text)

    def type(self, text: str) -> None:
        os.write(self._handle, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C until it is heard: readline misses one that comes between its prompt and its first wait."""
        for _ in range(10):
            self.type("\x03")
            if select.select([self._handle], [], [], 5)[0]:
                return

    def end(self) -> int:
        """Read the rest; the exit code."""
        while self._read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])

    def _read(self) -> bool:
        """Read what there is; whether the program still runs."""
        if not select.select([self._handle], [], [], 50)[0]:
            raise TimeoutError(f"nothing more came; seen: {self.seen[self._found :]!r}")
        try:
            data = os.read(self._handle, 65536)
        except OSError:  # the terminal of a program that has ended
            return False
        self.seen += data.decode("utf-8", "replace")
        return bool(data)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals")
def test_a_person_plays_in_a_terminal() -> None:
    terminal = Terminal([sys.executable, "-m", "benchmarks.cli", "play", *SMALL])
    terminal.until("help lists what you can type.")
    terminal.until("> ")
    assert "\x1b[1m" in terminal.seen, "headings are bold"
    terminal.type("get_user_p\t\n")
    terminal.until("Categories")
    terminal.until("> ")
    terminal.type("1 2 3 4 5\n")
    terminal.until("the user took this")
    assert terminal.end() == 0
    assert "item_knn" in terminal.seen
    stopped = Terminal([sys.executable, "-m", "benchmarks.cli", "play", *SMALL])
    stopped.until("help lists what you can type.")
    stopped.until("> ")
    stopped.interrupt()
    assert stopped.end() == 130
    assert "Traceback" not in stopped.seen
