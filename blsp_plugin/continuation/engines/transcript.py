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
    baseline that is trained on recognition only. Or the LLM writes the other
    behaviours, and the transcript only stands for what a small LLM fails at.

    Arguments
    ---------
    llm : FrozenLLM
        Its tokenizer makes the ids; its weights are in the fingerprint.
    behaviours : sequence of str, optional
        Names of those that are answered so; all if not given.
    batch_size : int
        Rows generated, or stored, together.
    window : int
        As that of `HFEngine`.
    """

    def __init__(self, llm, behaviours=None, batch_size=128, window=512):
        super().__init__(llm, batch_size, window)
        self.behaviours = behaviours and sorted(behaviours)

    def _generate(self, batch):
        named = self.behaviours
        if named is not None and batch[0].behaviour.name not in named:
            return super()._generate(batch)
        texts = [request.text for request in batch]
        rows = self.llm.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [
            Generation(ids, text, True)
            for ids, text in zip(rows, texts, strict=True)
        ]

    def fingerprint(self):
        """Name of the LLM, whose tokenizer decides: see `Engine`."""
        named = self.behaviours
        said = "" if named is None else " for " + ", ".join(named)
        return f"{super().fingerprint()} transcripts{said}"
