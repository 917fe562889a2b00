"""From samples to speech tokens: the only place where a length is computed.

A clip of ``samples`` at 16 kHz becomes ``mel`` frames (10 ms), then encoder
frames (20 ms), then, after the adapter's stride-2 convolutions, speech tokens
(160 ms with three of them, 6.25 per second).

Every function takes an int or an integer tensor of any shape and returns the
same kind. Lengths are absolute integers; SpeechBrain's relative ``wav_lens``
refer to the longest clip of a batch and would round.

Authors
 * The blsp_plugin team 2026
"""

__all__ = [
    "SAMPLE_RATE",
    "HOP",
    "CHUNK_SAMPLES",
    "CHUNK_MEL",
    "mel_frames",
    "encoder_frames",
    "clip_tokens",
    "conv_frames",
    "stacked_conv_frames",
    "stacked_frames",
    "frames_mask",
    "similar_lengths",
]

import torch

SAMPLE_RATE = 16000  # Hz
HOP = 160  # samples between two mel frames
CHUNK_SAMPLES = 30 * SAMPLE_RATE  # what Whisper's position table covers
CHUNK_MEL = CHUNK_SAMPLES // HOP


def mel_frames(samples):
    """Mel frames of a clip that is zero-padded to a multiple of the hop.

    Arguments
    ---------
    samples : int or torch.Tensor
        Samples at 16 kHz.

    Returns
    -------
    int or torch.Tensor
        ``ceil(samples / 160)``.

    Example
    -------
    >>> mel_frames(16000), mel_frames(16001)
    (100, 101)
    """
    return (samples + HOP - 1) // HOP


def encoder_frames(mel):
    """Frames after Whisper's second convolution (kernel 3, stride 2, pad 1).

    Arguments
    ---------
    mel : int or torch.Tensor
        Mel frames.

    Returns
    -------
    int or torch.Tensor
        ``floor((mel - 1) / 2) + 1``. Cutting a long clip at multiples of 30 s
        changes nothing: 3000 mel frames give exactly 1500.

    Example
    -------
    >>> encoder_frames(mel_frames(5 * 16000))
    250
    """
    return (mel - 1) // 2 + 1


def clip_tokens(samples, adapter):
    """Speech tokens of a clip.

    Arguments
    ---------
    samples : int or array or torch.Tensor
        Samples at 16 kHz, at least 1.
    adapter : torch.nn.Module
        See `blsp_plugin.adapters`; only its ``output_lengths`` is called.

    Returns
    -------
    int or array or torch.Tensor
    """
    return adapter.output_lengths(encoder_frames(mel_frames(samples)))


def conv_frames(frames):
    """Frames after one "same"-padded convolution of stride 2.

    Arguments
    ---------
    frames : int or torch.Tensor
        Frames before it.

    Returns
    -------
    int or torch.Tensor
        ``floor((frames - 1) / 2) + 1``.

    Example
    -------
    >>> conv_frames(250)
    125
    """
    return (frames - 1) // 2 + 1


def stacked_conv_frames(frames, layers=3):
    """Frames after several stride-2 convolutions (BLSP's adapter has three).

    Arguments
    ---------
    frames : int or torch.Tensor
        Encoder frames.
    layers : int
        Number of convolutions.

    Returns
    -------
    int or torch.Tensor
        Speech tokens.

    Example
    -------
    >>> [stacked_conv_frames(encoder_frames(mel_frames(s * 16000)))
    ...     for s in (1, 2, 5, 10, 15, 20, 30)]
    [7, 13, 32, 63, 94, 125, 188]
    """
    for _ in range(layers):
        frames = conv_frames(frames)
    return frames


def stacked_frames(frames, stride):
    """Groups of ``stride`` frames, the last one possibly not full.

    Arguments
    ---------
    frames : int or torch.Tensor
        Encoder frames, at least 1.
    stride : int
        Frames of a group.

    Returns
    -------
    int or torch.Tensor

    Example
    -------
    >>> [stacked_frames(n, 8) for n in (1, 8, 9)]
    [1, 1, 2]
    """
    return (frames - 1) // stride + 1


def frames_mask(lengths, max_length=None):
    """Which frames of a padded batch are real.

    Arguments
    ---------
    lengths : torch.Tensor
        Shape (batch,), integers.
    max_length : int, optional
        Width of the mask; the longest of ``lengths`` when not given.

    Returns
    -------
    torch.Tensor
        Shape (batch, max_length), bool, True on real frames.

    Example
    -------
    >>> frames_mask(torch.tensor([1, 3])).tolist()
    [[True, False, False], [True, True, True]]
    """
    if max_length is None:
        max_length = int(lengths.max())
    steps = torch.arange(max_length, device=lengths.device)
    return steps.unsqueeze(0) < lengths.unsqueeze(1)


def similar_lengths(lengths, ratio=0.8):
    """Split a batch into groups, in each of which little is padding.

    Arguments
    ---------
    lengths : torch.Tensor
        Shape (batch,), integers.
    ratio : float
        A group's shortest over its longest, at least.

    Returns
    -------
    list of torch.Tensor
        Places in the batch, int64 on the CPU, the group of the longest first.

    Example
    -------
    >>> groups = similar_lengths(torch.tensor([50, 98, 100, 45, 9]))
    >>> [group.tolist() for group in groups]
    [[2, 1], [0, 3], [4]]
    """
    groups, longest = [], float("inf")
    places = lengths.argsort(descending=True, stable=True).tolist()
    lengths = lengths.tolist()
    for place in places:
        if not groups or lengths[place] < ratio * longest:
            groups.append([])
            longest = lengths[place]
        groups[-1].append(place)
    return [torch.tensor(group) for group in groups]
