"""`python -m llm_jax` is `llm-jax`."""

from llm_jax.cli import main

main()
