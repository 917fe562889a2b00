"""BLSP: frozen Whisper encoder + trainable adapter + frozen LLM.

A clip becomes a few speech embeddings; they take the transcript's place in the
prompt; the adapter learns until the LLM continues the clip as it would have
continued the transcript (BLSP, arXiv 2309.00916).

Authors
 * The blsp_plugin team 2026
"""

from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.decoding import can_decode, decode, response_limits
from blsp_plugin.lengths import clip_tokens, mel_frames
from blsp_plugin.losses import TeacherStates
from blsp_plugin.packing import pack, predictors, scatter_speech
from blsp_plugin.scoring import label_log_likelihoods
from blsp_plugin.speech import by_length, embed_clips, masked

__all__ = ["BLSP", "ResponseStates"]


class ResponseStates(NamedTuple):
    """What the LLM knows where it predicts a response token.

    Arguments
    ---------
    hidden : torch.Tensor
        Shape (tokens, hidden_size), last hidden states.
    targets : torch.Tensor
        Shape (tokens,), int64, the response's ids (and EOS).
    """

    hidden: torch.Tensor
    targets: torch.Tensor


class BLSP(torch.nn.Module):
    """An LLM that hears.

    Arguments
    ---------
    encoder : WhisperEncoder
        Frozen.
    adapter : torch.nn.Module
        The only part that learns; see `blsp_plugin.adapters`.
    llm : FrozenLLM
        Frozen.
    """

    def __init__(self, encoder, adapter, llm):
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.llm = llm
        binds = hasattr(adapter, "bind")  # to tokens, in its own way
        self.table = adapter.bind(llm.table) if binds else llm.table

    def speech_tokens(self, samples):
        """Speech tokens of a clip.

        Arguments
        ---------
        samples : int
            At 16 kHz, at least 1.

        Returns
        -------
        int
        """
        return clip_tokens(samples, self.adapter)

    def embed_speech(self, mel, mel_lengths, tokens=None, masks=()):
        """Clips' features -> speech embeddings; differentiable in the adapter.

        Arguments
        ---------
        mel : torch.Tensor
            Shape (batch, frames, n_mels), padded at the end.
        mel_lengths : torch.Tensor
            Shape (batch,), int64, valid frames.
        tokens : torch.Tensor, optional
            Shape (batch,), int64, speech tokens to give each clip, where the
            adapter does not take their number from the clip's length.
        masks : sequence of callable
            Each takes and gives states, shape (batch, frames, width), before
            the adapter: what it shall learn to do without.

        Returns
        -------
        SpeechEmbeddings
        """
        adapter = masked(self.adapter, masks)
        return embed_clips(self.encoder, adapter, mel, mel_lengths, tokens)

    def adapt(self, states, lengths, tokens=None, masks=()):
        """Encoder states -> speech embeddings; see `embed_speech`.

        Arguments
        ---------
        states : torch.Tensor
            Shape (batch, frames, width), from the encoder or a cache.
        lengths : torch.Tensor
            Shape (batch,), int64, valid frames.
        tokens : torch.Tensor, optional
            Shape (batch,), int64.
        masks : sequence of callable
            As those of `embed_speech`.

        Returns
        -------
        SpeechEmbeddings
        """
        return by_length(masked(self.adapter, masks), states, lengths, tokens)

    def embed_wavs(self, wavs):
        """Clips -> speech embeddings.

        Arguments
        ---------
        wavs : list of torch.Tensor
            Each of shape (samples,), float, 16 kHz, mono.

        Returns
        -------
        SpeechEmbeddings
        """
        mels = [self.encoder.mel(wav) for wav in wavs]
        lengths = torch.tensor([mel_frames(wav.shape[0]) for wav in wavs])
        mel = pad_sequence(mels, batch_first=True)
        device = self.llm.device
        return self.embed_speech(mel.to(device), lengths.to(device))

    def inputs_embeds(self, packed, speech=None):
        """Token embeddings with the speech in its slots.

        Arguments
        ---------
        packed : Packed
            The batch.
        speech : SpeechEmbeddings, optional
            Not given for text twins, whose slots hold token ids.

        Returns
        -------
        torch.Tensor
            Shape (batch, time, hidden_size).
        """
        embeds = self.llm.embed(packed.input_ids)
        if speech is None:
            return embeds
        return scatter_speech(
            embeds, packed.slot_mask, speech.embeds, speech.lengths
        )

    def forward(self, packed, speech=None):
        """Run the LLM where the response is predicted.

        Arguments
        ---------
        packed : Packed
            The batch, right-padded.
        speech : SpeechEmbeddings, optional
            Not given for text twins.

        Returns
        -------
        ResponseStates
            Of all rows, one after the other: a speech batch and its text
            twins give the same number of tokens, in the same order.
        """
        hidden = self.llm.hidden(
            self.inputs_embeds(packed, speech),
            # Joined rows are told apart by their positions.
            None if packed.joined else packed.attention_mask,
            packed.position_ids,
            packed.prefixes,
        )
        mask, targets = predictors(packed.labels)
        return ResponseStates(hidden[mask], targets)

    @torch.no_grad()
    def teach(self, twin):
        """What the LLM makes of the transcripts: the teacher.

        Arguments
        ---------
        twin : Packed
            Text twins, right-padded.

        Returns
        -------
        TeacherStates
        """
        with self.llm.without_lora():
            return TeacherStates(self(twin).hidden)

    @torch.no_grad()
    def generate(self, rows, speech=None, **decoding):
        """Write a response to each row.

        Arguments
        ---------
        rows : list of Row
            With numbers of speech tokens in the slots, or token ids (the text
            branch) when no speech is given.
        speech : SpeechEmbeddings, optional
            Of the same rows.
        **decoding : dict
            ``max_new_tokens`` and ``max_decode_ratio``, see `response_limits`;
            ``on_first_token`` and others as in `FrozenLLM.generate`.

        Returns
        -------
        list of Generation
        """
        if speech is None:
            with self.llm.without_lora():
                return self._generate(rows, None, **decoding)
        return self._generate(rows, speech, **decoding)

    def _generate(
        self,
        rows,
        speech,
        max_new_tokens=64,
        max_decode_ratio=None,
        on_first_token=None,
        **decoding,
    ):
        llm = self.llm
        limits = response_limits(rows, max_new_tokens, max_decode_ratio)
        pad_id = llm.tokenizer.pad_token_id
        # Prefixes are padded to the longest, and what follows them too.
        longest = max(limits) + max(len(row.prefix) for row in rows)
        longest += max(row.length - len(row.prefix) for row in rows)
        plain = decoding.items() <= {"num_beams": 1, "stop": None}.items()
        plain = plain and can_decode(llm, longest)
        packed = pack(rows, pad_id, llm.eos_id, "left", share_prefix=plain)
        packed = packed.to(llm.device)
        embeds = self.inputs_embeds(packed, speech).to(llm.dtype)
        mask = packed.attention_mask
        if plain:
            return decode(
                llm, embeds, mask, packed.prefixes, limits, on_first_token
            )
        return llm.generate(
            embeds, mask, limits, on_first_token=on_first_token, **decoding
        )

    @torch.no_grad()
    def score(self, rows, labels, speech=None):
        """How likely each of some responses is; see `blsp_plugin.scoring`.

        Arguments
        ---------
        rows : list of Row
            As those of `generate`.
        labels : list of list of int
            Token ids of the responses.
        speech : SpeechEmbeddings, optional
            Of the same rows.

        Returns
        -------
        torch.Tensor
            Shape (rows, labels), float32, log-likelihoods.
        """
        if speech is None:
            with self.llm.without_lora():
                return label_log_likelihoods(self, rows, labels)
        return label_log_likelihoods(self, rows, labels, speech)

    def answer(self, wavs, instructions, prompt, **decoding):
        """Follow a text instruction on each clip.

        Arguments
        ---------
        wavs : list of torch.Tensor
            Each of shape (samples,), float, 16 kHz, mono.
        instructions : list of str
            One a clip.
        prompt : Prompt
            Of the LLM.
        **decoding : dict
            As in `generate`.

        Returns
        -------
        list of Generation
        """
        speech = self.embed_wavs(wavs)
        lengths = speech.lengths.tolist()
        pairs = zip(instructions, lengths, strict=True)
        rows = [prompt.row(*pair) for pair in pairs]
        return self.generate(rows, speech, **decoding)
