"""Greedy decoding of many prompts that begin alike.

What is spent on a batch is what its rows need: the prompts' common beginning
(the instruction) is read once for all rows, and a row leaves the batch soon
after it has ended. transformers' ``generate`` reads the instruction in every
row and decodes all rows to the length of the longest; it remains the measure:
in float32 both give the same tokens.

Authors
 * The blsp_plugin team 2026
"""

import os

import torch
from transformers import DynamicCache

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
_CACHED = {"full_attention", "sliding_attention"}


def can_decode(llm, longest):
    """Whether `decode` gives what the LLM's own ``generate`` gives.

    Not if the LLM asks for penalties by itself, has layers without keys and
    values, or windows of attention that a prompt with its response outgrows
    (padding stands between the common beginning and the rest, and a window
    would count it).

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
        layers <= _CACHED and longest <= window and not set(wishes) - _HARMLESS
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
    cache = DynamicCache(config=llm.model.config)
    packed = pack(
        [Row(prompt[common:], (), ()) for prompt in prompts],
        pad_id=llm.tokenizer.pad_token_id,
        eos_id=llm.eos_id,
        side="left",
    ).to(llm.device)
    mask = packed.attention_mask
    if common:
        ids = torch.tensor([prompts[0][:common]], device=llm.device)
        places = torch.arange(common, device=llm.device).unsqueeze(0)
        _step(llm, ids, torch.ones_like(ids), places, cache)
        cache.batch_repeat_interleave(len(prompts))
        mask = torch.cat([mask.new_ones(len(prompts), common), mask], 1)
    logits = _step(
        llm, packed.input_ids, mask, packed.position_ids + common, cache
    )
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
        if len(going) <= 0.9 * len(here):
            keep = torch.tensor(going, device=llm.device)
            cache.batch_select_indices(keep)
            tokens, mask, places = tokens[keep], mask[keep], places[keep]
            here = [here[i] for i in going]
        mask = torch.cat([mask, mask.new_ones(len(here), 1)], 1)
        logits = _step(llm, tokens.unsqueeze(1), mask, places, cache)
        places = places + 1
    return [
        Generation(ids, _text(llm, ids), end)
        for ids, end in zip(written, ended, strict=True)
    ]


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
