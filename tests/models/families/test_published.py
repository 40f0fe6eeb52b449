"""Numbers of parameters of the published sizes, counted from their configs alone.

Figures are those of the papers, or where these round to a digit, of the checkpoints: then the figure has more digits.
"""

import pytest

from llm_jax.layers.ffn.moe import MoEConfig
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
    "olmo3-7b": 7298.01,
    "smollm3-3b": 3075.10,
    "exaone4-1.2b": 1279.39,
    "exaone4-32b": 32_003.22,
    "ernie4.5-0.3b": 360.75,
    "glm4-9b": 9399.95,
    "glm4-9b-0414": 9400.28,
    "mt5-small": 300.18,
    "mt5-base": 582.40,
    "mt5-large": 1229.58,
    "umt5-small": 306.60,
    "umt5-base": 592.04,
    "umt5-xxl": 12_972.53,
    "xlm-roberta-base": 278.30,
    "xlm-roberta-large": 560.14,
    "camembert-base": 110.66,
    "olmo-1b": 1176.76,
    "olmo-7b": 6888.10,
    "granite-3.0-2b": 2533.53,
    "granite-3.0-8b": 8170.85,
    "granite-3.0-1b-a400m": 1334.63,
    "granite-3.0-3b-a800m": 3298.79,
    "nemotron4-15b": 15_628.78,
    "minitron-8b": 8271.70,
    "persimmon-8b": 9397.18,
    "mbart-large": 611.10,
    "pegasus-large": 568.80,
    "mpnet-base": 109.52,  # with the scores of masked tokens
    "modernbert-base": 149.66,  # the paper says 149M
    "modernbert-large": 395.88,  # the paper says 395M
    "distilbert-base": 66.99,
    "gpt-neo-125m": 125.20,
    "gpt-neo-1.3b": 1315.58,
    "gpt-neo-2.7b": 2651.31,
    "codegen-350m": 356.71,
    "codegen-2b": 2779.36,
    "phi-1.5": 1418.27,
    "phi-2": 2779.68,
    "stablelm-3b": 2795.44,
    "stablelm2-1.6b": 1644.52,
    "command-r-v01": 34_980.83,
    "command-r-plus": 103_810.67,
    "command-r7b": 8028.03,
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
    "mixtral-8x7b": 46_702.79,
    "mixtral-8x22b": 140_620.63,
    "qwen1.5-moe-a2.7b": 14_315.78,
    "qwen2-57b-a14b": 57_408.66,  # the paper says 57.4B
    "qwen3-30b-a3b": 30_532.12,
    "qwen3-235b-a22b": 235_093.63,
    "olmoe-1b-7b": 6919.16,
    "deepseek-v2-lite": 15_706.48,
    "deepseek-v2": 235_741.43,
    "deepseek-v3": 671_026.42,  # without the layer that predicts a second token
    "dbrx": 131_596.52,
    "gpt-oss-20b": 20_914.76,
    "gpt-oss-120b": 116_829.16,
    "switch-base-8": 619.34,
    "switch-base-16": 1072,
    "switch-base-32": 1978,
    "switch-base-64": 3791,
    "switch-base-128": 7415,  # the paper says 7B, of gated experts with as many parameters
    "switch-base-256": 14_664,
    "switch-large-128": 26_309,  # the paper says 26B, likewise
    "switch-c-2048": 1_571_000,
    "gshard-12l-128e": 13_170,  # counted here: see GSHARD
    "gshard-12l-512e": 51_827,
    "gshard-12l-2048e": 206_456,
    "gshard-36l-128e": 39_445,
    "gshard-36l-512e": 155_416,
    "gshard-36l-2048e": 619_301,
    "glam-0.1b-64e": 1900,
    "glam-1.7b-64e": 26_845,  # the paper says 27B
    "glam-1.7b-128e": 52_617,  # the paper says 53B
    "glam-1.7b-256e": 104_159,  # the paper says 105B
    "glam-8b-64e": 143_000,
    "glam-64b-64e": 1_161_756,  # the paper says 1.2T
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
    "bamba-9b": 9780.24,  # its card says 9.78B
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


