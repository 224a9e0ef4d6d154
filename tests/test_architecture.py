"""The direction of imports, and the few other rules of the house that a program can check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import streamal
from streamal import errors

ROOT: Final = Path(streamal.__file__).parent
ORDER: Final = (
    ("errors",),
    ("messages",),
    ("learning.model",),
    ("events",),
    ("selection",),
    ("learning", "pending", "pooling", "voting"),
    ("lane",),
    ("sampler",),
    ("transport",),
    ("decoding",),
    ("annotate",),
    ("web",),
    ("evaluate",),
    ("service",),
    ("settings",),
    ("assemble",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
"""Each may import what stands above it, and its own folder; neighbours on a line do not know each other."""
PURE: Final = tuple(
    "errors messages learning.model events selection learning pending pooling voting lane sampler".split()
)
IMPURE: Final = frozenset(
    """asyncio concurrent confluent_kafka crc32c ctypes fcntl http httpx kafka logging multiprocessing os pathlib
    prometheus_client pydantic pydantic_settings random requests rich secrets select shutil signal socket sqlite3 ssl
    starlette subprocess sys tempfile threading time urllib uvicorn uuid""".split()
)
"""Broker, files, network, clock, chance and environment: the core gets plain values, `now` and a seed."""
ONLY_IN: Final[Mapping[str, tuple[str, ...]]] = {
    "kafka": ("transport.kafka", "transport.kafka_cluster"),
    "confluent_kafka": ("transport.confluent",),
    "sqlite3": ("transport.log_file",),
    "prometheus_client": ("web.metrics",),
    "uvicorn": ("web.connection", "web.server"),
    "starlette": ("web.server",),
    "click": ("annotate.terminal", "cli"),
    "pydantic": ("settings",),
    "pydantic_settings": ("settings",),
    "subprocess": ("service.supervisor",),
    "matplotlib": ("evaluate.report",),
    "crowdkit": ("evaluate.agreement",),
    "pandas": ("evaluate.agreement",),
    "pickle": ("learning.allowed", "learning.online", "learning.snapshot"),
}
"""Who alone may know a library; one that nobody imports yet has its place reserved."""
BANNED_WORDS: Final = frozenset("utils util helpers helper common core base manager handler data misc".split())
BANNED_PREFIXES: Final = ("Base", "Abstract")
BANNED_SUFFIXES: Final = re.compile(r"(Impl|[a-z0-9]T)$")
CAMEL: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*")


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module of the package by its name below `streamal`; a folder's own is named like the folder."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """Return the full names of all that is imported, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(tree: ast.Module) -> set[str]:
    """Return the modules of the package that are imported."""
    names = {name.removeprefix("streamal.") for name in imported(tree) if name.startswith("streamal.")}
    return {name if name in modules() else name.rpartition(".")[0] for name in names} - {""}


def libraries(tree: ast.Module) -> set[str]:
    """Return the top names of what is imported from elsewhere."""
    return {name.split(".")[0] for name in imported(tree)} - {"streamal"}


