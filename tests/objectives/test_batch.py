import numpy as np

from llm_jax.objectives.batch import Batch


def test_inputs_targets_and_what_counts():
    rows = {
        "tokens": np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]], np.int32),
        "segment_ids": np.array([[1, 1, 2, 2, 2, 3], [1, 1, 1, 0, 0, 0]], np.int32),
        "positions": np.array([[0, 1, 0, 1, 2, 0], [0, 1, 2, 0, 0, 0]], np.int32),
    }
    batch = Batch.next_tokens(rows)
    np.testing.assert_array_equal(batch.inputs.tokens_BT, [[1, 2, 3, 4, 5], [7, 8, 9, 0, 0]])
    np.testing.assert_array_equal(batch.targets_BT, [[2, 3, 4, 5, 6], [8, 9, 0, 0, 0]])
    np.testing.assert_array_equal(batch.inputs.sequence.segment_ids_BT, [[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(batch.inputs.sequence.positions_BT, [[0, 1, 0, 1, 2], [0, 1, 2, 0, 0]])
    # No target across documents, none that is padding.
    np.testing.assert_array_equal(batch.loss_weights_BT, [[1, 0, 1, 1, 0], [1, 1, 0, 0, 0]])
    assert batch.loss_weights_BT.dtype == np.float32 and batch.inputs.tokens_BT.dtype == np.int32
