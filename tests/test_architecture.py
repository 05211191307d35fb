"""The shape of the code: who imports whom, and what a reading command must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.cli import COMMANDS
from storage.engine import connect, upgrade

ROOT = Path(__file__).parent.parent
PACKAGES = ("monitor", "detectors", "storage")
ALLOWED = {"monitor": {"monitor", "detectors", "storage"}, "detectors": {"detectors"}, "storage": {"storage"}}
HEAVY = {
    "numpy",
    "torch",
    "numba",
    "pandas",
    "lightgbm",
    "kafka",
    "pyarrow",
    "scipy",
    "sklearn",
    "fastapi",
    "pydantic_settings",  # typer itself loads pydantic
}
SLOW_TO_LOAD = {"sqlalchemy", "pydantic", "rich", "msgspec", "asyncio", "psycopg", "alembic"}
READING = (
    *(("incidents", "list"), ("alerts",), ("series",), ("windows", "a/b"), ("deliveries", "list")),
    *(("models", "list"), ("models", "drift"), ("silences", "list")),
)
READING_WITH_ENGINE = (("tokens", "list"),)


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the three packages."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports when it is loaded (not in functions or TYPE_CHECKING)."""
    waiting: list[ast.AST] = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in inner if name in MODULES)
            if node.module in MODULES and not all(name in MODULES for name in inner):
                yield node.module
        waiting += list(ast.iter_child_nodes(node))


def all_imports(path: Path) -> Iterator[str]:
    """Every project module that a file names in an import, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("name", sorted(MODULES))
def test_monitor_imports_the_leaves_and_the_leaves_nobody(name: str) -> None:
    package = name.partition(".")[0]
    for target in all_imports(MODULES[name]):
        top = target.partition(".")[0]
        assert top not in PACKAGES or top in ALLOWED[package], f"{name} imports {target}"


def test_init_files_are_empty() -> None:
    filled = [str(p) for package in PACKAGES for p in (ROOT / package).rglob("__init__.py") if p.read_text()]
    assert filled == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: sorted(set(imports(path))) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('reading') / 'empty.db'}"
    engine = connect(url)
    upgrade(engine)
    engine.dispose()
    return url


@pytest.mark.parametrize("command", READING + READING_WITH_ENGINE, ids=" ".join)
def test_a_command_that_reads_loads_little(command: tuple[str, ...], url: str) -> None:
    others = {COMMANDS[name] for name in COMMANDS} - {COMMANDS[command[0]]}
    unwanted = HEAVY | {f"monitor.commands.{module}" for module in others}
    if command in READING:
        unwanted |= SLOW_TO_LOAD
    if command[0] == "tokens":
        unwanted -= {"monitor.commands.incidents"}  # it says who acts
    program = (
        "import sys\n"
        f"sys.argv = ['inferwatch', *{list(command)!r}, '--database', {url!r}]\n"
        "from monitor.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        f"print(sorted({unwanted!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"
