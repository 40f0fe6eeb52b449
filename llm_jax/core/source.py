"""The user's Python files that define an experiment: finds them, stores them with runs, and imports them from there."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from llm_jax.core import user_file
from llm_jax.core.checks import check
from llm_jax.core.components import is_own
from llm_jax.core.files import read_json_object, write_atomically
from llm_jax.core.paths import is_object

_MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class SourceCode:
    """The text of the experiment file and of all local modules that it imports, directly or indirectly.

    A module is local if its file is not in this package, the standard library or an installed package.
    """

    modules: Mapping[str, str]
    """Text of each module by its name. The module name of the experiment file is `experiment_<file stem>`."""

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """The experiment file at `path`, which must have been run (see `user_file.run_file`), and its local imports."""
        return cls(_closure([sys.modules[user_file.module_name(path)]]))

    @classmethod
    def of(cls, experiment: Any) -> Self:
        """The files of the user-defined types of a config, and their local imports. Empty if all types are of this
        package."""
        modules = {kind.__module__ for kind in own_types(experiment)}
        return cls(_closure([sys.modules[name] for name in sorted(modules)]))

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hex digits: hash of the names and texts of the modules."""
        return hashlib.sha256(json.dumps(dict(sorted(self.modules.items()))).encode()).hexdigest()[:16]

    def check(self, experiment: Any) -> None:
        """Checks that all types of the experiment can be imported again from the files.

        Raises:
          ValueError: for a type that is defined in a function, or in no file.
        """
        for kind in own_types(experiment):
            self.check_type(kind)

    def check_type(self, kind: type) -> None:
        """Checks that a type is of this package or can be imported again from the files.

        Raises:
          ValueError: if it is defined in a function, or in no file.
        """
        if is_own(kind):
            return
        check(
            "<locals>" not in kind.__qualname__,
            f"{kind.__qualname__} is defined inside a function, so a run with it could not be loaded again: define it "
            "at the top level of its file",
        )
        check(
            user_file.importable_name(kind.__module__) in self.modules,
            f"{kind.__qualname__} is defined in {kind.__module__}, which has no file, so a run with it could not be "
            "loaded again: define it in a file",
        )

    def difference(self, other: "SourceCode") -> str:
        """A unified diff from this source to another; empty if they are equal."""
        lines = []
        for name in sorted({*self.modules, *other.modules}):
            before, after = (one.modules.get(name, "").splitlines() for one in (self, other))
            file = str(_file(name, {**self.modules, **other.modules}))
            lines += difflib.unified_diff(before, after, f"run/{file}", f"now/{file}", lineterm="", n=1)
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Writes the files into a folder, for `read` and `loaded`. Deletes other Python files there."""
        files = {name: _file(name, self.modules) for name in self.modules}
        for old in [path for path in folder.rglob("*.py") if path.relative_to(folder) not in files.values()]:
            old.unlink()
        for name, file in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / file, self.modules[name])
        listed = {name: {"file": str(file), "sha256": _sha256(self.modules[name])} for name, file in files.items()}
        write_atomically(folder / _MANIFEST, json.dumps({"modules": listed}, indent=2, sort_keys=True) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Reads the files that `write` wrote; None if there are none.

        Raises:
          ValueError: if a file is missing, or differs from what was written.
        """
        if not (folder / _MANIFEST).exists():
            return None
        remedy = "restore it; resuming the run from its experiment file writes it again"
        listed = read_json_object(folder / _MANIFEST, remedy).get("modules")
        check(isinstance(listed, dict), f"{folder / _MANIFEST} lists no modules: {remedy}")
        modules = {}
        for name, entry in (listed or {}).items():
            check(all(map(str.isidentifier, name.split("."))), f"{folder / _MANIFEST} lists {name!r}: {remedy}")
            file = folder / _file(name, listed or {})
            try:
                modules[name] = file.read_bytes().decode()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{file} cannot be read ({error}): {remedy}") from error
            intact = isinstance(entry, dict) and entry.get("sha256") == _sha256(modules[name])
            check(intact, f"{file} was changed since the run wrote it: {remedy}")
        return cls(modules)


@contextlib.contextmanager
def loaded(folder: Path) -> Iterator[None]:
    """In this context, the modules that `SourceCode.write` wrote to `folder` are imported from there under their names.

    Raises:
      ValueError: if a file is damaged, or for an error in the user's code, with its line.
    """
    source = SourceCode.read(folder)
    if source is None or not source.modules:
        yield
        return
    names = {*source.modules, *(".".join(name.split(".")[:end]) for name in source.modules for end in range(1, 9))}
    former = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        with _importable(source, folder) as place:
            with user_file.user_code(place):
                for name in source.modules:
                    file = place / _file(name, source.modules)
                    if name in sys.modules:
                        continue
                    user_file.run_file(file) if name == user_file.module_name(file) else importlib.import_module(name)
            yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(former)


@contextlib.contextmanager
def _importable(source: SourceCode, folder: Path) -> Iterator[Path]:
    """A local folder with the files of a source: `folder`, or a copy of it if it is in an object store."""
    if not is_object(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as copy:
        source.write(Path(copy))
        yield Path(copy)


def own_types(config: Any) -> list[type]:
    """The types in a config, at any depth, that are defined outside of this package, each once."""
    found: dict[type, None] = {}

    def visit(value: Any) -> None:
        if isinstance(value, tuple):
            for item in value:
                visit(item)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            if not is_own(type(value)):
                found[type(value)] = None
            for field in dataclasses.fields(value):
                visit(getattr(value, field.name))

    visit(config)
    return list(found)


def _closure(modules: list[ModuleType]) -> dict[str, str]:
    """Texts of the modules and of the local modules that they import, directly or indirectly, by name."""
    texts: dict[str, str] = {}
    while modules:
        module = modules.pop()
        name, file = user_file.importable_name(module.__name__), getattr(module, "__file__", None)
        if name in texts or file is None or not user_file.is_users(file):
            continue
        texts[name] = Path(file).read_bytes().decode()
        modules += [sys.modules[other] for other in _imported(texts[name], module) if other in sys.modules]
    return texts


def _imported(text: str, module: ModuleType) -> Iterator[str]:
    """All names in the import statements of a module that may be modules."""
    package = module.__package__ or ""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*parents, node.module or ""]))
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from (".".join(name.split(".")[:end]) for end in range(1, name.count(".") + 2))


def _file(name: str, modules: Mapping[str, Any]) -> Path:
    """Path of a module in the folder, where Python's import finds it."""
    if name.startswith(user_file.PREFIX):
        return Path(f"{name.removeprefix(user_file.PREFIX)}.py")
    path = Path(*name.split("."))
    is_package = any(other.startswith(f"{name}.") for other in modules)
    return path / "__init__.py" if is_package else path.with_suffix(".py")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
