"""The rules of the tree that a reader may rely on, checked on the source of every module."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llm_jax"
FILES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}

# The law of imports: a package imports only packages of an earlier line. Those of one line do not know each other.
LEVELS = (
    ("core",),
    ("hosts",),
    ("sharding",),
    ("tokenizers",),
    ("data",),
    ("layers",),
    ("models",),
    ("optim",),
    ("objectives",),
    ("adapt",),
    ("checkpoints",),
    ("interop",),
    ("starts",),
    ("trackers",),
    ("train",),
    ("inference",),
    ("evals", "posttrain"),
    ("planning", "launchers"),
    ("analysis", "parity"),
    ("experiment",),
    ("resumption",),
    ("assemble", "branch", "trained_model"),
    ("run_header", "run_hooks"),
    ("training_run",),
    ("variants",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
LEVEL = {package: number for number, line in enumerate(LEVELS) for package in line}

OPTIONAL = {"torch", "transformers", "tokenizers", "tokamax", "wandb"}
"""Third-party packages that need not be installed: they are imported inside functions."""

SLOW = {"grain", "orbax", "tensorflow_datasets", "tensorboardX"}
"""Third-party packages that may be, since they take long, and the help of an experiment, or `show`, does not need them.
What the commands of `cli` work with may be as well, since their help does not need it; nothing else."""

_TEXT_SUFFIXES = {".py", ".md", ".sh", ".yaml", ".sbatch", ".toml"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def _offences(rule: Callable[[Path, ast.Module], Iterable[str]]) -> list[str]:
    """'file: what breaks the rule' over the whole package."""
    return [f"{path.relative_to(ROOT)}: {offence}" for path, tree in FILES.items() for offence in rule(path, tree)]


def _package(path: Path) -> str:
    """The direct child of llm_jax that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import statement, wherever it stands; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = (PACKAGE.name, *path.relative_to(PACKAGE).parts)[: -node.level]
                base = ".".join((*parents, base)).strip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _imports_in_functions(tree: ast.AST, path: Path) -> set[tuple[int, str]]:
    return {item for function in _nodes(tree, ast.FunctionDef) for item in _imports(function, path)}


def _nodes(tree: ast.AST, kind: type) -> list[Any]:
    return [node for node in ast.walk(tree) if isinstance(node, kind)]


def _unlawful(path: Path, tree: ast.AST) -> Iterator[str]:
    own = _package(path)
    for line, module in _imports(tree, path):
        parts = module.split(".")
        if parts[0] != PACKAGE.name:
            continue
        other = parts[1] if len(parts) > 1 else "__init__"
        # `from llm_jax import load_experiment` names what __init__ gives, not a package.
        other = other if (PACKAGE / other).is_dir() or (PACKAGE / f"{other}.py").exists() else "__init__"
        if other != own and LEVEL[other] >= LEVEL[own]:
            yield f"line {line}, {own} imports {other}"


def test_every_package_has_its_place():
    assert len(FILES) > 30
    assert {_package(path) for path in FILES} <= set(LEVEL), "give the new package a line in LEVELS"


def test_imports_point_upwards():
    assert _offences(_unlawful) == []


@pytest.mark.parametrize(
    ("own", "source", "lawful"),
    [
        ("layers/a.py", "from llm_jax.core import checks", True),
        ("layers/a.py", "import llm_jax.core.checks", True),
        ("layers/a.py", "from llm_jax.layers.b import c", True),
        ("layers/a.py", "from . import b", True),
        ("layers/a.py", "from llm_jax.models.config import X", False),
        ("layers/a.py", "import llm_jax.train.loop as loop", False),
        ("layers/a.py", "from llm_jax import models", False),
        ("layers/a.py", "from llm_jax import load_experiment", False),
        ("layers/a.py", "from ..models import config", False),
        ("layers/a.py", "def f():\n    from llm_jax.train import loop", False),
        (
            "layers/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from llm_jax.train import loop",
            False,
        ),
        ("core/a.py", "from llm_jax.sharding import axes", False),
        ("cli/a.py", "def f():\n    from llm_jax import load_experiment", True),
    ],
)
def test_the_check_of_imports_sees_them(own, source, lawful):
    assert (list(_unlawful(PACKAGE / own, ast.parse(source))) == []) == lawful


