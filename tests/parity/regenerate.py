"""Writes the golden fixtures of published families, and what was measured of them: python tests/parity/regenerate.py

Names of models after it write only theirs, and keep the others.

Needs torch and transformers. A fixture is a folder under tests/golden/hf: a small random model as transformers saves
it, in bfloat16, what it is given, and the logits that transformers gives for its float32 form.
"""

import datetime
import json
import shutil
import sys

import numpy as np
import torch
import transformers

from llm_jax.interop import forward, load_hf
from llm_jax.interop.catalogue import PROOFS
from tests.parity.inputs import GOLDEN, difference, torch_logits
from tests.parity.torch_models import CASES, LEARNT_BUFFERS


def main(names: list[str]) -> None:
    """Writes fixtures anew: those of these names, or all."""
    kept = [model for model in json.loads(PROOFS.read_text())["models"] if names and model["name"] not in names]
    models = {model["name"]: model for model in kept}
    if not names:
        shutil.rmtree(GOLDEN, ignore_errors=True)
    for name in names or CASES:
        case, folder = CASES[name], GOLDEN / name.replace(", ", "-").replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        model = case.torch_model()
        with torch.no_grad():
            for tensor in rounded(model):
                tensor.copy_(tensor.bfloat16())
        logits = torch_logits(model, **case.inputs)
        model.bfloat16().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(folder / "logits.npz", logits=logits, **case.inputs)
        ours = forward(*load_hf(folder), **case.inputs)
        models[name] = {
            "name": name,
            "model_type": json.loads((folder / "config.json").read_text())["model_type"],
            "difference": float(f"{difference(ours, logits, case.inputs):.2e}"),
        }
        print(models[name])
    today = str(datetime.date.today())
    record = {"date": today, "transformers": transformers.__version__, "torch": torch.__version__}
    record["models"] = [models[name] for name in CASES]
    PROOFS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def rounded(model: torch.nn.Module) -> list[torch.Tensor]:
    """What a fixture holds in bfloat16: trained weights, and the buffers that are learnt."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return trained + [buffer for name, buffer in model.named_buffers() if name.endswith(LEARNT_BUFFERS)]


if __name__ == "__main__":
    main(sys.argv[1:])
