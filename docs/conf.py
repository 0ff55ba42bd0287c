"""Settings of the documentation: `sphinx-build -W --keep-going -b html docs docs/_build`.

Pages are Markdown. What the code says of itself is not copied into them: `docs/inserts.py` puts docstrings, tables of
registered names and sections of the README in place of comments while a page is read.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

import inserts  # noqa: E402

from agentrec_env import __version__  # noqa: E402

project = "AgentRec"
author = "The AgentRec authors"
release = __version__
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # docstrings and README sections begin at the depth they have there
exclude_patterns = ["_build"]
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
# Pages are built without the heavy extras too; where they are installed, the real classes are shown.
autodoc_mock_imports = [
    name
    for name in ("torch", "transformers", "tokenizers", "peft", "safetensors", "huggingface_hub", "lightgbm")
    if find_spec(name) is None
]

html_theme = "furo"
html_title = f"AgentRec {release}"
html_show_copyright = False


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    attributes: dict[str, list[str]] = {}

    def before(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        """Long docstrings are Markdown, which autodoc cannot read: it gets their beginning."""
        if what == "attribute":
            attributes[name] = list(lines)
        headings = [number for number, line in enumerate(lines) if line.startswith("## ")]
        if headings:
            page = "dialogue" if "Dialogue" in name else "environment"
            lines[:] = [*lines[headings[0] + 1 : headings[1]], f"The specification: :doc:`{page}`.", ""]

    def after(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        """Napoleon takes the words before a colon in an attribute's docstring for a type."""
        lines[:] = attributes.pop(name, lines)

    app.connect("source-read", lambda app, name, source: inserts.fill(source))
    app.connect("autodoc-process-docstring", before, priority=400)
    app.connect("autodoc-process-docstring", after, priority=600)
