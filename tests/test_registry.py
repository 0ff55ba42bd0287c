"""Registries: names, lazy strings, refusals."""

from __future__ import annotations

import math

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
