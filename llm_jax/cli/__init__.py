"""The command line: `llm-jax COMMAND ...`. Each command is one file here, which is imported when it is called.

The file of a command `name` defines the class `Name`, whose fields are its options and whose docstrings are its help,
and the function `run`. Help must not import jax: `run` imports its dependencies after the options are parsed.
"""

import importlib
import signal
import sys
from collections.abc import Sequence

from llm_jax.core import garbage
from llm_jax.core.checks import did_you_mean

COMMANDS = {
    "train": "Train an experiment, or resume it: the same command continues where it was stopped.",
    "show": "Print the resolved experiment as flat text, overrides applied.",
    "generate": "Write text with the model of a run or of a folder of transformers, as its kind of model does.",
    "predict": "Write what a model predicts for the records of a file: labels, tags, answers, numbers or embeddings.",
    "report": "Write the report of a run, or compare several runs in one table and plot.",
    "experts": "Say which experts of a trained model serve which kinds of text: a table, and a picture beside the run.",
    "objectives": "List the objectives, and say which architectures each of them trains.",
    "families": "List the published families and sizes, and how they are proven against transformers.",
    "ablate": "Train the variants that a file defines, each with several seeds, and say which differ by more than by "
    "chance.",
    "params": "Say what a published model costs: parameters, FLOPs, cache and memory, from its config alone.",
    "shardings": "Say where each parameter of an experiment lies and what a device holds, before anything is "
    "allocated.",
    "parity": "Train small models by every strategy on eight simulated devices, and compare with one device.",
    "convert": "Write a checkpoint in the format of Hugging Face's transformers.",
}
"""First line of every command's help, by name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `llm-jax`. A ValueError is an error of the user, and is shown without a traceback."""
    if arguments is None:  # The process is this command's own.
        garbage.postpone()
        arguments = sys.argv[1:]
    arguments = list(arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return
    if name not in COMMANDS:
        sys.exit(f"llm-jax: there is no command {name!r}{did_you_mean(name, COMMANDS)}\n\n{_overview()}")
    try:
        importlib.import_module(f"{__name__}.{name}").run(arguments[1:])
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"llm-jax {name}: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _overview() -> str:
    lines = "\n".join(f"  {name:<10} {line}" for name, line in COMMANDS.items())
    return f"usage: llm-jax COMMAND ...\n\n{lines}\n\n`llm-jax COMMAND --help` explains a command."
