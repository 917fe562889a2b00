"""Greedy decoding of many prompts that begin alike.

What is spent on a batch is what its rows need: the prompts' common beginning
(the instruction) is read once for all rows, the rest among prompts of similar
length, and a row leaves the batch soon after it has ended. transformers'
``generate`` reads the instruction in every row and decodes all rows to the
length of the longest; it remains the measure: in float32 both give the same
tokens.

Authors
 * The blsp_plugin team 2026
"""

import os
from typing import NamedTuple

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from blsp_plugin.errors import BadInput
from blsp_plugin.packing import Row, pack

__all__ = [
    "Generation",
    "can_decode",
    "decode",
    "decode_ids",
    "decoded_text",
    "response_limits",
    "read_prompts",
]

# Settings of an LLM that leave plain greedy decoding as it is.
_HARMLESS = {
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "max_length",
    "max_new_tokens",
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict_in_generate",
    "_from_model_config",
}
_TOKENS_AT_ONCE = 2048  # of prompts, padding included


class Generation(NamedTuple):
    """One generated response.

    Arguments
    ---------
    ids : list of int
        Token ids, without the end-of-sequence token.
    text : str
        Their text, special tokens left out, stripped.
    ended : bool
        Whether the model ended it; False if it was cut at its limit.
    """

    ids: list
    text: str
    ended: bool


def can_decode(llm, longest):
    """Whether `decode` gives what the LLM's own ``generate`` gives.

    Not if it cannot share a prefix, or if the LLM asks for penalties by
    itself.

    Arguments
    ---------
    llm : FrozenLLM
        The LLM.
    longest : int
        Tokens of the longest prompt with its response.

    Returns
    -------
    bool
    """
    wishes = llm.model.generation_config.to_diff_dict()
    return llm.can_share_prefix(longest) and not set(wishes) - _HARMLESS


@torch.no_grad()
def decode(
    llm,
    inputs_embeds,
    attention_mask,
    prefixes,
    limits,
    on_first_token=None,
):
    """Decode prompts greedily.

    Arguments
    ---------
    llm : FrozenLLM
        The LLM, for which `can_decode` holds.
    inputs_embeds : torch.Tensor
        Shape (batch, time, hidden_size), left-padded: the prompts after their
        prefixes, at least one token each.
    attention_mask : torch.Tensor
        Shape (batch, time), 1 on valid tokens.
    prefixes : sequence of tuple of int
        Token ids that the prompts start with, one prefix a row.
    limits : sequence of int
        Longest response to each prompt, at least 1.
    on_first_token : callable, optional
        Called without arguments once the first tokens are known.

    Returns
    -------
    list of Generation
        One a prompt.
    """
    with llm.running():
        parts = list(read_prompts(llm, inputs_embeds, attention_mask, prefixes))
        cache, mask, logits = _stack(llm, parts, room=max(limits))
        if on_first_token is not None:
            logits.argmax(-1).tolist()  # waits for the device
            on_first_token()
        return _decode(llm, cache, mask, logits, limits)


def response_limits(rows, max_new_tokens, max_decode_ratio=None):
    """How many tokens each response may have.

    Arguments
    ---------
    rows : sequence of Row
        Prompts.
    max_new_tokens : int
        Of any response.
    max_decode_ratio : float, optional
        Of a response, for each token in the slot of its prompt (as for the
        toolkit's searchers, whose ratio is of encoder frames); any number if
        not given.

    Returns
    -------
    list of int
        At least 1 each.

    Raises
    ------
    BadInput
        If the ratio is not above 0.
    """
    if max_decode_ratio is None:
        return [max_new_tokens] * len(rows)
    if not max_decode_ratio > 0:
        raise BadInput(f"max_decode_ratio {max_decode_ratio}: give more than 0")
    longest = (max_decode_ratio * row.slot_length for row in rows)
    return [max(1, int(min(max_new_tokens, n))) for n in longest]


def read_prompts(llm, inputs_embeds, attention_mask, prefixes):
    """Read prompts, those of similar length at once.

    Arguments
    ---------
    llm, inputs_embeds, attention_mask, prefixes
        As those of `decode`.

    Yields
    ------
    cache : transformers.DynamicCache
        Keys and values of some prompts, prefixes included; rows in order.
    mask : torch.Tensor
        Shape (prompts, time), 1 where the cache holds a token.
    logits : torch.Tensor
        Shape (prompts, vocabulary), of the first token of the response.
    """
    for rows, time in _groups(attention_mask.sum(1).tolist()):
        yield _read(
            llm,
            inputs_embeds[rows, -time:],
            attention_mask[rows, -time:],
            prefixes[rows],
        )


def _decode(llm, cache, mask, logits, limits):
    """Write greedily behind prompts that have been read."""
    places = mask.sum(1, keepdim=True)  # of the next token
    written, ended = [[] for _ in mask], [False] * len(mask)
    here = list(range(len(mask)))  # rows still in the batch

    def goes_on(row):
        return not ended[row] and len(written[row]) < limits[row]

    for step in range(max(limits)):
        tokens = logits.argmax(-1)
        for row, token in zip(here, tokens.tolist(), strict=True):
            if goes_on(row):
                ended[row] = token in llm.stop_ids
                if not ended[row]:
                    written[row].append(token)
        going = [i for i, row in enumerate(here) if goes_on(row)]
        if not going:
            break
        # Leaving costs a copy of the keys and values: not for every row.
        if len(going) <= 0.85 * len(here):
            keep = torch.tensor(going, device=llm.device)
            tokens, mask, places = tokens[keep], mask[keep], places[keep]
            here = [here[i] for i in going]
            # Columns that only rows with longer prompts had are given up too.
            used = int(mask.any(0).nonzero()[0])
            room = max(limits[row] for row in here) - step
            cache = _cut(llm, cache, keep, used, room)
            mask = mask[:, used:]
        mask = torch.cat([mask, mask.new_ones(len(here), 1)], 1)
        logits = _step(llm, llm.embed(tokens.unsqueeze(1)), mask, places, cache)
        places = places + 1
    return [
        Generation(ids, decoded_text(llm.tokenizer, ids), end)
        for ids, end in zip(written, ended, strict=True)
    ]


