"""What a model is measured by beside its training loss. Derive a config type from `Evaluation` to add one of your own.

perplexity       loss and bits per byte of held-out data
compression      bits per byte of gzip, xz and a byte 5-gram: the baselines of a held-out loss
specialisation   which experts serve which kinds of tokens
"""

from llm_jax.evals.evaluation import EvaluatedRun, Evaluation, Evaluator, Results, RunEnd
from llm_jax.evals.perplexity import PerplexityConfig

__all__ = ["EvaluatedRun", "Evaluation", "Evaluator", "PerplexityConfig", "Results", "RunEnd"]
