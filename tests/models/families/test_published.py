"""Numbers of parameters of the published sizes, counted from their configs alone.

Figures are those of the papers, or where these round to a digit, of the checkpoints: then the figure has more digits.
"""

import pytest

from llm_jax.models import count
from llm_jax.models.families import SIZES

MILLIONS = {
    "gpt2": 124.44,
    "gpt2-medium": 354.82,
    "gpt2-large": 774.03,
    "gpt2-xl": 1557.61,
    "gpt3-small": 125,
    "gpt3-medium": 356,  # the paper says 350
    "gpt3-large": 760,
    "gpt3-xl": 1316,  # the paper says 1.3B and gives 24 heads of 128, more than its width of 2048 holds
    "gpt3-2.7b": 2652,  # the paper says 2.7B
    "gpt3-6.7b": 6660,  # the paper says 6.7B
    "gpt3-13b": 12_850,  # the paper says 13.0B and a width of 5140, which its 40 heads of 128 do not fill
    "gpt3-175b": 174_600,  # the paper says 175.0B
    "gpt-j-6b": 6053,
    "pythia-70m": 70.43,
    "pythia-160m": 162.32,
    "pythia-410m": 405.33,
    "pythia-1b": 1011.78,
    "pythia-1.4b": 1414.65,
    "pythia-2.8b": 2775.21,
    "pythia-6.9b": 6857.30,
    "pythia-12b": 11_846.07,
    "gpt-neox-20b": 20_554.57,
    "opt-125m": 125.24,
    "opt-350m": 331.20,
    "opt-1.3b": 1315.76,
    "opt-2.7b": 2651.60,
    "opt-6.7b": 6658.47,
    "opt-13b": 12_853.47,
    "opt-30b": 29_974.54,
    "opt-66b": 65_716.87,
    "opt-175b": 174_604,
    "llama-7b": 6738.42,
    "llama-13b": 13_015.86,
    "llama-33b": 32_528.94,
    "llama-65b": 65_285.66,
    "llama2-7b": 6738.42,
    "llama2-13b": 13_015.86,
    "llama2-70b": 68_976.65,
    "code-llama-7b": 6738.55,
    "code-llama-13b": 13_016.03,
    "llama3-8b": 8030.26,
    "llama3-70b": 70_553.71,
    "llama3.1-8b": 8030.26,
    "llama3.1-70b": 70_553.71,
    "llama3.1-405b": 405_853.39,
    "llama3.2-1b": 1235.81,
    "llama3.2-3b": 3212.75,
    "mistral-7b-v0.1": 7241.73,
    "mistral-7b-v0.3": 7248.02,
    "qwen2-0.5b": 494.03,
    "qwen2-1.5b": 1543.71,
    "qwen2-7b": 7615.62,
    "qwen2-72b": 72_706.20,
    "qwen3-0.6b": 596.05,
    "qwen3-1.7b": 1720.57,
    "qwen3-4b": 4022.47,
    "qwen3-8b": 8190.74,
    "qwen3-14b": 14_768.31,
    "qwen3-32b": 32_762.12,
    "phi3-mini": 3821.08,
    "phi3-medium": 13_960.24,
    "olmo2-1b": 1484.92,
    "olmo2-7b": 7298.66,
    "olmo2-13b": 13_716.20,
    "olmo2-32b": 32_234.28,
    "gemma-2b": 2506.17,
    "gemma-7b": 8537.68,
    "gemma2-2b": 2614.34,
    "gemma2-9b": 9241.71,
    "gemma2-27b": 27_227.13,
    "gemma3-1b": 999.89,
    "gemma3-4b": 3880.10,
    "gemma3-12b": 11_765.79,
    "gemma3-27b": 27_009.35,
    "falcon-rw-1b": 1311.63,
    "falcon-7b": 6921.72,
    "falcon-40b": 41_303.29,
    "falcon-180b": 179_522.59,
    "bloom-560m": 559.21,
    "bloom-1b1": 1065.31,
    "bloom-1b7": 1722.41,
    "bloom-3b": 3002.56,
    "bloom-7b1": 7069.02,
    "bloom": 176_247.27,
    "mpt-7b": 6649.29,
    "mpt-30b": 29_957.33,
    "starcoder": 15_517.46,
    "starcoder2-3b": 3030.37,
    "starcoder2-7b": 7173.92,
    "starcoder2-15b": 15_957.89,
    "palm-8b": 8630,
    "palm-62b": 62_500,
    "palm-540b": 540_350,
    "lamda-2b": 2179,  # the paper says 2B, 8B and 137B: rounded, and without the embedding (see test_lamda.py)
    "lamda-8b": 8721,
    "lamda-137b": 137_701,
    "youtu-llm-2b": 1961.56,
    "recurrentgemma-2b": 2682.86,  # counted here; the paper says 2 billion, without the embedding's 655 million
    "recurrentgemma-9b": 8579.98,  # counted here; the paper says 9 billion
    "lstm-small": 4.65,  # counted here; the paper gives none
    "lstm-medium": 19.78,  # the paper says 20 million
    "lstm-large": 66,
    "retnet-1.3b": 1311,  # the paper says 1.3B and names no vocabulary; so with the others
    "retnet-2.7b": 2645,  # the paper says 2.7B
    "retnet-6.7b": 6648,  # the paper says 6.7B
    "mamba2-130m": 128.99,
    "mamba2-370m": 368.35,
    "mamba2-780m": 780.16,
    "mamba2-1.3b": 1343.76,
    "mamba2-2.7b": 2702.60,
    # Its authors call them of BERT's sizes, 110 and 340: they have a fifth matrix in every attention.
    "xlnet-base": 116.75,
    "xlnet-large": 360.30,
    "bert-base": 109.51,  # with the scores of masked tokens; the paper says 110M
    "bert-large": 335.17,  # the paper says 340M; 336.23 with the pooler and the second task's head
    "roberta-base": 124.70,  # the paper says 125M
    "roberta-large": 355.41,  # the paper says 355M
    "electra-small": 13.55,  # the paper says 14M
    "electra-base": 109.48,  # the paper says 110M
    "electra-large": 335.14,  # the paper says 335M
    "albert-base": 11.22,  # the paper says 12M: with pooler and second task 11.81
    "albert-large": 16.80,  # the paper says 18M: with both 17.85
    "albert-xlarge": 54.82,  # the paper says 60M: with both 59.02
    "albert-xxlarge": 206.37,  # the paper says 235M; the checkpoint has 223.16 with both
    "transformer-base": 63.08,  # the paper says 65M and about 37000 tokens, which make up 18.9M; the layers 44.1M
    "transformer-big": 214.25,  # the paper says 213M; its 37000 tokens make up 37.9M, the layers 176.4M
    "bart-base": 139.42,
    "bart-large": 406.29,
    "t5-small": 60.51,  # the paper says 60M
    "t5-base": 222.90,  # the paper says 220M
    "t5-large": 737.67,  # the paper says 770M
    "t5-3b": 2851.60,  # the paper says 2.8B, and 3B in its name
    "t5-11b": 11_307.32,  # the paper says 11B
    "t5-v1.1-small": 76.96,
    "t5-v1.1-base": 247.58,
    "t5-v1.1-large": 783.15,
    "t5-v1.1-xl": 2849.76,
    "t5-v1.1-xxl": 11_135.33,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_of_published_sizes(name: str):
    assert count.parameters(SIZES[name]()) == pytest.approx(MILLIONS[name] * 1e6, rel=0.005)


def test_every_figure_has_its_size():
    assert set(MILLIONS) == set(SIZES)
