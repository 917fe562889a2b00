"""The LLM in this process, through transformers.

Authors
 * The blsp_plugin team 2026
"""

import itertools

from blsp_plugin.continuation.engines.base import Engine, own_ids
from blsp_plugin.decoding import can_decode, decode_ids
from blsp_plugin.errors import BadInput
from blsp_plugin.packing import Row, pack

__all__ = ["HFEngine"]


class HFEngine(Engine):
    """Runs the LLM here, in batches of one instruction and similar length.

    Arguments
    ---------
    llm : FrozenLLM
        Any causal LM.
    batch_size : int
        Rows generated together; lower it if memory runs out (a run may be
        continued with another batch size).
    window : int
        Rows sorted by length together.

    Example
    -------
    >>> from blsp_plugin.continuation.behaviours import Behaviour
    >>> from blsp_plugin.continuation.engines import Request
    >>> engine = HFEngine(llm=None, batch_size=2)
    >>> go_on = Behaviour("continue", "Go on.")
    >>> requests = [
    ...     Request(n, key, go_on, "Go on.", key, (0,) * len(key))
    ...     for n, key in enumerate(("abc", "a", "ab"))
    ... ]
    >>> [[r.key for r in batch] for batch in engine.plan(requests)]
    [['abc', 'ab'], ['a']]
    """

    def __init__(self, llm, batch_size=128, window=512):
        if batch_size < 1:
            raise BadInput(f"batch_size {batch_size}: must be at least 1")
        self.llm = llm
        self.batch_size = batch_size
        self.window = max(window, batch_size)

    def to(self, device):
        """Move the LLM to the device."""
        self.llm.to(device)

    def plan(self, requests):
        """Batches of one instruction each, longest first: see `Engine.plan`."""

        # One behaviour, so that a batch shares its decoding settings, and one
        # instruction, which is then read once; longest first, so that too
        # large a batch fails at once.
        def kind(request):
            return request.behaviour.name, request.instruction

        ordered = sorted(requests, key=lambda r: (kind(r), -len(r.prompt_ids)))
        batches = []
        for _, group in itertools.groupby(ordered, kind):
            group = list(group)
            for start in range(0, len(group), self.batch_size):
                batches.append(group[start : start + self.batch_size])
        return batches

    def generate(self, batches):
        """One group a batch: see `Engine.generate`."""
        for batch in batches:
            yield list(zip(batch, self._generate(batch), strict=True))

    def _generate(self, batch):
        """The responses to one batch."""
        behaviour = batch[0].behaviour
        prompts = [request.prompt_ids for request in batch]
        longest = max(map(len, prompts)) + behaviour.max_new_tokens
        plain = behaviour.num_beams == 1 and behaviour.stop is None
        if plain and can_decode(self.llm, longest):
            return decode_ids(self.llm, prompts, behaviour.max_new_tokens)
        packed = pack(
            [Row(prompt, (), ()) for prompt in prompts],
            pad_id=self.llm.tokenizer.pad_token_id,
            eos_id=self.llm.eos_id,
            side="left",
        ).to(self.llm.device)
        generations = self.llm.generate(
            self.llm.embed(packed.input_ids),
            packed.attention_mask,
            max_new_tokens=behaviour.max_new_tokens,
            num_beams=behaviour.num_beams,
            stop=behaviour.stop,
        )
        if behaviour.stop is not None:
            generations = [
                generation._replace(
                    ids=own_ids(
                        self.llm.tokenizer, generation.ids, behaviour.stop
                    )
                )
                for generation in generations
            ]
        return generations

    def fingerprint(self):
        """Name of the weights, and the dtype they are used in."""
        dtype = str(self.llm.dtype).removeprefix("torch.")
        return f"{self.llm.fingerprint()} in {dtype}"

    def describe(self):
        """Weights, their source, and the batches: see `Engine.describe`."""
        return {
            "engine": type(self).__name__,
            "llm": self.fingerprint(),
            "source": self.llm.source,
            "stop_ids": self.llm.stop_ids,
            "batch_size": self.batch_size,
            "window": self.window,
        }
