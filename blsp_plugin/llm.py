"""The frozen LLM: any causal language model, by path or hub id.

It is the teacher (text in, continuation out) and the student's body (speech
embeddings in, continuation out). It never changes: no added token, no resized
embedding, no gradient, never in training mode.

Authors
 * The blsp_plugin team 2026
"""

import os
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from blsp_plugin.decoding import Generation, decoded_text
from blsp_plugin.embedding_table import EmbeddingTable
from blsp_plugin.errors import BadInput
from blsp_plugin.int8 import round_weights
from blsp_plugin.prefix import PrefixCache, can_share_prefix
from blsp_plugin.pretrained import (
    fingerprint_module,
    has_lora,
    open_pretrained,
    own_dtype,
    without_lora,
)

__all__ = ["FrozenLLM", "load_tokenizer"]


def load_tokenizer(source, trust_remote_code=None):
    """Open the tokenizer that belongs to an LLM.

    Padding is by the end-of-sequence token (masked everywhere, so its value
    never matters): nothing is added to the vocabulary.

    Arguments
    ---------
    source : str
        Folder or hub id.
    trust_remote_code : bool, optional
        Whether to run code that it brings; asked at the terminal if not
        given.

    Returns
    -------
    transformers.PreTrainedTokenizerBase
        With ``pad_token`` set.
    """
    tokenizer = open_pretrained(
        AutoTokenizer.from_pretrained,
        source,
        "tokenizer",
        trust_remote_code=trust_remote_code,
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class FrozenLLM(torch.nn.Module):
    """A causal language model that nothing can change.

    LoRA (SpeechBrain's ``AdaptedModel`` around this object) may be added to
    it: that learns, the model's own weights do not, and what is text only is
    computed without it.

    Arguments
    ---------
    source : str
        Folder or hub id.
    dtype : str or torch.dtype
        Of the weights, "float32" or "bfloat16"; or "int8", which rounds the
        linear layers' weights to 8 bits and leaves the embeddings and the
        head in bfloat16 (`blsp_plugin.int8`). Only for inference.
    attn_implementation : str, optional
        Passed on to transformers ("sdpa", "eager", "flash_attention_2").
    prefix_reuse : bool
        Read the constant text before the speech once an instruction instead
        of once a row, wherever that is exact.
    gradient_checkpointing : bool
        Keep the inputs of the layers only, and compute each layer again in
        the backward pass: less memory, a third more time.
    compile_layers : bool
        Compile the layers (`torch.compile`); takes a minute at first.
    options : dict, optional
        Passed on to ``AutoModelForCausalLM.from_pretrained`` (``device_map``
        for an LLM that does not fit one card, ``quantization_config``).

    Raises
    ------
    BadInput
        If the model or its tokenizer cannot be opened.
    """

    def __init__(
        self,
        source,
        dtype="float32",
        attn_implementation=None,
        prefix_reuse=True,
        gradient_checkpointing=False,
        compile_layers=False,
        options=None,
    ):
        super().__init__()
        self.source = os.fspath(source)
        self._placed = "device_map" in (options or {})  # where they stay
        rounded = dtype == "int8"
        if isinstance(dtype, str):
            dtype = torch.bfloat16 if rounded else getattr(torch, dtype)
        self.tokenizer, self.model = self.open_models(
            source,
            dtype=dtype,
            attn_implementation=attn_implementation,
            **(options or {}),
        )
        if any(param.is_meta for param in self.model.parameters()):
            raise BadInput(
                f"{source}: `device_map` has put some layers on the disk or "
                "into the CPU's memory, where no gradient comes from; give "
                "more cards, or 4-bit weights"
            )
        self.model.requires_grad_(False)
        self.eval()
        # Generation projects the last state of each row, a strided view. On
        # the CPU that becomes a batched product with a copy of the whole head
        # for every row: 4 s a batch of 32, where a dense one takes 20 ms.
        self.model.get_output_embeddings().register_forward_pre_hook(
            lambda module, inputs: (inputs[0].contiguous(), *inputs[1:])
        )
        self.table = EmbeddingTable(self.embedding, self.token_texts)
        config = self.model.config.get_text_config()
        self.hidden_size = config.hidden_size
        # Models that bend their logits say so in these fields (Gemma-2,
        # Cohere, Granite); `project` must do what their own forward does.
        self._softcap = getattr(config, "final_logit_softcapping", None)
        self._logit_scale = getattr(config, "logit_scale", None)
        self._logits_scaling = getattr(config, "logits_scaling", None)
        self.eos_id = self.tokenizer.eos_token_id
        stops = self.model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        self.stop_ids = sorted(
            {s for s in [*stops, self.eos_id] if s is not None}
        )
        self.prefix_reuse = prefix_reuse
        self.prefixes = PrefixCache(self.model)
        if gradient_checkpointing:
            for layer in _layers(self.model):
                layer.forward = partial(_checkpointed, layer.forward)
        if compile_layers:
            # Layers differ in their number only: one compilation does for all.
            torch._dynamo.config.allow_unspec_int_on_nn_module = True
            for number, layer in enumerate(_layers(self.model)):
                compiled = torch.compile(layer.forward)
                layer.forward = partial(
                    _compiled, layer.forward, compiled, number
                )
        # Taken now: LoRA would change the names of the weights, int8 them.
        self._fingerprint = fingerprint_module(self.model)
        if rounded:
            round_weights(self.model)

    def open_models(self, source, **options):
        """Load tokenizer and weights.

        Arguments
        ---------
        source : str
            Folder or hub id.
        **options : dict
            Passed on to ``AutoModelForCausalLM.from_pretrained``.

        Returns
        -------
        tokenizer : transformers.PreTrainedTokenizerBase
        model : transformers.PreTrainedModel
        """
        opener = AutoModelForCausalLM.from_pretrained
        model = open_pretrained(opener, source, "LLM", **options)
        trusted = options.get("trust_remote_code")
        return load_tokenizer(source, trusted), model

    def _apply(self, *args, **kwargs):
        """Move the weights; what was made of prefixes stays behind."""
        self.prefixes.clear()
        if self._placed:
            return self
        return super()._apply(*args, **kwargs)

    def train(self, mode=True):
        """Stay in evaluation mode, whatever Brain asks for."""
        return super().train(False)

    @property
    def device(self):
        """Device of the weights."""
        return self.embedding.weight.device

    @property
    def dtype(self):
        """Dtype of the weights."""
        return self.embedding.weight.dtype

    @property
    def vocabulary_size(self):
        """Rows of the embedding table; some may be no token's."""
        return len(self.embedding.weight)

    def token_texts(self):
        """What the tokens are, spaces included.

        Returns
        -------
        list of bytes
            One for each row of the embedding table; empty where no token is.
        """
        size = self.vocabulary_size
        # A tokenizer may know more than the table has, or have gaps.
        known = range(min(len(self.tokenizer), size))
        texts = [
            self.tokenizer.convert_tokens_to_string([token]) if token else ""
            for token in self.tokenizer.convert_ids_to_tokens(known)
        ]
        return [text.encode() for text in texts] + [b""] * (size - len(known))

    @property
    def max_positions(self):
        """Tokens that it was made for, prompt and response; None: any."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    @property
    def embedding(self):
        """The token embedding layer."""
        return self.model.get_input_embeddings()

    @property
    def embedding_rms(self):
        """Root mean square of the embedding table, a float.

        Speech embeddings start at this scale: a unit-variance LayerNorm
        output would dwarf the text around it.
        """
        weight = self.embed(
            torch.arange(self.embedding.num_embeddings, device=self.device)
        )
        return weight.float().square().mean().sqrt().item()

    def embed(self, input_ids):
        """Embed token ids.

        Arguments
        ---------
        input_ids : torch.Tensor
            Any shape, int64.

        Returns
        -------
        torch.Tensor
            Shape (*input_ids.shape, hidden_size).
        """
        return self.embedding(input_ids)

    def can_share_prefix(self, longest):
        """Whether rows may start from the states of their prefixes.

        Arguments
        ---------
        longest : int
            Tokens of the longest row, its prefix included.

        Returns
        -------
        bool
            False too if ``prefix_reuse`` is off, or LoRA is on: then what the
            LLM makes of a prefix changes, and has a gradient.
        """
        if not self.prefix_reuse or has_lora(self.model):
            return False
        return can_share_prefix(self.model, longest)

    def running(self):
        """The context that the LLM computes in: the dtype of its weights.

        Whatever autocast says outside; LoRA's own weights stay in float32.

        Returns
        -------
        context manager
        """
        return own_dtype(self.model, self.device, self.dtype)

    def without_lora(self):
        """Context in which the LLM is as it was, for what is text only."""
        return without_lora(self.model)

    def hidden(
        self, inputs_embeds, attention_mask, position_ids, prefixes=None
    ):
        """Last hidden states; gradients flow to the inputs only.

        The LLM computes in the dtype of its weights, under autocast too.

        Arguments
        ---------
        inputs_embeds : torch.Tensor
            Shape (batch, time, hidden_size), any float dtype.
        attention_mask : torch.Tensor or None
            Shape (batch, time), 1 on valid tokens. None: all are valid, and a
            row starts wherever the positions start again (batch is 1).
        position_ids : torch.Tensor
            Shape (batch, time), 0..n-1 over the valid tokens; they count the
            prefix.
        prefixes : sequence of tuple of int, optional
            Token ids that stand before the rows, one prefix a row.

        Returns
        -------
        torch.Tensor
            Shape (batch, time, hidden_size), after the final norm.
        """
        with self.running():
            cache = None
            if prefixes is not None and any(prefixes):
                cache, before = self.prefixes.start(prefixes)
                attention_mask = torch.cat([before, attention_mask], dim=1)
            return self.model.base_model(
                inputs_embeds=inputs_embeds.to(self.dtype),
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=False,
            ).last_hidden_state.to(inputs_embeds.device)

    def project(self, hidden):
        """Logits of (selected) hidden states, as the model's own forward.

        Arguments
        ---------
        hidden : torch.Tensor
            Shape (..., hidden_size).

        Returns
        -------
        torch.Tensor
            Shape (..., vocabulary), float32.
        """
        with self.running():
            logits = self.model.get_output_embeddings()(hidden)
        logits = logits.to(hidden.device)
        if self._logit_scale is not None:
            logits = logits * self._logit_scale
        if self._logits_scaling is not None:
            logits = logits / self._logits_scaling
        logits = logits.float()
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits

    @torch.no_grad()
    def generate(
        self,
        inputs_embeds,
        attention_mask,
        max_new_tokens=64,
        num_beams=1,
        stop=None,
        on_first_token=None,
        **kwargs,
    ):
        """Write a response to each row.

        Arguments
        ---------
        inputs_embeds : torch.Tensor
            Shape (batch, time, hidden_size), left-padded.
        attention_mask : torch.Tensor
            Shape (batch, time), 1 on valid tokens.
        max_new_tokens : int or list of int
            Longest response, in tokens: of all rows, or of each.
        num_beams : int
            1 is greedy.
        stop : str, optional
            A text that ends the response (a base model has no habit of
            ending); it is not part of the response.
        on_first_token : callable, optional
            Called without arguments once the first tokens can be told.
        **kwargs : dict
            Passed on to transformers' ``generate`` (sampling, penalties).

        Returns
        -------
        list of Generation
            One a row.
        """
        if stop is not None:
            kwargs.update(stop_strings=[stop], tokenizer=self.tokenizer)
        if on_first_token is not None:
            kwargs["logits_processor"] = [_Once(on_first_token)]
        limits = max_new_tokens
        if isinstance(limits, int):
            limits = [limits] * len(inputs_embeds)
        with self.running():
            sequences = self.model.generate(
                inputs_embeds=inputs_embeds.to(self.dtype),
                attention_mask=attention_mask,
                max_new_tokens=max(limits),
                num_beams=num_beams,
                do_sample=kwargs.pop("do_sample", False),
                eos_token_id=self.stop_ids,
                pad_token_id=self.tokenizer.pad_token_id,
                **kwargs,
            )
        return [
            self._generation(row[:limit], stop)
            for row, limit in zip(sequences.tolist(), limits, strict=True)
        ]

    def _generation(self, ids, stop):
        """Cut a row of ids at its end and decode it."""
        ended = False
        for i, token in enumerate(ids):
            if token in self.stop_ids:
                ids, ended = ids[:i], True
                break
        text = decoded_text(self.tokenizer, ids)
        if stop is not None and stop in text:
            text, ended = text.split(stop, 1)[0].strip(), True
        return Generation(ids, text, ended)

    def fingerprint(self):
        """Short name of these weights, 16 hexadecimal digits."""
        return self._fingerprint


class _Once:
    """A logits processor that changes nothing and says when it begins."""

    def __init__(self, call):
        self.call = call

    def __call__(self, input_ids, scores):
        if self.call is not None:
            self.call()
            self.call = None
        return scores


def _layers(model):
    """The decoder's layers."""
    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise BadInput(
            f"{type(model).__name__}: has no list of layers; switch "
            "gradient_checkpointing and compile_layers off"
        )
    return layers


def _compiled(forward, compiled, number, *args, **kwargs):
    """Run a compiled layer in training, and the layer itself elsewhere.

    The compiled one gets its own keys and values instead of those of all
    layers. Decoding, whose shapes change with each token, is not compiled.
    """
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if kwargs.get("past_key_values") is not None:
        kwargs["past_key_values"] = kwargs["past_key_values"].layers[number]
    return compiled(*args, **kwargs)


def _checkpointed(forward, *args, **kwargs):
    """Compute a layer again in the backward pass.

    transformers' own switch works on models in training mode only, and takes
    the prefix's keys and values away.
    """
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
