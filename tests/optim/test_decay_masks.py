import pytest

from llm_jax.core.trees import named_leaves
from llm_jax.layers.roles import Role
from llm_jax.optim.decay_masks import DecayAll, DecayMatching, DecayMatrices
from llm_jax.optim.matrix_layouts import MatrixLayout

PARAMETERS = {
    "embed/table": (("vocab", "embed"), Role.EMBEDDING),
    "stack/query/kernel": (("layers", "embed", "heads", "head_dim"), Role.MATRIX),
    "stack/query/bias": (("layers", "heads", "head_dim"), Role.BIAS),
    "stack/norm/scale": (("layers", "norm"), Role.NORM),
    "final_norm/scale": (("norm",), Role.NORM),
}


def tree():
    nested = {}
    for path, (logical_axes, role) in PARAMETERS.items():
        *parents, name = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = MatrixLayout(path, logical_axes, role)
    return nested


@pytest.mark.parametrize(
    "mask, decayed",
    [
        (DecayMatrices(), {"embed/table", "stack/query/kernel"}),
        (DecayMatrices(exclude=("embed",)), {"stack/query/kernel"}),
        (DecayAll(), set(PARAMETERS)),
        (DecayAll(exclude=("norm", "bias$")), {"embed/table", "stack/query/kernel"}),
        (DecayMatching(("query",)), {"stack/query/kernel", "stack/query/bias"}),
        (DecayMatching(("^embed/", "scale$")), {"embed/table", "stack/norm/scale", "final_norm/scale"}),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_selects(mask, decayed):
    selected = dict(named_leaves(mask.select(tree())))
    assert selected.keys() == PARAMETERS.keys()
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
        (lambda: DecayMatching(("(",)), "has '\\(', which is not a regular expression"),
        (lambda: DecayAll(exclude=("[",)), "exclude has '\\['"),
        (lambda: DecayMatrices(exclude=("*",)), "exclude has '\\*'"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
