"""Lists of the published families: sizes, exchange formats and measured differences from transformers."""

import json
from pathlib import Path

from llm_jax.interop.families import FAMILIES
from llm_jax.models import count
from llm_jax.models.families import MODULES
from llm_jax.models.summary import initialisers, short

PROOFS = Path(__file__).with_name("proofs.json")
"""Measured differences from transformers, written by tests/parity/regenerate.py."""


def catalogue() -> str:
    """Two tables. The first has every size with its parameters, the active parameters per token if they are fewer, the
    proof, and the `model_type`s that can express it. The second has every `model_type` with its largest difference of
    logits from transformers, relative to the largest logit."""
    proofs = json.loads(PROOFS.read_text(encoding="utf-8"))
    differences = {
        kind: max((proof["difference"] for proof in proofs["models"] if proof["model_type"] == kind), default=None)
        for kind in FAMILIES
    }
    sizes = [("family", "size", "layers", "width", "parameters", "active", "proof", "exchanged as")]
    for module in MODULES:
        for name, build in module.SIZES.items():
            config = build()
            kinds = [kind for kind, family in FAMILIES.items() if family.expresses(config)]
            depth = "+".join(str(stack.depth) for stack in config.stacks)
            total, active = count.parameters(config), round(count.active_parameters(config))
            shape = (depth, str(config.width), short(total), short(active) if active < total else "-")
            # Without published weights the tests check only parameter counts and the properties of every model.
            proof = _proof(differences[kinds[0]]) if kinds else "properties"
            sizes.append((module.__name__.rpartition(".")[2], name, *shape, proof, ", ".join(kinds) or "-"))
    kinds = [("model_type", "class", "difference", "measured with")]
    for kind, family in FAMILIES.items():
        measured = f"transformers {proofs['transformers']}, {proofs['date']}"
        kinds.append((kind, family.architecture, _proof(differences[kind]), measured))
    return f"{_columns(sizes)}\n\n{_columns(kinds)}"


def initialisations() -> str:
    """The initial distributions of every family's parameters, by config field, with the source."""
    found = []
    for module in MODULES:
        name, build = next(iter(module.SIZES.items()))
        (source,) = [part for part in (module.__doc__ or "").split("\n\n") if part.startswith("Initialisation: ")]
        rows = [(f"  {part}", words) for part, words in initialisers(build()).items()]
        found.append(f"{module.__name__.rpartition('.')[2]} ({name})\n{_columns(rows)}\n{source.strip()}")
    return "\n\n".join(found)


def _proof(difference: float | None) -> str:
    return "missing" if difference is None else f"{difference:.1e}"


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
