"""Settings for the whole suite."""

import jax

# Tests compile far more than they compute: the machine-code optimiser costs more than it saves. What XLA does to the
# program itself (fusion, sharding, memory) stays as it is.
jax.config.update("jax_disable_most_optimizations", True)
