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
TEXT = {"input_ids": TOKENS, "attention_mask": MASK}
"""Rows with padding on either side, as decoders get them."""
TEXT_RIGHT = {"input_ids": TOKENS, "attention_mask": MASK_RIGHT}
"""Rows with padding at the end, for models whose recurrence runs over padding in transformers: what they give after it
depends on the tokens that it holds."""

AFTER = np.ones_like(TOKENS)
AFTER[1:, LENGTH - PADDING :] = 0
SENTENCES = {
    # Token 1 is padding to RoBERTa wherever it stands.
    "input_ids": np.where(AFTER == 1, np.where(TOKENS == 1, 2, TOKENS), 1),
    "attention_mask": AFTER,
    "token_type_ids": (np.arange(LENGTH) >= 10).astype(int) * np.ones_like(TOKENS),
}
"""Rows of two sentences with padding at the end, as encoders get them: their first token stands for the row."""
ONE_TYPE = {name: array for name, array in SENTENCES.items() if name != "token_type_ids"}

BEFORE = AFTER[:, ::-1].copy()
PADDED_LEFT = SENTENCES | {"input_ids": TOKENS, "attention_mask": BEFORE}
"""Rows of two sentences with padding at the start, as XLNet gets them: their last token stands for the row."""


def _order() -> dict[str, np.ndarray]:
    generator, asked = np.random.default_rng(2), 6
    targets = np.stack([generator.permutation(np.arange(PADDING, LENGTH))[:asked] for _ in range(BATCH)])
    rank = np.zeros((BATCH, LENGTH), int)
    np.put_along_axis(rank, targets, np.array([1, 2, 3, 4, 5, 5]), axis=1)
    hidden = (rank[:, None, :] > 0) & (rank[:, None, :] >= rank[:, :, None])
    return {"perm_mask": hidden.astype(np.float32), "target_mapping": np.eye(LENGTH, dtype=np.float32)[targets]}


ORDERED = PADDED_LEFT | _order()
"""The same with six tokens predicted in an order of their own, each from those before it and from all that is not
predicted; the last two know nothing of each other."""

PAIR = {
    "input_ids": SENTENCES["input_ids"],
    "attention_mask": AFTER,
    "decoder_input_ids": np.random.default_rng(1).integers(0, 97, (BATCH, 11)),
}
"""Sources with padding and shorter targets."""
PAIR_AFTER_PADDING = PAIR | {"attention_mask": MASK}
"""Sources with padding on either side."""


def torch_logits(model: Any, **inputs: np.ndarray) -> np.ndarray:
    """Logits of a torch model, without its cache; of spans those of start and end, stacked."""
    import torch

    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    with torch.no_grad():
        output = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1).numpy()
    return output.logits.numpy()


def difference(ours: np.ndarray, theirs: np.ndarray, inputs: dict[str, np.ndarray]) -> float:
    """Largest difference at real tokens, or of whole rows, of the largest logit."""
    mask = np.ones(theirs.shape[:2]) if "decoder_input_ids" in inputs else inputs["attention_mask"]
    real = mask.astype(bool) if theirs.shape[:2] == mask.shape else slice(None)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max())
