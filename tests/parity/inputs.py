"""What every model is given, and how far two results are apart."""

from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden" / "hf"
BATCH, LENGTH, PADDING = 3, 24, 5
TOKENS = np.random.default_rng(0).integers(0, 97, (BATCH, LENGTH))
MASK_RIGHT = np.ones_like(TOKENS)
MASK_RIGHT[1, LENGTH - PADDING :] = 0
MASK = MASK_RIGHT.copy()
MASK[2, :PADDING] = 0


def torch_logits(model: Any, **inputs: np.ndarray) -> np.ndarray:
    """Logits of a torch model, without its cache."""
    import torch

    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return model(**tensors, use_cache=False).logits.numpy()


def difference(ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray) -> float:
    """Largest difference at the tokens that the mask calls real, of the largest logit."""
    real = mask.astype(bool)
    return float(np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max())
