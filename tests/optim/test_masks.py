import pytest

from llm_jax.core.trees import named_leaves
from llm_jax.optim.layouts import Layout
from llm_jax.optim.masks import DecayAll, DecayMatching, DecayMatrices

WORDS = {
    "embed/table": ("vocab", "embed"),
    "stack/query/kernel": ("layers", "embed", "heads", "head_dim"),
    "stack/query/bias": ("layers", "heads", "head_dim"),
    "stack/norm/scale": ("layers", "norm"),
    "final_norm/scale": ("norm",),
}


def tree():
    nested = {}
    for path, words in WORDS.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = Layout(path, words)
    return nested


@pytest.mark.parametrize(
    "mask, decayed",
    [
        (DecayMatrices(), {"embed/table", "stack/query/kernel"}),
        (DecayMatrices(exclude=("embed",)), {"stack/query/kernel"}),
        (DecayAll(), set(WORDS)),
        (DecayAll(exclude=("norm", "bias$")), {"embed/table", "stack/query/kernel"}),
        (DecayMatching(("query",)), {"stack/query/kernel", "stack/query/bias"}),
        (DecayMatching(("^embed/", "scale$")), {"embed/table", "stack/norm/scale", "final_norm/scale"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_selects(mask, decayed):
    selected = dict(named_leaves(mask.select(tree())))
    assert selected.keys() == WORDS.keys()
    assert {path for path, decays in selected.items() if decays} == decayed


@pytest.mark.parametrize(
    "mask, pattern",
    [
        (DecayMatching(("query", "quary")), "quary"),
        (DecayAll(exclude=("lm_head",)), "lm_head"),
        # A bias does not decay anyway: excluding it would say something that is not so.
        (DecayMatrices(exclude=("bias",)), "bias"),
    ],
)
def test_a_pattern_without_effect_is_an_error(mask, pattern):
    with pytest.raises(ValueError, match=f"'{pattern}' matches none of the . parameters.*stack/query/kernel"):
        mask.select(tree())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DecayMatching(()), "patterns is empty"),
        (lambda: DecayMatching("query"), "must be a tuple"),
        (lambda: DecayMatching(("(",)), "holds '\\(', no regular expression"),
        (lambda: DecayAll(exclude=("[",)), "exclude holds '\\['"),
        (lambda: DecayMatrices(exclude=("*",)), "exclude holds '\\*'"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
