"""Writes the golden fixtures of published families, and what was measured of them: python tests/parity/regenerate.py

Needs torch and transformers. A fixture is a folder under tests/golden/hf: a small random model as transformers saves
it, in bfloat16, and the logits that transformers gives for its float32 form.
"""

import datetime
import json
import shutil

import numpy as np
import torch
import transformers

from llm_jax.interop import forward, load_hf
from llm_jax.interop.catalogue import PROOFS
from tests.parity.inputs import GOLDEN, TOKENS, difference, torch_logits
from tests.parity.torch_models import CASES, folder


def main() -> None:
    """Writes every fixture anew."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    models = []
    for name, case in CASES.items():
        path, inputs = GOLDEN / folder(name), {"input_ids": TOKENS, "attention_mask": case.mask}
        model = case.torch_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())
        logits = torch_logits(model, **inputs)
        model.bfloat16().save_pretrained(path)
        (path / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(path / "logits.npz", logits=logits)
        ours = forward(*load_hf(path), **inputs)
        models.append(
            {
                "name": name,
                "model_type": json.loads((path / "config.json").read_text())["model_type"],
                "difference": float(f"{difference(ours, logits, case.mask):.2e}"),
            }
        )
        print(models[-1])
    today = str(datetime.date.today())
    record = {"date": today, "transformers": transformers.__version__, "torch": torch.__version__, "models": models}
    PROOFS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
