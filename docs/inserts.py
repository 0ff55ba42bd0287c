"""What pages take from the code and the README while they are read, so that it stands in one place only.

A page names it in a comment of its own line, `<!-- insert: KIND ARGUMENT -->`; a name that is not there is an error.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
_COMMENT = re.compile(r"^<!-- insert: (\S+) ?(.*?) -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!http|#)([^)]+)\)")


def fill(source: list[str]) -> None:
    """Replace the comments of a page; `source` holds its text, as Sphinx hands it over."""
    source[0] = _COMMENT.sub(lambda found: KINDS[found[1]](found[2]), source[0])


def docstring(path: str) -> str:
    """The docstring at a dotted path, which is Markdown but for a few roles; of a module without importing it."""
    file = _file(path)
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file else inspect.getdoc(_at(path))
    if not text:
        raise ValueError(f"{path} has no docstring")
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"::\n", ":\n", text)


def settings(path: str) -> str:
    """The fields of a dataclass that it adds itself: default, and what the string below each says."""
    module, _, name = path.rpartition(".")
    file = _file(module)
    assert file is not None, f"no module {module}"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (made,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    rows = []
    for field, below in pairwise(made.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            default = "" if field.value is None else f"`{ast.unparse(field.value)}`"
            rows.append((f"`{ast.unparse(field.target)}`", default, " ".join(str(below.value.value).split())))
    return table(("setting", "default", "meaning"), rows)


def readme(heading: str) -> str:
    """A section of the README without its heading, links led to where files are from here; "" for its head."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"^(#+ .+)\n", text, flags=re.MULTILINE)
    sections = dict(zip((head.lstrip("# ") for head in parts[1::2]), parts[2::2], strict=True))
    section = sections[heading] if heading else parts[2]
    return _LINK.sub(_led, section).strip()


def _led(link: re.Match[str]) -> str:
    """A link of the README, seen from docs/; a folder cannot be downloaded, so its name stands alone."""
    picture, name, path = link.groups()
    if picture:
        return f"![{name}](../{path})"
    return name if (ROOT / path).is_dir() else f"[{name}](path:../{path})"


def ids(_: str) -> str:
    """The environment ids."""
    from agentrec_env.registration import ABOUT, IDS

    rows = [
        (f"`{name}`", about, ", ".join(f"`{key}={value!r}`" for key, value in IDS.get(name, {}).items()))
        for name, about in ABOUT.items()
    ]
    return table(("id", "what it asks", "beside the defaults"), rows)


def tools(_: str) -> str:
    """The registered tools as a model is shown them."""
    from agentrec_env.tools import PAPER, TOOLS

    rows = []
    for name in TOOLS.names():
        function = TOOLS.get(name).schema["function"]
        arguments = [
            f"`{key}`{'' if key in function['parameters'].get('required', ()) else ' (optional)'}: "
            f"{spec['description'].rstrip('.')}"
            + (f" ({', '.join(f'`{value}`' for value in spec['enum'])})" if "enum" in spec else "")
            for key, spec in function["parameters"]["properties"].items()
        ]
        rows.append((f"`{name}`", function["description"], "; ".join(arguments) or "none", _tick(name in PAPER)))
    return table(("tool", "what it does", "arguments", "in the paper"), rows)


def registry(path: str) -> str:
    """The names in a registry, with the first sentence of what each says of itself."""
    found = _at(path)
    return table((found.kind, "what it is"), [(f"`{name}`", found.describe(name)) for name in found.names()])


def example(name: str) -> str:
    """An example script, whole."""
    text = (ROOT / "docs" / "examples" / f"{name}.py").read_text(encoding="utf-8")
    return f"```python\n{text.strip()}\n```"


def help(command: str) -> str:
    """What `agentrec COMMAND --help` says."""
    from benchmarks.cli.main import main

    said = io.StringIO()
    with patch.dict(os.environ, COLUMNS="110"), redirect_stdout(said), suppress(SystemExit):
        main([*command.split(), "--help"])
    return f"```text\n{said.getvalue().strip()}\n```"


def changelog(_: str) -> str:
    """The changelog without its title."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")[2]


KINDS: Mapping[str, Callable[[str], str]] = {
    kind.__name__: kind for kind in (docstring, settings, readme, ids, tools, registry, example, help, changelog)
}
"""What a page may ask for."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _tick(yes: bool) -> str:
    return "yes" if yes else ""


def _file(path: str) -> Path | None:
    """The file of a module; None where the path is of something in one."""
    file = (ROOT / path.replace(".", "/")).with_suffix(".py")
    package = file.with_suffix("") / "__init__.py"
    return file if file.is_file() else package if package.is_file() else None


def _at(path: str) -> Any:
    """What stands at a dotted path."""
    found: Any | ModuleType = importlib.import_module(path.split(".")[0])
    for number, name in enumerate(path.split(".")[1:], 2):
        if not hasattr(found, name):
            importlib.import_module(".".join(path.split(".")[:number]))
        found = getattr(found, name)
    return found
