"""The structure of the source: its rooms, the direction of imports, and the size of files and functions."""

import ast
import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import chatpipe

SOURCE = Path(chatpipe.__file__).parent
FLOORS = (
    {"errors", "console"},
    {"recipe", "pocketworld"},
    {"data"},
    {"models", "training"},
    {"reward", "generation"},
    {"checks"},
    {"ppo", "evaluation", "ranking"},
    {"stages"},
    {"run"},
    {"cli"},
)
"""Rooms from the ground up. A room imports from lower floors only. `errors` and `console` are files."""

ROOMS = set().union(*FLOORS[1:])
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = {path.relative_to(SOURCE.parent): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
MODULES = {path: ast.parse(text) for path, text in FILES.items()}


def module_name(path: Path) -> str:
    """`chatpipe.data.formats` for chatpipe/data/formats.py."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules of chatpipe that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "chatpipe")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "chatpipe":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module


def room_of(name: str) -> str:
    """The room, or the file at the top, that a module belongs to; the package itself is ''."""
    return name.split(".")[1] if "." in name else ""


def test_the_rooms_are_those_of_the_design() -> None:
    assert {path.parent.name for path in SOURCE.glob("*/__init__.py")} == ROOMS
    assert len(ROOMS) == 14
    assert {path.stem for path in SOURCE.glob("*.py")} == {"__init__", "__main__", "console", "errors"}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_gives_the_reason_for_it_in_one_line(room: str) -> None:
    text = ast.get_docstring(MODULES[Path("chatpipe", room, "__init__.py")])
    assert text is not None
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("path", sorted(path for path in MODULES if room_of(module_name(path)) in FLOOR), ids=str)
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(module_name(path))
    others = {room_of(name) for name in imported(MODULES[path])} - {room, ""}
    assert not {other for other in others if FLOOR[other] >= FLOOR[room] and room not in ("errors", "console")}


@pytest.mark.parametrize("path", sorted(p for p in MODULES if room_of(module_name(p)) in ("run", "cli")), ids=str)
def test_run_and_cli_ask_a_step_and_not_for_its_name(path: Path) -> None:
    compared = [node for node in ast.walk(MODULES[path]) if isinstance(node, ast.Compare)]
    values = {value.value for node in compared for value in ast.walk(node) if isinstance(value, ast.Constant)}
    assert not values & {"pretrain", "sft", "sample", "rank", "rm", "ppo"}


def test_no_import_circle() -> None:
    graph = {
        module_name(path): {name for name in imported(tree) if name != module_name(path)}
        for path, tree in MODULES.items()
        if path.name != "__init__.py"
    }
    while leaves := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph


def test_no_file_name_twice() -> None:
    names = Counter(path.name for path in MODULES if path.name != "__init__.py")
    assert not {name: count for name, count in names.items() if count > 1}


def test_there_are_few_files() -> None:
    assert len(FILES) <= 150


def test_files_are_short() -> None:
    lines = {str(path): len(text.splitlines()) for path, text in FILES.items()}
    assert not {path: count for path, count in lines.items() if count > 400}


def test_functions_are_short() -> None:
    functions = [
        (f"{path}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for path, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not {name: length for name, length in functions if length > 60}


BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "chatpipe":
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not [name for name in missing if f"{node.module}.{name}" not in NAMES]
