"""Writes the golden fixtures of published families, and what was measured of them: python tests/parity/regenerate.py

Needs torch and transformers. A fixture is a folder under tests/golden/hf: a small random model as transformers saves
it, in bfloat16, what it is given, and the logits that transformers gives for its float32 form.
"""

import datetime
import json
import shutil

import numpy as np
import torch
import transformers

from llm_jax.interop import forward, load_hf
from llm_jax.interop.catalogue import PROOFS
from tests.parity.inputs import GOLDEN, difference, torch_logits
from tests.parity.torch_models import CASES


def main() -> None:
    """Writes every fixture anew."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    models = []
    for name, case in CASES.items():
        folder = GOLDEN / name.replace(", ", "-").replace(" ", "_")
        model = case.torch_model()
        with torch.no_grad():
            for tensor in rounded(model):
                tensor.copy_(tensor.bfloat16())
        logits = torch_logits(model, **case.inputs)
        model.bfloat16().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(folder / "logits.npz", logits=logits, **case.inputs)
        ours = forward(*load_hf(folder), **case.inputs)
        models.append(
            {
                "name": name,
                "model_type": json.loads((folder / "config.json").read_text())["model_type"],
                "difference": float(f"{difference(ours, logits, case.inputs):.2e}"),
            }
        )
        print(models[-1])
    today = str(datetime.date.today())
    record = {"date": today, "transformers": transformers.__version__, "torch": torch.__version__, "models": models}
    PROOFS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def rounded(model: torch.nn.Module) -> list[torch.Tensor]:
    """What a fixture holds in bfloat16: trained weights, and BART's bias of scores, which is a buffer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return trained + [buffer for name, buffer in model.named_buffers() if name == "final_logits_bias"]


if __name__ == "__main__":
    main()
