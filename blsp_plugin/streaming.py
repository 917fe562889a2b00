"""One growing sequence, read and written token by token.

A conversation is such a sequence: what has been read stays in the keys and
values, a new turn is read behind it, and the reply comes out as it is written.

Authors
 * The blsp_plugin team 2026
"""

import re

import torch
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from blsp_plugin.decoding import decoded_text
from blsp_plugin.errors import BadInput
from blsp_plugin.prefix import can_share_prefix

__all__ = ["Choice", "Sequence", "text_pieces"]

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class Choice:
    """How the next token is chosen: greedily, or by chance.

    A repetition penalty among the LLM's own settings is applied.

    Arguments
    ---------
    temperature : float
        0 is greedy.
    top_p : float
        Only the likeliest tokens that make up this share are drawn from.
    seed : int, optional
        Of the draws; others each time if not given.

    Raises
    ------
    BadInput
        If a number is out of its range.
    """

    def __init__(self, temperature=0.0, top_p=1.0, seed=None):
        if not 0 <= temperature <= 10 or not 0 < top_p <= 1:
            raise BadInput(
                f"temperature {temperature}, top_p {top_p}: give a "
                "temperature of 0 to 10 and a top_p of more than 0, up to 1"
            )
        self.temperature = temperature
        self.warpers = LogitsProcessorList()
        if temperature:
            self.warpers.append(TemperatureLogitsWarper(float(temperature)))
            if top_p < 1:
                self.warpers.append(TopPLogitsWarper(float(top_p)))
        self.generator = None
        if seed is not None:
            self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, llm, logits, written):
        """Choose.

        Arguments
        ---------
        llm : FrozenLLM
            Whose logits these are.
        logits : torch.Tensor
            Shape (vocabulary,), float32.
        written : list of int
            The reply so far.

        Returns
        -------
        int
        """
        penalty = llm.model.generation_config.repetition_penalty or 1.0
        ids = torch.tensor([written], dtype=torch.int64, device=logits.device)
        scores = logits[None]
        if penalty != 1.0 and written:
            # As transformers does it: of what was written, not of the prompt.
            scores = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
        if not self.temperature:
            return int(scores.argmax(-1))
        shares = self.warpers(ids, scores).softmax(-1)[0].cpu()
        return int(torch.multinomial(shares, 1, generator=self.generator))


class Sequence:
    """Keys and values of one sequence that grows at its end.

    Arguments
    ---------
    llm : FrozenLLM
        Reads and writes it. With LoRA, it does so with LoRA.
    """

    def __init__(self, llm):
        self.llm = llm
        # Windows of attention, too, are kept whole: masks make them windows,
        # and a sequence can be cut where another turn begins.
        self._whole = can_share_prefix(llm.model, 0)
        self._clear()

    def _clear(self):
        config = None if self._whole else self.llm.model.config
        self.cache = DynamicCache(config=config)
        self.length = 0

    def cut(self, length):
        """Keep the beginning only.

        Arguments
        ---------
        length : int
            Tokens to keep, at most.

        Returns
        -------
        int
            Tokens that are kept: 0 for an LLM with states that cannot be cut.
        """
        if length < self.length:
            if self._whole and length:
                self.cache.crop(length - self.length)
                self.length = length
            else:
                self._clear()
        return self.length

    @torch.no_grad()
    def read(self, embeds):
        """Read on.

        Arguments
        ---------
        embeds : torch.Tensor
            Shape (tokens, hidden_size), at least one token.

        Returns
        -------
        torch.Tensor
            Shape (vocabulary,), float32, logits of the next token.
        """
        llm, count = self.llm, len(embeds)
        places = torch.arange(self.length, self.length + count)
        with llm.running():
            hidden = llm.model.base_model(
                inputs_embeds=embeds[None].to(llm.dtype),
                attention_mask=torch.ones(
                    1, self.length + count, dtype=torch.int64
                ).to(llm.device),
                position_ids=places[None].to(llm.device),
                past_key_values=self.cache,
                use_cache=True,
            ).last_hidden_state
        self.length += count
        return llm.project(hidden[0, -1])

    def write(self, logits, max_new_tokens, choice):
        """Write a reply; the sequence grows by all of it but its last token.

        Arguments
        ---------
        logits : torch.Tensor
            Shape (vocabulary,), from `read`.
        max_new_tokens : int
            Longest reply.
        choice : Choice
            Of each token.

        Yields
        ------
        int
            Token ids, without the end-of-sequence token.
        """
        written = []
        for left in reversed(range(max_new_tokens)):
            token = choice(self.llm, logits, written)
            if token in self.llm.stop_ids:
                return
            written.append(token)
            yield token
            if left:
                ids = torch.tensor([token], device=self.llm.device)
                logits = self.read(self.llm.embed(ids))


def text_pieces(tokenizer, ids):
    """The text of a reply, in pieces, while its tokens come.

    Together they are the text of all tokens, stripped. Characters that need
    more tokens, and spaces that may be the last, wait for what follows.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the LLM.
    ids : iterable of int
        Token ids.

    Yields
    ------
    str
        Not empty.
    """
    written, said, text = [], "", ""
    for token in ids:
        written.append(token)
        text = decoded_text(tokenizer, written)
        # SentencePiece's bytes ("<0x0A>") are one text with those around them.
        if _BYTE.fullmatch(tokenizer.convert_ids_to_tokens(token)):
            continue
        if text.endswith("\ufffd") or not text.startswith(said):
            continue
        if len(text) > len(said):
            yield text[len(said) :]
            said = text
    if len(text) > len(said):
        yield text[len(said) :]
