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

# Activations. The model width of activations has its own logical axis, because it is not sharded where that of weights
# is. The length of the residual stream has its own axis, separate from the length inside branches.
BATCH = "batch"
LENGTH = "length"
WIDTH = "width"
STREAM = "stream"

LOGICAL_AXES = (
    *(EMBED, HEADS, KV_HEADS, BLOCKS, EXPERTS, HEAD_DIM, MLP, VOCAB, NORM, POSITIONS, TYPES, ROUTES, CLASSES, LAYERS),
    *(BATCH, LENGTH, WIDTH, STREAM),
)
