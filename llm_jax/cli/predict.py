"""`llm-jax predict`: labels, tags, spans, numbers and embeddings of records."""

import dataclasses
from pathlib import Path

from llm_jax.cli.arguments import Arg, parse
from llm_jax.core.checks import check, given


@dataclasses.dataclass(frozen=True)
class Predict:
    """Write what a model predicts for the records of a file: labels, tags, answers, numbers or embeddings.

    One JSON object for each record, in their order: with the label and the probabilities of the classes, the tags of
    the words, the text of the answer, the number, or the embedding; or with the `error` of a record that cannot be
    used. The fields with what is predicted need not be there.

    Example: llm-jax predict runs/my_labels reviews.jsonl --output labels.jsonl
    """

    run: Arg[str]
    """Run directory."""
    file: Arg[Path]
    """JSON lines, or `.csv` and `.tsv` with a header."""
    output: Path | None = None
    """File of JSON lines; None: the terminal."""
    batch: int = 32
    """Records that the model reads at once."""
    step: int | None = None
    """Checkpoint; None: the newest."""
    best: bool = False
    """Use the checkpoint with the best metric."""


def run(arguments: list[str]) -> None:
    """Writes the predictions."""
    options = parse(Predict, arguments)
    check(options.batch > 0, f"--batch is {options.batch}: it must be at least 1")
    import json

    from llm_jax.core.files import write_atomically
    from llm_jax.data.record_examples import StructuredRecord
    from llm_jax.data.sources import CsvConfig, JsonLinesConfig
    from llm_jax.inference.predict import predictions
    from llm_jax.trained_model import TrainedModel

    separators = {".csv": ",", ".tsv": "\t"}
    path = str(options.file)
    delimiter = separators.get(options.file.suffix)
    reader = JsonLinesConfig((path,), field=None) if delimiter is None else CsvConfig((path,), delimiter=delimiter)
    documents = reader.build()
    trained = TrainedModel.of(options.run, options.step, options.best)
    records = (StructuredRecord(document.name, json.loads(document.text)) for document in documents)
    experiment = given(
        trained.experiment,
        f"{options.run} is a folder of transformers, which does not say how its model was trained: predict needs a "
        "run, which can begin with these weights (`start`)",
    )
    length = experiment.data.sequence_length
    made = (experiment.objective, trained.model, trained.params, trained.tokenizer)
    lines = (json.dumps(found, ensure_ascii=False) for found in predictions(*made, records, length, options.batch))
    if options.output is None:
        for line in lines:
            print(line, flush=True)
        return
    text = "".join(f"{line}\n" for line in lines)
    write_atomically(options.output, text)
    print(f"{text.count(chr(10)):,} predictions: {options.output}")
