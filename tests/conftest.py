"""Settings for the whole suite."""

import gc
import os

import pytest

from tests.helpers import compiler

compiler.configure(os.environ)


@pytest.fixture(autouse=True, scope="session")
def known_files_of_this_session(tmp_path_factory):
    """What tests learn of their files stays out of the user's own folder."""
    os.environ["LLM_JAX_KNOWN_FILES"] = str(tmp_path_factory.mktemp("known_files"))


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the tests marked `full` too, which others prove in part")


def pytest_collection_modifyitems(config, items):
    """Leaves out the tests marked `full`, unless they are asked for by the option, or by name."""
    if config.getoption("--full") or any("::" in argument for argument in config.args):
        return
    left = [item for item in items if item.get_closest_marker("full")]
    items[:] = [item for item in items if not item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left)


def pytest_collection_finish():
    """What is imported stays, and tracing makes millions of objects that live as long as jax's caches: searching them
    for garbage again and again slows the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
