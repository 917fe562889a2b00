"""Modality adapters: encoder states -> speech embeddings for the LLM.

Every adapter has two methods: ``forward(states, lengths, tokens=None)`` gives
``(speech, lengths, more)``, and ``output_lengths(lengths)`` tells the number
of speech tokens before the model runs (the data side calls it). Where that
number depends on what is said, ``counts_transcript`` is True: in training a
clip then gets as many speech tokens as its transcript has tokens (``tokens``).
``more`` is a dict of tensors, clip by clip, that losses on the input ask for.
``sizes()`` are the arguments that make it again, but for its weights; ``bind``,
where there is one, takes the LLM's `EmbeddingTable`, and gives the table that
its own vectors are compared with.

Authors
 * The blsp_plugin team 2026
"""

from blsp_plugin.adapters.cformer import CFormerAdapter
from blsp_plugin.adapters.concat_mlp import ConcatMLPAdapter
from blsp_plugin.adapters.conv import ConvAdapter
from blsp_plugin.adapters.ctc import CTCAdapter
from blsp_plugin.adapters.spelled import SpelledCTCAdapter

__all__ = [
    "CFormerAdapter",
    "CTCAdapter",
    "ConcatMLPAdapter",
    "ConvAdapter",
    "SpelledCTCAdapter",
]
