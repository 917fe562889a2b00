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

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from blsp_plugin.llm import Generation
from blsp_plugin.packing import Row, pack

__all__ = ["can_decode", "decode"]

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
_CACHED = {"full_attention", "sliding_attention"}


def can_decode(llm, longest):
    """Whether `decode` gives what the LLM's own ``generate`` gives.

    Not if the LLM asks for penalties by itself, has layers without keys and
    values of their own, or windows of attention that a prompt with its
    response outgrows (padding stands between the common beginning and the
    rest, and a window would count it).

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
    config = llm.model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) or longest
    wishes = llm.model.generation_config.to_diff_dict()
    return (
        layers <= _CACHED
        and longest <= window
        and not getattr(config, "num_kv_shared_layers", 0)
        and not set(wishes) - _HARMLESS
    )


@torch.no_grad()
def decode(llm, prompts, max_new_tokens):
    """Decode prompts greedily.

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
    shared = _read_common(llm, prompts[0][:common])
    parts = [
        _read(llm, [prompt[common:] for prompt in group], shared, common)
        for group in _groups(prompts, common)
    ]
    cache, mask, logits = _stack(llm, parts, room=max_new_tokens)
    places = mask.sum(1, keepdim=True)  # of the next token
    written, ended = [[] for _ in prompts], [False] * len(prompts)
    here = list(range(len(prompts)))  # rows still in the batch
    for step in range(max_new_tokens):
        tokens = logits.argmax(-1)
        for row, token in zip(here, tokens.tolist(), strict=True):
            ended[row] = ended[row] or token in llm.stop_ids
            if not ended[row]:
                written[row].append(token)
        going = [i for i, row in enumerate(here) if not ended[row]]
        if not going or step == max_new_tokens - 1:
            break
        # Leaving costs a copy of the keys and values: not for every row.
        if len(going) <= 0.85 * len(here):
            keep = torch.tensor(going, device=llm.device)
            tokens, mask, places = tokens[keep], mask[keep], places[keep]
            here = [here[i] for i in going]
            # Columns that only rows with longer prompts had are given up too.
            used = int(mask.any(0).nonzero()[0])
            room = max_new_tokens - step
            cache = _cut(llm, cache, keep, used, room)
            mask = mask[:, used:]
        mask = torch.cat([mask, mask.new_ones(len(here), 1)], 1)
        logits = _step(llm, tokens.unsqueeze(1), mask, places, cache)
        places = places + 1
    return [
        Generation(ids, _text(llm, ids), end)
        for ids, end in zip(written, ended, strict=True)
    ]


def _groups(prompts, common):
    """Neighbours that are read together without much padding."""
    group, longest = [], 0
    for prompt in prompts:
        longest = max(longest, len(prompt) - common)
        if group and longest * (len(group) + 1) > _TOKENS_AT_ONCE:
            yield group
            group, longest = [], len(prompt) - common
        group.append(prompt)
    yield group


def _read_common(llm, ids):
    """Keys and values of what all prompts begin with."""
    cache = DynamicCache(config=llm.model.config)
    if ids:
        ids = torch.tensor([ids], device=llm.device)
        places = torch.arange(ids.shape[1], device=llm.device).unsqueeze(0)
        _step(llm, ids, torch.ones_like(ids), places, cache)
    return cache


def _read(llm, rests, shared, common):
    """Read what follows the common beginning; (cache, mask, logits)."""
    packed = pack(
        [Row(rest, (), ()) for rest in rests],
        pad_id=llm.tokenizer.pad_token_id,
        eos_id=llm.eos_id,
        side="left",
    ).to(llm.device)
    mask, places = packed.attention_mask, packed.position_ids
    cache = DynamicCache(config=llm.model.config)
    if common:
        mask = torch.cat([mask.new_ones(len(rests), common), mask], 1)
        for i, layer in enumerate(shared.layers):
            shape = (len(rests), -1, -1, -1)
            keys, values = layer.keys.expand(shape), layer.values.expand(shape)
            cache.update(keys, values, i)
    logits = _step(llm, packed.input_ids, mask, places + common, cache)
    return cache, mask, logits


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
    layers = [
        _Roomy(layer.keys[rows, :, first:], layer.values[rows, :, first:], room)
        for layer in cache.layers
    ]
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


def _step(llm, input_ids, mask, places, cache):
    """Logits after the last token; the cache grows."""
    hidden = llm.model.base_model(
        inputs_embeds=llm.embed(input_ids),
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return llm.project(hidden[:, -1])


def _text(llm, ids):
    return llm.tokenizer.decode(ids, skip_special_tokens=True).strip()
