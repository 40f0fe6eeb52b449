"""`llm-jax ablate`: compare variants of an experiment."""

import dataclasses
import shlex
from pathlib import Path

from llm_jax.cli.arguments import Arg, asks_for_help, parse_with_overrides
from llm_jax.core.checks import check


@dataclasses.dataclass(frozen=True)
class Ablate:
    """Train the variants that a file defines, each with several seeds, and say which differ by more than by chance.

    Fields of all variants are overridden by name, as for `train`. Complete runs are not trained again. Runs that
    diverge, fail or are killed are listed in the report, and do not stop the others.
    """

    file: Arg[Path]
    """Python file that defines variants() -> dict[str, Experiment]. The first variant is the baseline."""
    seeds: int = 3
    """Number of runs of each variant, with seeds 0, 1, 2, ..."""
    only: tuple[str, ...] = ()
    """Names of the variants to train; all if none is given."""
    runs_dir: str = "runs"
    """Folder for the runs and the report. They are in its subfolder with the file's name."""
    cache_dir: Path = Path(".cache")
    """As for `train`."""
    cpu_devices: int | None = None
    """As for `train`."""
    publish: Path | None = None
    """Markdown file into which the result is also written, between <!-- NAME --> and <!-- /NAME -->, where NAME is the
    file's name. Pictures are copied to the folder of the file of variants."""


def run(arguments: list[str]) -> None:
    """Trains the variants, and prints the report."""
    options, overrides = parse_with_overrides(Ablate, arguments)
    from llm_jax.experiment import load_ablation

    if asks_for_help(overrides):
        load_ablation(options.file, overrides)  # prints the help and ends
    from llm_jax.analysis import ablation
    from llm_jax.analysis.markdown import check_markers, publish, with_pictures
    from llm_jax.cli import devices
    from llm_jax.core import paths
    from llm_jax.variants import run_variants

    devices.simulate(options.cpu_devices)
    found = load_ablation(options.file, overrides)
    unknown = [name for name in options.only if name not in found.variants]
    check(not unknown, f"--only has {unknown}: the variants are {list(found.variants)}; choose some of them")
    chosen = {name: one for name, one in found.variants.items() if name in options.only or not options.only}
    if options.publish is not None:
        check_markers(options.publish, options.file.stem)
    devices.keep_compiled_programs(options.cache_dir)
    folder = paths.at(options.runs_dir) / options.file.stem
    results, unfinished = run_variants(chosen, options.seeds, folder, options.cache_dir, found.source)
    print(text := ablation.write(results, folder, found.report, unfinished))
    if options.publish is not None:
        command = shlex.join(["llm-jax", "ablate", *arguments])
        text = with_pictures(text, folder, options.file, options.publish)
        publish(options.publish, options.file.stem, f"`{command}`\n\n{text}")
