"""Which programs tests use, and what they say where there are none."""

from __future__ import annotations

import pytest

from tests.cluster import binaries


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """Neither built, nor named, nor in PATH; but for a folder of PATH that is returned."""
    path = tmp_path / "bin"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for tool in binaries.TOOLS.values():
        monkeypatch.delenv(tool.variable, raising=False)
    for asked in (binaries.find_tool, binaries._has_go):
        asked.cache_clear()
    yield path
    for asked in (binaries.find_tool, binaries._has_go):
        asked.cache_clear()


def command(path, name, version):
    path.joinpath(name).write_text(f"#!/bin/sh\necho {version}\n")
    path.joinpath(name).chmod(0o755)


@pytest.mark.parametrize(
    ("version", "found"),
    [("v3.16.4+g7877b45", None), ("v3.17.0+g301108e", "helm3"), ("v4.0.1+g123", "helm4"), ("no version", None)],
)
def test_a_helm_in_path_is_used_where_it_is_new_enough(nothing, version, found):
    command(nothing, "helm", version)
    assert [name for name in ("helm3", "helm4") if binaries.find_tool(name)[0]] == ([found] if found else [])


def test_one_that_is_named_comes_first(nothing, monkeypatch, tmp_path):
    command(nothing, "kubectl", "Client Version: v1.36.3")
    assert binaries.find_tool("kubectl")[0] == nothing / "kubectl"
    binaries.find_tool.cache_clear()
    command(tmp_path, "mine", "v1")
    monkeypatch.setenv("KUBECTL", str(tmp_path / "mine"))
    assert binaries.find_tool("kubectl")[0] == tmp_path / "mine"
    binaries.find_tool.cache_clear()
    monkeypatch.setenv("KUBECTL", "/nowhere")
    assert binaries.find_tool("kubectl") == (None, "KUBECTL: there is no /nowhere")


def test_where_there_is_none_it_is_said_what_would_help(nothing):
    path, why = binaries.find_tool("helm3")
    assert path is None
    assert all(part in why for part in ("Go toolchain", "HELM3", "helm 3.17 in PATH"))
    assert "no helm4 is built" in binaries._build_tool(binaries.TOOLS["helm4"])


def test_each_module_has_a_place_of_its_own():
    places = [binaries._cached({name: []}) for name in ("helm3", "helm4", "kubectl", "etcd", "kubernetes")]
    assert len({*places, binaries._cached(binaries._CONTROL_PLANE)}) == 6
