"""Clips as the LLM takes them.

Authors
 * The blsp_plugin team 2026
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from blsp_plugin.lengths import similar_lengths

__all__ = ["SpeechEmbeddings", "by_length", "embed_clips", "masked"]


class SpeechEmbeddings(NamedTuple):
    """Clips as the LLM takes them.

    Arguments
    ---------
    embeds : torch.Tensor
        Shape (batch, longest, hidden_size), zero in padding.
    lengths : torch.Tensor
        Shape (batch,), int64, speech tokens of each clip.
    more : dict of torch.Tensor
        What losses on the input ask for; see `blsp_plugin.adapters`.
    """

    embeds: torch.Tensor
    lengths: torch.Tensor
    more: Mapping = MappingProxyType({})

    def rows(self, places):
        """Some of the clips, without the padding that the others needed.

        Arguments
        ---------
        places : list of int
            Which.

        Returns
        -------
        SpeechEmbeddings
        """
        lengths = self.lengths[places]
        embeds = self.embeds[places, : int(lengths.max())]
        more = {name: value[places] for name, value in self.more.items()}
        return SpeechEmbeddings(embeds, lengths, more)


def by_length(embed, frames, lengths, tokens):
    """Embed the clips of a batch in groups of similar length.

    Equal to embedding them all at once, without what that computes on padding.

    Arguments
    ---------
    embed : callable
        (frames, lengths, tokens) of some clips -> embeddings, their lengths,
        and a dict of more tensors; what a clip becomes must not depend on the
        others.
    frames : torch.Tensor
        Shape (batch, longest, width).
    lengths : torch.Tensor
        Shape (batch,), int64, valid frames.
    tokens : torch.Tensor or None
        Shape (batch,), int64, given to ``embed``.

    Returns
    -------
    SpeechEmbeddings
    """
    groups = similar_lengths(lengths)
    parts = []
    for group in groups:
        group = group.to(lengths.device)
        part = lengths[group]
        parts.append(
            embed(
                frames[group, : int(part.max())],
                part,
                None if tokens is None else tokens[group],
            )
        )
    embeds, lengths, more = zip(*parts, strict=True)
    # Where each clip of the batch has come to lie.
    places = torch.cat(groups).argsort().to(lengths[0].device)

    def together(parts):
        if parts[0].dim() == 1:
            return torch.cat(parts)[places]
        clips = [clip for part in parts for clip in part]
        return pad_sequence(clips, batch_first=True)[places]

    return SpeechEmbeddings(
        together(embeds),
        together(lengths),
        {name: together([part[name] for part in more]) for name in more[0]},
    )


def embed_clips(encoder, adapter, mel, mel_lengths, tokens=None):
    """Clips' features -> speech embeddings; differentiable in the adapter.

    Clips of similar length go through encoder and adapter at once: a batch's
    rows are alike in the LLM, where a short clip may have a long response, and
    what encoder and adapter would do on padding is lost.

    Arguments
    ---------
    encoder : RaggedEncoder
        Frozen.
    adapter : torch.nn.Module
        See `blsp_plugin.adapters`.
    mel : torch.Tensor
        Shape (batch, frames, n_mels), padded at the end.
    mel_lengths : torch.Tensor
        Shape (batch,), int64, valid frames.
    tokens : torch.Tensor, optional
        Shape (batch,), int64, speech tokens to give each clip, where the
        adapter does not take their number from the clip's length.

    Returns
    -------
    SpeechEmbeddings
    """
    if encoder.pad_to_30s:
        return by_length(adapter, *encoder(mel, mel_lengths), tokens)

    def embed(mel, mel_lengths, tokens):
        return adapter(*encoder(mel, mel_lengths), tokens)

    return by_length(embed, mel, mel_lengths, tokens)


def masked(adapter, masks):
    """An adapter before which parts of the states are hidden.

    Arguments
    ---------
    adapter : callable
        (states, lengths, tokens) -> what an adapter gives.
    masks : sequence of callable
        Each takes and gives states, shape (batch, frames, width).

    Returns
    -------
    callable
        As ``adapter``.
    """
    if not masks:
        return adapter

    def adapt(states, lengths, tokens):
        for mask in masks:
            states = mask(states)
        return adapter(states, lengths, tokens)

    return adapt
