"""Section 9: decoder block."""

import pytest

from pgat_fast.model.reference.decoder import DecoderBlock
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import array, normal, randomize


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_block_equals_the_formulas(n_heads: int) -> None:
    block = DecoderBlock(8, n_heads, dropout=0.0)
    randomize(block)
    states, graph = normal(2, 5, 8), normal(2, 7, 8, seed=3)
    actual = block(states, graph)
    for b in range(2):
        d, graph_states = array(states[b]), array(graph[b])
        d = by_hand.layer_norm(block.norm1, d + by_hand.attention(block.self_attention, d, d))
        d = by_hand.layer_norm(block.norm2, d + by_hand.attention(block.cross_attention, d, graph_states))
        d = by_hand.layer_norm(block.norm3, d + by_hand.mlp(block.feed_forward, d))
        by_hand.assert_equal(actual[b], d)