def test_imports_inside_functions_are_of_optional_packages_or_of_commands():
    def misplaced(path: Path, tree: ast.Module) -> Iterator[str]:
        late = _imports_in_functions(tree, path)
        for line, module in _imports(tree, path):
            package, inside = module.split(".")[0], (line, module) in late
            lawful = package in OPTIONAL | SLOW or _package(path) == "cli" if inside else package not in OPTIONAL
            if not lawful:
                yield f"line {line}, {module}"

    assert _offences(misplaced) == []


def test_tensorflow_is_never_imported():
    assert (
        _offences(lambda path, tree: [name for _, name in _imports(tree, path) if name.split(".")[0] == "tensorflow"])
        == []
    )


def test_files_and_functions_are_short():
    def too_long(path: Path, tree: ast.Module) -> Iterator[str]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{lines} lines"
        for function in _nodes(tree, ast.FunctionDef):
            lines = function.end_lineno - function.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{function.name} has {lines} lines"

    assert _offences(too_long) == []


def test_configs_are_not_asked_with_get():
    def asked(path: Path, tree: ast.Module) -> Iterator[str]:
        for node in _nodes(tree, ast.Call):
            if re.search(r"(config|experiment|settings|options)\w*\.get$", ast.unparse(node.func), re.IGNORECASE):
                yield ast.unparse(node)

    assert _offences(asked) == []


def test_configs_are_configclasses():
    def unchecked(path: Path, tree: ast.Module) -> Iterator[str]:
        for node in _nodes(tree, ast.ClassDef):
            made_by = " ".join(map(ast.unparse, node.decorator_list))
            if node.name.endswith("Config") and node.decorator_list and "configclass" not in made_by:
                yield node.name

    assert _offences(unchecked) == []


def test_names_are_nouns():
    forbidden = {"utils", "util", "common", "misc", "helpers", "helper"}
    assert (
        _offences(lambda path, _: forbidden & {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts})
        == []
    )


NAMED_ELSEWHERE = (PACKAGE / "cli", PACKAGE / "models" / "families")
"""Exempt folders: a file of `cli` has the name of its command, a file of `families` that of its family."""


def _twice(names: Callable[[Path, ast.Module], Iterable[str]]) -> dict[str, list[str]]:
    """{name: its files} of the names that several files outside the exempt folders have."""
    files: dict[str, list[str]] = {}
    for path, tree in FILES.items():
        if path.parent not in NAMED_ELSEWHERE:
            for name in names(path, tree):
                files.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return {name: found for name, found in files.items() if len(found) > 1}


def test_no_two_files_share_a_name():
    assert _twice(lambda path, _: [path.name] if path.name != "__init__.py" else []) == {}


def test_no_two_public_classes_share_a_name():
    def classes(path: Path, tree: ast.Module) -> list[str]:
        return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]

    assert _twice(classes) == {}


def test_everything_public_says_what_it_is():
    def silent(path: Path, tree: ast.Module) -> Iterator[str]:
        if tree.body and not ast.get_docstring(tree):
            yield "the module"
        for node in tree.body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            overload = public and any(ast.unparse(made_by).endswith("overload") for made_by in node.decorator_list)
            if public and not overload and not ast.get_docstring(node):
                yield node.name

    assert _offences(silent) == []


def test_users_meet_errors_not_assertions():
    assert _offences(lambda _, tree: [f"line {node.lineno}" for node in _nodes(tree, ast.Assert)]) == []


def test_importing_computes_nothing_on_a_device():
    # A device taken on import is taken before XLA_FLAGS, a distributed start or a test could have a say.
    array = re.compile(r"jnp\.(zeros|ones|array|asarray|arange)$|jax\.(devices|device_count|process_\w+|random\.\w+)$")

    def eager(path: Path, tree: ast.Module) -> Iterator[str]:
        for statement in tree.body:
            if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                calls = [ast.unparse(node.func) for node in _nodes(statement, ast.Call)]
                yield from (call for call in calls if array.match(call))

    assert _offences(eager) == []


def test_no_path_of_one_machine_is_written_down():
    # In pieces, so that this file does not hold what it looks for.
    private = re.compile("|".join("/" + folder + "/" for folder in ("work", "tmp", "home", "root", "Users")))
    texts = [ROOT / name for name in ("setup.py", "pyproject.toml", "README.md") if (ROOT / name).exists()]
    for folder in ("llm_jax", "experiments", "launch"):
        texts += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in _TEXT_SUFFIXES]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in texts
        for line in path.read_text(encoding="utf-8").splitlines()
        if private.search(line)
    ]
    assert found == []
