"""Runs a user's Python files, and locates errors in them."""

import builtins
import contextlib
import importlib.machinery
import importlib.util
import inspect
import linecache
import pkgutil
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from llm_jax.core.checks import did_you_mean

_LIBRARIES = {
    Path(__file__).resolve().parents[1],
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
}
"""Folders with code that is not the user's."""

PREFIX = "experiment_"
"""Prefix of the names of modules from `run_file`."""

_siblings: set[str] = set()
"""Modules that user files have imported from their own folder."""


def run_file(path: Path) -> ModuleType:
    """Runs the file at `path` and returns its module. Call it within `user_code`.

    Raises:
      ValueError: if there is no such file. The message suggests a similar one.
    """
    if not path.is_file():
        hint = did_you_mean(str(path), map(str, path.parent.glob("*.py")))
        raise ValueError(f"there is no experiment file {path}{hint}")
    name = module_name(path)
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module
    # Compiled here, because a bytecode cache does not notice a second write within one second.
    exec(_compiled(path), vars(module))
    return module


def module_name(path: Path) -> str:
    """The name of the module that `run_file` creates for a file."""
    return f"{PREFIX}{path.stem}"


def importable_name(module: str) -> str:
    """The name under which a module is saved. A script that runs as `__main__` is saved under the name that `run_file`
    would give its file."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return module_name(Path(file)) if module == "__main__" and file else module


def _compiled(path: Path) -> CodeType:
    try:
        return compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:
        if isinstance(error, SyntaxError) and error.filename:
            raise
        raise ValueError(f"{path} is not valid Python: {error}") from error


def call(module: ModuleType, function: str, returns: str) -> Any:
    """Calls a function of a user's module and returns its result. Call it within `user_code`.

    Args:
      returns: description of the required result for messages, such as 'an Experiment'.

    Raises:
      ValueError: if the module has no such function, or the function requires arguments.
    """
    found = getattr(module, function, None)
    rule = f"{module.__file__} defines no function {function}() that returns {returns}"
    if found is None:
        raise ValueError(f"{rule}{did_you_mean(function, vars(module))}")
    if not callable(found):
        raise ValueError(f"{rule}: {function} is of type {type(found).__name__}; write `def {function}():`")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        given = f"{function}{inspect.signature(found)}"
        raise ValueError(f"{rule}: it must not require arguments; the file has {given}") from error
    return found()


@contextlib.contextmanager
def user_code(folder: Path) -> Iterator[None]:
    """Context manager for running code of files in a folder, which may import one another.

    Modules imported from a folder are removed from `sys.modules` at the next use, so that two folders may have modules
    of the same name.

    Raises:
      ValueError: for any error in the code: 'file:line: what is wrong', and the line.
    """
    for name in _siblings:
        sys.modules.pop(name, None)
    _siblings.clear()
    linecache.checkcache()
    with _importing_from(folder.resolve()):
        try:
            yield
        except Exception as error:
            message = _message(error)
            if message is None:
                raise
            raise ValueError(message) from error


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    if folder in {Path(entry or ".").resolve() for entry in sys.path}:
        yield
        return
    before, known = set(sys.modules), {name.partition(".")[0] for name in sys.modules}
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if name.partition(".")[0] not in known and file and Path(file).resolve().is_relative_to(folder):
                _siblings.add(name)


def _message(error: Exception) -> str | None:
    """'file:line: what is wrong', and the line; None if no line of a user's file is in the traceback."""
    if isinstance(error, SyntaxError) and error.filename and is_users(error.filename):
        column = max((error.offset or 1) - 1, 0)
        line = (error.text or "").rstrip("\n")
        indent = len(line) - len(line.lstrip())
        marked = f"\n    {line.strip()}\n    {' ' * max(column - indent, 0)}^" if line.strip() else ""
        return f"{error.filename}:{error.lineno}: {error.msg}{marked}"
    frames = list(traceback.walk_tb(error.__traceback__))
    users = [(frame, line) for frame, line in frames if is_users(frame.f_code.co_filename)]
    if not users:
        return None
    frame, line = users[-1]
    file = frame.f_code.co_filename
    source = linecache.getline(file, line).strip()
    return f"{file}:{line}: {_described(error, frames[-1][0])}" + (f"\n    {source}" if source else "")


def is_users(file: str) -> bool:
    """Whether a file is the user's: not of this package, the standard library or an installed package."""
    path = Path(file)
    return path.is_file() and not any(path.resolve().is_relative_to(folder) for folder in _LIBRARIES)


def _described(error: Exception, frame: FrameType) -> str:
    """Message for the author of the line that raised an error, with a suggestion."""
    text = str(error)
    if isinstance(error, (ValueError, OSError)):
        return text or type(error).__name__
    if isinstance(error, TypeError) and (found := re.search(r"([\w.]+)\(\) got an unexpected keyword .*'(\w+)'", text)):
        name, keyword = found[1].removesuffix(".__init__"), found[2]
        known = _parameters(name, frame)
        listed = f"; it has {', '.join(known)}" if known else ""
        return f"{name} has no argument {keyword!r}{did_you_mean(keyword, known)}{listed}"
    if isinstance(error, ImportError):
        if "no known parent package" in text:
            return "an experiment file is no part of a package: write `import module` for a file in the same folder"
        return text + did_you_mean(*_imported(error))
    if isinstance(error, (NameError, AttributeError)) and error.name:
        known = [*frame.f_locals, *frame.f_globals, *vars(builtins)]
        return text + did_you_mean(error.name, known if isinstance(error, NameError) else dir(error.obj))
    return f"{type(error).__name__}: {text.replace('.__init__()', '')}" if text else type(error).__name__


def _parameters(name: str, frame: FrameType) -> list[str]:
    """Parameter names of the class or function `name` that is visible in a frame."""
    seen = [*frame.f_locals.values(), *frame.f_globals.values()]
    seen += [vars(module).get(name) for module in seen if isinstance(module, ModuleType)]
    for one in seen:
        if callable(one) and getattr(one, "__qualname__", None) == name:
            return list(inspect.signature(one).parameters)
    return []


def _imported(error: ImportError) -> tuple[str, Iterable[str]]:
    """The name that an import did not find, and the names that exist there."""
    missing = re.search(r"cannot import name '(\w+)'", error.msg)
    if missing and error.name in sys.modules:
        return missing[1], dir(sys.modules[error.name])
    *parents, word = (error.name or "").split(".")
    if not parents:
        return word, [found.name for found in pkgutil.iter_modules()]
    package = sys.modules.get(".".join(parents))
    return word, [found.name for found in pkgutil.iter_modules(getattr(package, "__path__", []))]
