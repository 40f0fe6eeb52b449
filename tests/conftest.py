"""Settings for the whole suite."""

import os

import pytest

from tests.helpers import compiler

compiler.configure(os.environ)


@pytest.fixture(autouse=True, scope="session")
def known_files_of_this_session(tmp_path_factory):
    """What tests learn of their files stays out of the user's own folder."""
    os.environ["LLM_JAX_KNOWN_FILES"] = str(tmp_path_factory.mktemp("known_files"))