def within(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def place(name: str) -> tuple[int, str]:
    """Return line and entry of a module in `ORDER`; the most particular entry counts."""
    fitting = [(len(entry), line, entry) for line, row in enumerate(ORDER) for entry in row if within(name, (entry,))]
    assert fitting, f"streamal.{name} has no place in ORDER: give it one"
    _, line, entry = max(fitting)
    return line, entry


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for name, tree in modules().items():
        yield from ((name, node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def test_there_is_something_to_check() -> None:
    assert len(modules()) > 40
    assert {"lane", "transport.kafka", "selection.budget"} <= set(modules())
    assert "selection.budget" in own(modules()["lane"])
    assert "learning.presets" in own(modules()["assemble"])


@pytest.mark.parametrize("name", sorted(set(modules()) - {""}))
def test_imports_point_one_way(name: str) -> None:
    line, entry = place(name)
    for other in own(modules()[name]):
        above, foreign = place(other)
        assert above < line or foreign == entry, (
            f"streamal.{name} imports streamal.{other}, which stands beside or below"
        )


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    assert own(modules()[""]) == set()
    assert own(modules()["settings"]) == {"errors"}


def test_settings_are_known_only_where_things_are_put_together() -> None:
    users = {name for name, tree in modules().items() if "settings" in own(tree)}
    assert [name for name in users if not within(name, ("assemble", "demo", "cli"))] == []


@pytest.mark.parametrize("name", sorted(name for name in modules() if within(name, PURE)))
def test_the_core_has_no_world_around_it(name: str) -> None:
    assert libraries(modules()[name]) & IMPURE == set()
    calls = {
        node.func.id
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert calls & {"open", "print", "input"} == set()


def test_the_core_does_not_read_the_clock() -> None:
    clocks = {"now", "utcnow", "today"}
    for name in filter(lambda name: within(name, PURE), modules()):
        read = {node.attr for node in ast.walk(modules()[name]) if isinstance(node, ast.Attribute)} & clocks
        assert read == set(), name


def test_there_is_no_cycle() -> None:
    graph = {name: own(tree) - {name} for name, tree in modules().items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(modules())


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_known_in_one_place(library: str) -> None:
    users = {name for name, tree in modules().items() if library in libraries(tree)}
    assert [name for name in users if not within(name, ONLY_IN[library])] == []


def test_the_kafka_client_and_the_database_are_used_at_all() -> None:
    used = set().union(*map(libraries, modules().values()))
    assert {"kafka", "sqlite3", "prometheus_client"} <= used


def test_river_stays_behind_the_model_and_the_scores() -> None:
    users = {name for name, tree in modules().items() if "river" in libraries(tree)}
    assert {name for name in users if not within(name, ("learning",))} <= {"evaluate.agreement", "evaluate.prequential"}


def test_no_folder_lies_inside_a_folder() -> None:
    assert max(name.count(".") for name in modules()) == 1


def test_no_module_or_class_has_an_empty_name() -> None:
    for name in modules():
        assert not set(name.replace("_", ".").split(".")) & BANNED_WORDS, name
    for name, node in classes():
        words = {word.lower() for word in CAMEL.findall(node.name)}
        assert not words & BANNED_WORDS, f"{name}.{node.name}"
        assert not node.name.startswith(BANNED_PREFIXES), f"{name}.{node.name}"
        assert not BANNED_SUFFIXES.search(node.name), f"{name}.{node.name}"


def test_no_function_or_variable_has_an_empty_name() -> None:
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.name not in BANNED_WORDS | {"process", "handle"}, f"{name}:{node.lineno}"
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                assert node.id != "data", f"{name}:{node.lineno}"
            elif isinstance(node, ast.arg):
                assert node.arg != "data", f"{name}:{node.lineno}"


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in modules().items() if not ast.get_docstring(tree)] == []


def test_nothing_but_the_package_lists_its_names() -> None:
    for name, tree in modules().items():
        stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not name or "__all__" not in stored, name


def test_errors_are_one_small_tree_in_one_place() -> None:
    tree = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, Exception)]
    assert len(tree) <= 12
    raisable = {found.__name__ for found in tree} | {
        "Exception",
        "BaseException",
        "ValueError",
        "RuntimeError",
        "OSError",
    }
    for name, node in classes():
        bases = {parent.id for parent in node.bases if isinstance(parent, ast.Name)}
        assert name == "errors" or not bases & raisable, f"{name}.{node.name} is an error outside streamal.errors"


def test_whatever_comes_is_caught_and_kept_in_one_place_only() -> None:
    """Cleaning up and raising again is no catching."""
    broad = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            last = node.body[-1]
            raised_again = isinstance(last, ast.Raise) and last.exc is None
            caught = {part.id for part in ast.walk(node.type or ast.Name("Exception")) if isinstance(part, ast.Name)}
            if caught & {"Exception", "BaseException"} and not raised_again:
                broad.append(name)
    assert broad == ["service.process"]