# In billions, by arXiv:2006.16668, table 1. The experts of the shapes that it states are more than that already.
GSHARD = {"12l-128e": 12.5, "12l-512e": 50, "12l-2048e": 200, "36l-128e": 37, "36l-512e": 150, "36l-2048e": 600}


@pytest.mark.parametrize("name", GSHARD)
def test_a_gshard_has_as_many_parameters_as_its_paper_rounds_to(name: str):
    assert 1.03 < count.parameters(SIZES[f"gshard-{name}"]()) / (GSHARD[name] * 1e9) < 1.07


# Those that compute a token, in billions, as published, and how far the count may be off: about half of the figure's
# last digit. "But the table": the authors leave the vectors of tokens out, of which a token reads one.
ACTIVE = {
    "mixtral-8x7b": (12.9, 0.05),  # the paper says 13B, the announcement 12.9B
    "mixtral-8x22b": (39.1, 0.1),
    "qwen1.5-moe-a2.7b": (2.7, 0.05),
    "qwen2-57b-a14b": (14.2, 0.06),
    "qwen3-30b-a3b": (3.3, 0.06),
    "qwen3-235b-a22b": (22.2, 0.05),
    "granite-3.0-1b-a400m": (0.43, 0.02),
    "granite-3.0-3b-a800m": (0.88, 0.02),
    "olmoe-1b-7b": (1.3, 0.05),
    "deepseek-v2-lite, but the table": (2.4, 0.06),
    "deepseek-v2": (21.0, 0.5),
    "deepseek-v3": (37.0, 0.6),
    "dbrx": (36.0, 0.5),
    "gpt-oss-20b, but the table": (3.61, 0.005),
    "gpt-oss-120b, but the table": (5.13, 0.005),
    "glam-0.1b-64e": (0.145, 0.008),
    "glam-1.7b-64e": (1.879, 0.005),
    "glam-1.7b-128e": (1.881, 0.005),
    "glam-1.7b-256e": (1.886, 0.005),
    "glam-8b-64e": (9.8, 0.05),
    "glam-64b-64e": (96.6, 0.05),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_active_parameters_of_published_sizes(name: str):
    size, _, exception = name.partition(", ")
    config = SIZES[size]()
    table = config.vocab_size * config.width if exception else 0
    figure, tolerance = ACTIVE[name]
    assert abs(count.active_parameters(config) - table - figure * 1e9) <= tolerance * 1e9


def test_a_token_of_a_switch_computes_as_much_as_one_of_t5():
    """But for the router: "FLOP-matched" (arXiv:2101.03961, 2.1)."""
    dense = count.parameters(SIZES["t5-base"]())
    for size in (8, 256):
        active = count.active_parameters(SIZES[f"switch-base-{size}"]())
        assert active - dense == 12 * 768 * size


def test_an_expert_of_a_gshard_has_places_for_an_even_load_of_both_choices():
    """2 N / E of a group of N tokens (arXiv:2006.16668, 2.2)."""
    for config in (SIZES["gshard-12l-128e"]().encoder, SIZES["glam-1.7b-64e"]()):
        (ffn,) = {block.ffn for block in config.segments[0].blocks if isinstance(block.ffn, MoEConfig)}
        assert ffn.dispatch.expert_capacity(1024, ffn.router.top, ffn.count) == 2 * 1024 / ffn.count


def test_every_size_with_experts_has_a_figure_of_what_is_active():
    mixed = {name for name in SIZES if count.active_parameters(SIZES[name]()) != count.parameters(SIZES[name]())}
    unsaid = {name for name in mixed if name.startswith(("switch-", "gshard-"))}
    assert mixed - unsaid == {name.partition(", ")[0] for name in ACTIVE}


def test_every_figure_has_its_size():
    assert set(MILLIONS) == set(SIZES)
