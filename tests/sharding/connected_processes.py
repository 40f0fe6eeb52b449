"""A program: one of two processes of two devices each, that connects and then trains. Usage: PORT INDEX."""

import sys

from llm_jax.data.feed import global_batch
from llm_jax.hosts.hosts_config import HostsConfig
from llm_jax.hosts.process_group import joined
from llm_jax.models.transformer import Transformer
from llm_jax.objectives.causal_lm import CausalLMConfig
from llm_jax.optim import AdamWConfig
from llm_jax.sharding.connect import connect
from llm_jax.sharding.mesh import MeshConfig
from llm_jax.sharding.partition import Layout
from llm_jax.sharding.rules import Combined, FullySharded, ShardingConfig, TensorParallel
from llm_jax.train.programs import programs
from llm_jax.train.step import StepConfig
from tests.helpers.tiny import batch, tiny_gpt2


def main(port: str, index: str) -> None:
    """Prints a line when the processes are connected, and one after a step, an evaluation and the weights in use."""
    with joined(HostsConfig(f"localhost:{port}", 2, int(index))) as hosts:
        sharding = ShardingConfig(MeshConfig(fsdp=2, tensor=2), Combined(FullySharded(), TensorParallel()))
        layout = Layout.of(sharding)
        connect(layout.mesh, hosts)
        print("connected", flush=True)
        model, optimizer = Transformer(tiny_gpt2(layers=1)), AdamWConfig(peak_lr=1e-3)
        made = programs(model, CausalLMConfig(), optimizer, StepConfig(), layout, 3, 0)
        with made.activated():
            rows = global_batch(batch(4), layout.rows)
            state, report = made.step(made.fresh(), rows)
            made.evaluate(made.weights(state), rows)["loss"].total.block_until_ready()
        print("trained", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
