"""The logical axes with which layers annotate arrays. A strategy (rules.py) maps each to mesh axes, or to none."""

# Parameters.
EMBED = "embed"
HEADS = "heads"
KV_HEADS = "kv_heads"
BLOCKS = "blocks"
EXPERTS = "experts"
HEAD_DIM = "head_dim"
MLP = "mlp"
VOCAB = "vocab"
NORM = "norm"
POSITIONS = "positions"
TYPES = "types"
ROUTES = "routes"
CLASSES = "classes"
LAYERS = "layers"

# Activations. The model width of an activation has a word of its own: it is not divided where the weights' is. So has
# the length of the residual stream, beside that of what is made of it.
BATCH = "batch"
LENGTH = "length"
WIDTH = "width"
STREAM = "stream"

LOGICAL_AXES = (
    *(EMBED, HEADS, KV_HEADS, BLOCKS, EXPERTS, HEAD_DIM, MLP, VOCAB, NORM, POSITIONS, TYPES, ROUTES, CLASSES, LAYERS),
    *(BATCH, LENGTH, WIDTH, STREAM),
)
