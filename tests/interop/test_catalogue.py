"""The two tables of published families."""

from llm_jax.interop import catalogue
from llm_jax.models.families import SIZES


def test_sizes_are_listed_with_layers_width_and_parameters():
    rows = {line.split()[1]: line.split() for line in catalogue().split("\n\n")[0].splitlines()[1:]}
    assert rows.keys() == SIZES.keys()
    assert rows["gpt2"] == ["gpt2", "gpt2", "12", "768", "124.4M", "-", rows["gpt2"][6], "gpt2,", "gpt_bigcode"]
    assert rows["albert-xxlarge"][2:] == ["12", "4096", "206.4M", "-", rows["albert-xxlarge"][6], "albert"]
    assert rows["t5-small"] == ["t5", "t5-small", "6+6", "512", "60.51M", "-", rows["t5-small"][6], "t5"]
    assert rows["mixtral-8x7b"][4:6] == ["46.7B", "12.88B"]
    assert rows["transformer-base"][6:] == ["properties", "-"]
    assert all(row[6] == "properties" or float(row[6]) <= 1e-4 for row in rows.values())
