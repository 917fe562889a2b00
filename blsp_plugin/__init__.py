"""BLSP: align speech with a frozen language model, as a SpeechBrain plugin.

A transcript becomes a continuation, written by the language model itself; the
clip of that transcript becomes a few speech embeddings; the embeddings take
the transcript's place in the same prompt; an adapter learns until the frozen
model behaves the same (https://arxiv.org/abs/2309.00916).

Nothing is imported here: ``python -m blsp_plugin.doctor`` must run in an
environment where SpeechBrain itself cannot be imported yet.

Authors
 * The blsp_plugin team 2026
"""

__version__ = "0.1.0"
