"""Registries: names, lazy strings, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from agentrec_env.registry import Registry, UnknownNameError


def test_register_get_and_refuse() -> None:
    registry: Registry = Registry("colour")

    @registry.register("red")
    def red() -> str:
        return "red"

    registry.register("sine", "math:sin")
    assert registry.get("red") is red
    assert registry.get("sine") is math.sin
    assert registry.get("math:cos") is math.cos
    assert registry.names() == ("red", "sine")
    assert "red" in registry
    with pytest.raises(ValueError, match="registered already"):
        registry.register("red", red)
    with pytest.raises(UnknownNameError, match=r"unknown colour 'rad'. Did you mean 'red'\? Allowed: red, sine"):
        registry.get("rad")
    with pytest.raises(UnknownNameError, match="cannot be imported"):
        registry.get("no_such_module_x:y")
    with pytest.raises(UnknownNameError, match="Did you mean 'sqrt'"):
        registry.get("math:sqrtt")


def test_names_say_what_they_mean_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_heavy_module.py").write_text(
        'raise SystemExit("imported")\n\n'
        'class Thing:\n    """A thing, e.g. 1.5 of it,\n    on two lines. More."""\n\n'
        "def bare(): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry = Registry("thing")
    registry.register("lazy", "a_heavy_module:Thing")
    registry.register("made", math.floor)
    registry.register("bare", "a_heavy_module:bare")
    registry.register("gone", "no_such_module_x:y")
    assert (
        registry.describe("lazy")
        == registry.describe("a_heavy_module:Thing")
        == "A thing, e.g. 1.5 of it, on two lines"
    )
    assert registry.describe("made").startswith("Return the floor of x")
    assert registry.describe("bare") == registry.describe("gone") == registry.describe("unheard of") == ""
