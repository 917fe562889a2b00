"""The transcript itself as the response: what speech recognition is taught.

Authors
 * The blsp_plugin team 2026
"""

from blsp_plugin.continuation.engines.hf import HFEngine
from blsp_plugin.decoding import Generation

__all__ = ["TranscriptEngine"]


class TranscriptEngine(HFEngine):
    """An engine that answers with the transcript, word for word.

    Nothing is generated: a table of all clips takes seconds. For warm starts
    by `TokenCTC` or `InputCTC`, which ask for the transcripts alone, and for a
    baseline that is trained on recognition only.

    Arguments
    ---------
    llm : FrozenLLM
        Its tokenizer makes the ids; its weights are in the fingerprint.
    batch_size : int
        Rows stored together.
    window : int
        As that of `HFEngine`.
    """

    def _generate(self, batch):
        texts = [request.text for request in batch]
        rows = self.llm.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            Generation(ids, text, True)
            for ids, text in zip(rows, texts, strict=True)
        ]

    def fingerprint(self):
        """Name of the LLM, whose tokenizer decides: see `Engine`."""
        return f"{super().fingerprint()} transcripts"
