"""Engines: what writes the responses, behind one interface.

An engine first plans a window of requests into batches, then generates batch
by batch. The plan depends on the requests alone, and a batch is always
generated whole, even if a killed run has already written a part of it: in
bfloat16 a text can depend on its batch, so this is what makes a resumed run
equal to an unbroken one, on any number of processes.

Authors
 * The blsp_plugin team 2026
"""

import itertools
from typing import NamedTuple

from blsp_plugin.continuation import greedy
from blsp_plugin.errors import BadInput
from blsp_plugin.packing import Row, pack

__all__ = ["Engine", "HFEngine", "Request"]


class Request(NamedTuple):
    """One response to be written.

    Arguments
    ---------
    key : str
        ID of the response.
    behaviour : Behaviour
        Instruction and decoding settings.
    text : str
        The transcript in the prompt.
    prompt_ids : tuple of int
        The whole prompt: the text twin of what training will see.
    """

    key: str
    behaviour: object
    text: str
    prompt_ids: tuple


class Engine:
    """What every engine does.

    Attributes
    ----------
    window : int
        How many requests it wants to see at once.
    """

    window = 512

    def plan(self, requests):
        """Split a window into batches; the same window gives the same ones.

        Arguments
        ---------
        requests : list of Request
            At most ``window``.

        Returns
        -------
        list of list of Request
        """
        raise NotImplementedError

    def generate(self, batches):
        """Write the responses, in groups that are ready to be stored.

        Arguments
        ---------
        batches : list of list of Request
            From `plan`, perhaps not all of them.

        Yields
        ------
        list of (Request, Generation)
        """
        raise NotImplementedError

    def fingerprint(self):
        """Short name of what decides the texts, a str without newlines."""
        raise NotImplementedError

    def describe(self):
        """Everything worth knowing later, a dict for JSON."""
        raise NotImplementedError


class HFEngine(Engine):
    """Runs the LLM here, in batches of one behaviour and similar length.

    Arguments
    ---------
    llm : FrozenLLM
        Already on its device.
    batch_size : int
        Rows generated together; lower it if memory runs out (a run may be
        continued with another batch size).
    window : int
        Rows sorted by length together.

    Example
    -------
    >>> from blsp_plugin.continuation.behaviours import Behaviour
    >>> engine = HFEngine(llm=None, batch_size=2)
    >>> go_on = Behaviour("continue", "Go on.")
    >>> requests = [Request(k, go_on, k, (0,) * len(k)) for k in ("abc", "a",
    ...     "ab")]
    >>> [[r.key for r in batch] for batch in engine.plan(requests)]
    [['abc', 'ab'], ['a']]
    """

    def __init__(self, llm, batch_size=32, window=512):
        if batch_size < 1:
            raise BadInput(f"batch_size {batch_size}: must be at least 1")
        self.llm = llm
        self.batch_size = batch_size
        self.window = max(window, batch_size)

    def plan(self, requests):
        """Batches of one behaviour each, longest first: see `Engine.plan`."""
        # One behaviour, so that a batch shares its decoding settings; longest
        # first, so that too large a batch fails at once.
        ordered = sorted(
            requests, key=lambda r: (r.behaviour.name, -len(r.prompt_ids))
        )
        batches = []
        for _, group in itertools.groupby(ordered, lambda r: r.behaviour.name):
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
        if plain and greedy.can_decode(self.llm, longest):
            return greedy.decode(self.llm, prompts, behaviour.max_new_tokens)
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
                self._without_stop(generation, behaviour.stop)
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

    def _without_stop(self, generation, stop):
        """The stop text is no part of the response, so its ids are not."""
        ids = list(generation.ids)
        while ids and stop in self.llm.tokenizer.decode(ids):
            ids.pop()
        return generation._replace(ids=ids)
