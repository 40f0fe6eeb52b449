"""Config of sampling. Filters and their order are those of Hugging Face transformers: repetition penalty, temperature,
top-k, top-p, min-p."""

from llm_jax.core.checks import check, check_not_negative, check_positive
from llm_jax.core.configclass import configclass


@configclass
class SamplingConfig:
    """How the next token is sampled. Hashable, so that it can be a static argument of jit."""

    temperature: float = 1.0
    """Divides the logits. 0: greedy decoding."""
    top_k: int | None = None
    """Keeps the k most likely tokens, and ties with the k-th; None: all (Fan et al. 2018, arXiv:1805.04833)."""
    top_p: float | None = None
    """Keeps the smallest set of most likely tokens with at least this probability, of ties the first; None: all
    (Holtzman et al. 2020, arXiv:1904.09751)."""
    min_p: float | None = None
    """Keeps tokens with at least this fraction of the highest probability; None: all (Nguyen et al. 2024,
    arXiv:2407.01082)."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative logits, of tokens already seen; 1: none (Keskar et al. 2019,
    arXiv:1909.05858)."""

    def __post_init__(self):
        check_not_negative(temperature=self.temperature)
        check(
            self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}: it must be at least 1, or None to keep all"
        )
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            check(
                value is None or 0 < value <= 1,
                f"{name} is {value}: it must be greater than 0 and at most 1, or None to keep all",
            )
        check_positive(repetition_penalty=self.repetition_penalty)
