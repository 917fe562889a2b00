"""Keys and values of the constant text before the speech, computed once.

Nothing before the speech depends on the adapter, and causal attention lets
nothing after it reach back: what the LLM makes of the prompt's beginning is
the same for every clip and every step. It is read once an instruction and
shared by all rows, in training, validation and generation.

Authors
 * The blsp_plugin team 2026
"""

from collections import OrderedDict

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

__all__ = ["PrefixCache", "can_share_prefix"]

_CACHED = {"full_attention", "sliding_attention"}


def can_share_prefix(model, longest):
    """Whether rows may start from shared keys and values.

    Not if the LLM has layers without keys and values of their own, or windows
    of attention that a row outgrows (padding stands between the prefix and
    the rest of a row, and a window would count it).

    Arguments
    ---------
    model : transformers.PreTrainedModel
        A causal LM.
    longest : int
        Tokens of the longest row, its prefix included.

    Returns
    -------
    bool
    """
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) or longest
    return (
        layers <= _CACHED
        and longest <= window
        and not getattr(config, "num_kv_shared_layers", 0)
        and not getattr(config, "kv_lora_rank", 0)  # keys unlike values
    )


class _Beginning(DynamicLayer):
    """Keys and values of a layer that every call starts from again.

    What a call adds is not kept: that would hold the graph of a training step
    alive, and gradient checkpointing calls a layer twice.
    """

    def __init__(self, keys, values):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states, value_states, *args, **kwargs):
        """All keys and values of this call."""
        return (
            torch.cat([self.keys, key_states], dim=2),
            torch.cat([self.values, value_states], dim=2),
        )


class PrefixCache:
    """What a frozen LLM makes of the beginnings of prompts.

    Arguments
    ---------
    model : transformers.PreTrainedModel
        A causal LM, for which `can_share_prefix` holds.
    most : int
        Beginnings kept; the one not used for longest makes room.
    """

    def __init__(self, model, most=64):
        self.model = model
        self.most = most
        self._read = OrderedDict()

    def clear(self):
        """Forget everything: the weights have moved or changed."""
        self._read.clear()

    def start(self, prefixes, layer_class=_Beginning):
        """Keys and values that rows start from.

        Arguments
        ---------
        prefixes : sequence of tuple of int
            Token ids, one prefix a row; rows may share one.
        layer_class : type
            Called with keys and values of shape (batch, heads, longest
            prefix, head_dim); by default what a call adds is not kept.

        Returns
        -------
        cache : transformers.DynamicCache
            Left-padded to the longest prefix.
        mask : torch.Tensor
            Shape (batch, longest prefix), int64, 1 on valid tokens.
        """
        kinds = list(dict.fromkeys(prefixes))
        # All are held here: reading one may push another out of the memory.
        states = [self._states(kind) for kind in kinds]
        longest = max(map(len, kinds))
        cache = DynamicCache(config=self.model.config)
        device = states[0][0].device
        rows = torch.tensor([kinds.index(p) for p in prefixes], device=device)
        layers = []
        for layer in zip(*states, strict=True):
            gaps = [longest - state.shape[-2] for state in layer]
            layer = torch.stack(
                [pad(s, (0, 0, g, 0)) for s, g in zip(layer, gaps, strict=True)]
            )
            if len(kinds) == 1:  # a view
                layer = layer.expand(len(prefixes), *layer.shape[1:])
            else:
                layer = layer[rows.to(layer.device)]
            layers.append(layer_class(*layer.unbind(1)))
        cache.layers = layers
        mask = torch.zeros(len(kinds), longest, dtype=torch.int64)
        for row, kind in zip(mask, kinds, strict=True):
            row[longest - len(kind) :] = 1
        return cache, mask.to(device)[rows]

    @torch.no_grad()
    def _states(self, ids):
        """Of each layer: shape (2, heads, tokens, head_dim)."""
        if ids in self._read:
            self._read.move_to_end(ids)
            return self._read[ids]
        device = self.model.get_input_embeddings().weight.device
        cache = DynamicCache(config=self.model.config)
        self.model.base_model(
            # Of an empty prefix one token is read and none is kept.
            input_ids=torch.tensor([ids or (0,)], device=device),
            past_key_values=cache,
            use_cache=True,
        )
        states = [
            torch.stack([layer.keys[0], layer.values[0]])[:, :, : len(ids)]
            for layer in cache.layers
        ]
        self._read[ids] = states
        if len(self._read) > self.most:
            self._read.popitem(last=False)
        return states