def decode_ids(llm, prompts, max_new_tokens):
    """Decode prompts of token ids; what all begin with is read once.

    Arguments
    ---------
    llm : FrozenLLM
        The LLM, for which `can_decode` holds.
    prompts : sequence of sequence of int
        Token ids, not empty.
    max_new_tokens : int
        Longest response.

    Returns
    -------
    list of Generation
        One a prompt.
    """
    prompts = [tuple(prompt) for prompt in prompts]
    common = len(os.path.commonprefix(prompts))
    common = min(common, min(map(len, prompts)) - 1)  # the rest is not empty
    packed = pack(
        [Row(prompt[:common], prompt[common:], ()) for prompt in prompts],
        pad_id=llm.tokenizer.pad_token_id,
        eos_id=llm.eos_id,
        side="left",
        share_prefix=True,
    ).to(llm.device)
    return decode(
        llm,
        llm.embed(packed.input_ids),
        packed.attention_mask,
        packed.prefixes,
        [max_new_tokens] * len(prompts),
    )


def _groups(lengths):
    """Neighbours that are read together without much padding.

    Yields the rows, a slice, and the tokens of the longest.
    """
    start, longest = 0, 0
    for row, length in enumerate(lengths):
        more = max(longest, length)
        if row > start and more * (row - start + 1) > _TOKENS_AT_ONCE:
            yield slice(start, row), longest
            start, more = row, length
        longest = more
    yield slice(start, len(lengths)), longest


def _read(llm, embeds, mask, prefixes):
    """Read what follows the prefixes; (cache, mask, logits)."""
    places = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=llm.model.config)
    if any(prefixes):
        cache, before = llm.prefixes.start(prefixes, _Growing)
        places = places + before.sum(1, keepdim=True)
        mask = torch.cat([before, mask], 1)
    return cache, mask, _step(llm, embeds, mask, places, cache)


class _Growing(DynamicLayer):
    """The host's layer, with something in it."""

    def __init__(self, keys, values):
        super().__init__()
        self.update(keys, values)


def _stack(llm, parts, room):
    """Several batches as one, padded on the left."""
    longest = max(mask.shape[1] for _, mask, _ in parts)
    gaps = [longest - mask.shape[1] for _, mask, _ in parts]
    mask = torch.cat(
        [pad(part[1], (gap, 0)) for part, gap in zip(parts, gaps, strict=True)]
    )

    def stack(layers, name):
        return torch.cat(
            [
                pad(getattr(layer, name), (0, 0, gap, 0))
                for layer, gap in zip(layers, gaps, strict=True)
            ]
        )

    layers = [
        _Roomy(stack(layers, "keys"), stack(layers, "values"), room)
        for layers in zip(*(part[0].layers for part in parts), strict=True)
    ]
    return (
        _cache(llm, layers),
        mask,
        torch.cat([logits for _, _, logits in parts]),
    )


def _cut(llm, cache, rows, first, room):
    """Some rows of a cache, from one column on."""
    layers = []
    for layer in cache.layers:
        here = rows.to(layer.keys.device)  # layers may be on several cards
        keys, values = layer.keys[here], layer.values[here]
        layers.append(_Roomy(keys[:, :, first:], values[:, :, first:], room))
    return _cache(llm, layers)


def _cache(llm, layers):
    cache = DynamicCache(config=llm.model.config)
    cache.layers = layers
    return cache


class _Roomy(DynamicLayer):
    """Keys and values of a layer, with room for what is still to be written.

    The host's layer copies all it has for every token.
    """

    def __init__(self, keys, values, room):
        super().__init__()
        self.lazy_initialization(keys, values)
        self._whole = tuple(pad(x, (0, 0, 0, room)) for x in (keys, values))
        self._show(keys.shape[2])

    def update(self, key_states, value_states, *args, **kwargs):
        """Write the new columns; return all."""
        start = self.keys.shape[2]
        stop = start + key_states.shape[2]
        for whole, new in zip(
            self._whole, (key_states, value_states), strict=True
        ):
            whole[:, :, start:stop] = new
        self._show(stop)
        return self.keys, self.values

    def _show(self, stop):
        self.keys, self.values = (x[:, :, :stop] for x in self._whole)


def _step(llm, embeds, mask, places, cache):
    """Logits after the last token; the cache grows."""
    hidden = llm.model.base_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return llm.project(hidden[:, -1]).to(embeds.device)


def decoded_text(tokenizer, ids):
    """The text of a response.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerBase
        Of the LLM.
    ids : list of int
        Token ids.

    Returns
    -------
    str
        Without special tokens, stripped.
    """
    # Cleaning up would move spaces before marks that were already shown.
    text = tokenizer.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text.strip()
