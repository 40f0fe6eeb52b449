"""Evaluations of a model. Derive a configclass from `Evaluation` to add your own evaluation.

perplexity       loss and bits per byte of held-out data
compression      bits per byte of gzip, xz and a byte 5-gram: baselines for a held-out loss
specialisation   which experts process which kinds of tokens
"""

from llm_jax.evals.evaluation import EvaluatedRun, Evaluation, Evaluator, Results, RunEnd
from llm_jax.evals.perplexity import PerplexityConfig

__all__ = ["EvaluatedRun", "Evaluation", "Evaluator", "PerplexityConfig", "Results", "RunEnd"]
