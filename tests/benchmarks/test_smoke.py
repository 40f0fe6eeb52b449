"""Every benchmark runs: its smallest shapes, through its command line, without publishing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS = ROOT / "experiments" / "benchmarks"
PEERS = {
    "decode": ("torch", "transformers"),
    "train_step": ("torch", "transformers"),
    "tpu_aot": ("libtpu",),
    "tpu_cost": ("libtpu",),
}
ALONE = (
    "attention_memory",
    "input_pipeline",
    "loop_overhead",
    "memory",
    "moe",
    "sharding_overhead",
    "strategies",
    "token_cache",
)


def smoke(name: str, *arguments: str) -> str:
    """What the benchmark prints."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--smoke", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    environment["TPU_SKIP_MDS_QUERY"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(table: str) -> list[list[str]]:
    """Rows of a printed Markdown table after its header."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0] != "---"][1:]


def test_memory_of_the_chunked_loss_is_below_the_plain_one():
    rows = cells(smoke("memory"))
    assert rows[0][0] == "plain" and len(rows) == 2
    assert float(rows[1][2]) < float(rows[0][2])


def test_of_all_attention_kernels_the_chunked_one_needs_least_memory():
    rows = [row for row in cells(smoke("attention_memory")) if row[0] == "128"]
    memory, work = ({row[1]: float(row[column]) for row in rows} for column in (3, 5))
    assert set(memory) == {"PlainKernel", "BlockedKernel", "ChunkedKernel", "DotProductKernel"}
    assert min(memory, key=memory.get) == "ChunkedKernel" and memory["PlainKernel"] == 1
    # Eight blocks of queries see (8 + 1) / 2 of eight blocks of keys; it makes the scores again for the backward pass.
    assert 0.5 < work["ChunkedKernel"] < 1


@pytest.mark.full(reason="tests/train/test_dispatch.py has the loop")
def test_the_loop_dispatches_ahead_and_compiles_nothing_after_its_first_step():
    (row,) = cells(smoke("loop_overhead"))
    assert row[-1] == "0" and float(row[-3]) > 0
    assert float(row[-2]) > 0.3


def _sent(*arguments: str) -> dict[str, float]:
    """Bytes that a device sends by each strategy, over the textbook's."""
    return {row[1]: float(row[6]) for row in cells(smoke("strategies", *arguments)) if row[0] == "tiny"}


@pytest.mark.full(
    reason="tests/planning/test_collectives.py counts bytes, tests/parity/test_matrix.py has the strategies"
)
def test_strategies_send_the_bytes_of_the_textbook():
    names = ("data parallel", "ZeRO-1", "ZeRO-2", "ZeRO-3 (FSDP)", "FSDP, replicas of it")
    sent = _sent("--length", "64", "--strategies", *names)
    assert set(sent) == set(names) and all(0.9 < ratio < 1.1 for ratio in sent.values()), sent


@pytest.mark.slow
def test_compiled_for_tpus_products_cut_by_heads_and_features_send_the_bytes_of_the_textbook():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: nothing compiles for TPUs")
    # Gradients are scattered there, and the parts that XLA's CPU compiler sums one by one are summed first.
    names = ("ZeRO-2", "tensor", "tensor, sequence")
    sent = _sent("--platform", "v5e:2x4", "--length", "1024", "--strategies", *names)
    assert set(sent) == set(names) and all(0.9 < ratio < 1.1 for ratio in sent.values()), sent


@pytest.mark.full(reason="tests/train/test_compile.py has the programs")
def test_a_mesh_of_one_device_runs_all_programs():
    rows = cells(smoke("sharding_overhead"))
    assert rows[0][1] == "plain" and len(rows) == 5 and all(float(row[-1]) > 0 for row in rows)


def test_mixtures_stand_beside_the_dense_model_of_their_active_parameters():
    dense, *mixtures = cells(smoke("moe"))
    assert dense[0] == "dense" and dense[5] == dense[7] == "1.000" and len(mixtures) == 2
    total, active = ([int(row[column].replace(",", "")) for row in (dense, *mixtures)] for column in (2, 3))
    # Routers are all that a token passes besides.
    assert total[0] == active[0] < min(active[1:]) and max(active) < 1.2 * active[0] < min(total[1:])


def test_text_is_tokenised_in_little_more_memory_than_the_imports_take():
    imports, text = cells(smoke("token_cache"))
    assert text[:2] == ["one text file", "1 MB"] and float(text[3]) > 0
    assert float(imports[-1]) < float(text[-1]) < 2 * float(imports[-1])


def test_batches_of_every_objective_are_made():
    rows = cells(smoke("input_pipeline"))
    assert {"causal", "masked, whole words", "span corruption", "deshuffling"} < {row[0] for row in rows}
    assert all(float(row[1].replace(",", "")) > 0 and float(row[2]) > 0 for row in rows)


def test_instructions_of_both_sides_are_limited_before_they_are_looked_for():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: train_step.py needs it")
    # XLA complains of a value that it does not know: it has read the flag.
    program = (
        "import train_step; train_step.limit('SSE4_2'); import os, torch; "
        "print(torch.backends.cpu.get_cpu_capability()); os.environ['XLA_FLAGS'] += 'x'; train_step.jax.devices()"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(BENCHMARKS)]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip() == "DEFAULT" and "Unknown CPU ISA: SSE4_2X" in done.stderr, done.stderr


_FULL = pytest.mark.full(reason="tests/inference has what is timed, and train_step the comparison with a peer")


@pytest.mark.parametrize("name", [pytest.param(name, marks=_FULL) if name == "decode" else name for name in PEERS])
def test_runs_where_its_peers_are_installed(name: str):
    for package in PEERS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: {name}.py needs it")
    assert all(float(row[-1]) > 0 for row in cells(smoke(name))[-2:])


def test_every_benchmark_is_tested_and_has_its_place_in_the_readme():
    readme = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    commands = {path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert commands == {*PEERS, *ALONE}
    for name in commands:
        assert len(re.findall(rf"<!-- /?{name} -->", readme)) == 2
        source = (BENCHMARKS / f"{name}.py").read_text(encoding="utf-8")
        assert f'publish("{name}"' in source or f'table: str = "{name}"' in source
