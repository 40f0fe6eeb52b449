"""Every router on the same text at the same active FLOPs, and what happens without a balance loss.

Paper:    none compares them all; each router's paper stands in its config's docstring.
Claim:    learned routers beat random ones and the dense model of the same active FLOPs; without a balance loss a few
          experts get nearly all tokens (Shazeer et al. 2017, arXiv:1701.06538, section 4), and the correction bias
          balances as well as a loss does (Wang et al. 2024, arXiv:2408.15664).
Command:  llm-jax ablate experiments/ablations/router_zoo.py
Hardware: two CPU cores.
Measured: the table in experiments/README.md, with its date.
"""

import dataclasses
from pathlib import Path

from llm_jax.analysis import ablation, plots
from llm_jax.analysis.ablation import Results
from llm_jax.experiment import Experiment, load_experiment
from llm_jax.layers.ffn.moe import MoEConfig

HERE = Path(__file__).parent
EXPERTS, TOP = 8, 2
