"""Settings for the whole suite."""

import os

import jax
import pytest

# Tests compile far more than they compute: the machine-code optimiser costs more than it saves. What XLA does to the
# program itself (fusion, sharding, memory) stays as it is.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="session")
def known_files_of_this_session(tmp_path_factory):
    """What tests learn of their files stays out of the user's own folder."""
    os.environ["LLM_JAX_KNOWN_FILES"] = str(tmp_path_factory.mktemp("known_files"))
