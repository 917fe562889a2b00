"""Scores of a corpus with an interval; word and character error rates.

Authors
 * The blsp_plugin team 2026
"""

import collections

import numpy
from speechbrain.utils.edit_distance import wer_details_for_batch, wer_summary
from speechbrain.utils.metric_stats import ErrorRateStats, MetricStats

from blsp_plugin.data.manifest import iter_manifest
from blsp_plugin.data.text import wer_normaliser

__all__ = ["CorpusMetric", "ErrorRates", "paired_p_value"]

_AT_ONCE = 50  # draws whose weights are in memory together
_RUN = 5  # words inserted in a row that make a clip hallucinated


def _draws(clips, resamples, seed=0):
    """Yield how often each clip is drawn, (some draws, clips) at a time.

    Whole clips are drawn, as errors within one are not independent (Bisani
    and Ney, ICASSP 2004). The same number of clips gives the same draws, so
    that systems are compared on the same resamples.
    """
    rng = numpy.random.default_rng(seed)
    even = numpy.full(clips, 1 / clips)
    for start in range(0, resamples, _AT_ONCE):
        some = min(_AT_ONCE, resamples - start)
        yield rng.multinomial(clips, even, size=some)


def _resampled(metric, statistics):
    """The metric's main figure on each draw."""
    parts = [
        metric.rate(weights @ statistics)
        for weights in _draws(len(statistics), metric.resamples)
    ]
    return numpy.concatenate(parts)


def paired_p_value(metric, one, other):
    """How surely two systems differ on the same clips: paired bootstrap.

    Both are scored on the same draws of clips; the p-value is twice the share
    of draws in which the one that is better on the whole is not (Koehn, EMNLP
    2004, made two-sided).

    Arguments
    ---------
    metric : CorpusMetric
        Gives the figure and the number of draws.
    one : numpy.ndarray
        Statistics of a system, from ``metric.statistics()``.
    other : numpy.ndarray
        Those of another, the same clips in the same order.

    Returns
    -------
    float
        At least ``1 / resamples``, at most 1.
    """
    difference = _resampled(metric, one) - _resampled(metric, other)
    tail = min((difference <= 0).mean(), (difference >= 0).mean())
    return float(min(1.0, max(2 * tail, 1 / metric.resamples)))


class CorpusMetric(MetricStats):
    """A score of a corpus with a 95 % bootstrap interval.

    A subclass keeps, for each clip, numbers whose sums over clips give the
    score: so resampling costs additions only, however slow the scoring is.

    Arguments
    ---------
    resamples : int
        Bootstrap draws; 0 for no interval.
    """

    main = None  # name of the main figure
    higher_is_better = True
    columns = {}  # figure -> its head in a table
    kind = None  # for the report: "asr", "st", "slu", "chat"

    def __init__(self, resamples=1000):
        self.resamples = resamples
        self.clear()

    def statistics(self):
        """What is summed up, of each clip in the order of `append`.

        Returns
        -------
        numpy.ndarray
            Shape (clips, numbers).
        """
        raise NotImplementedError

    def rate(self, sums):
        """The main figure.

        Arguments
        ---------
        sums : numpy.ndarray
            Shape (..., numbers), sums of statistics over clips.

        Returns
        -------
        numpy.ndarray
            Shape (...,), in percent.
        """
        raise NotImplementedError

    def interval(self):
        """Ends of the 95 % interval of the main figure.

        Returns
        -------
        dict of float
            ``<main>_low`` and ``<main>_high``; empty without resamples.
        """
        if not self.resamples:
            return {}
        rates = _resampled(self, self.statistics())
        low, high = numpy.percentile(rates, [2.5, 97.5])
        return {
            f"{self.main}_low": float(low),
            f"{self.main}_high": float(high),
        }

    def write_stats(self, filestream):
        """Write the figures.

        Arguments
        ---------
        filestream : file object
            Opened for writing text.
        """
        for name, value in self.summarize().items():
            filestream.write(f"{name}: {value}\n")


def share(sums):
    """Percent of the first of two sums in the second.

    Example
    -------
    >>> share(numpy.array([[1, 4], [0, 0]])).tolist()
    [25.0, 0.0]
    """
    return 100 * sums[..., 0] / numpy.maximum(1, sums[..., 1])


class ErrorRates(CorpusMetric):
    """WER and CER of a corpus, after text normalisation, in percent.

    Rates are totals over totals (not means of clips' rates), on the toolkit's
    `ErrorRateStats`. Characters include the spaces between words. A clip is
    hallucinated if five words in a row are inserted into it. Rare words are
    those of the references that are not among the commonest of a training set
    (Le et al., arXiv 2104.02194); their rate counts those that are not said.

    Arguments
    ---------
    language : str
        Of the texts; chooses Whisper's English normaliser or its basic one.
    normaliser : callable, optional
        From str to str, in the place of Whisper's.
    resamples : int
        Bootstrap draws for the 95 % interval of the WER; 0 for none.
    rare_words_of : str, optional
        Manifest of the training set; rare words are not scored if not given.
    common_words : int
        So many of its words are common.
    text_key : str
        Its column of the transcripts.

    Example
    -------
    >>> metric = ErrorRates(resamples=0)
    >>> metric.append(["a"], ["The bat sat down"], ["the cat sat."])
    >>> stats = metric.summarize()
    >>> [round(stats[n], 1) for n in ("wer", "substitution_rate", "cer")]
    [66.7, 33.3, 54.5]
    >>> metric.scores()
    {'a': 66.66666666666667}
    """

    main = "wer"
    higher_is_better = False
    kind = "asr"

    def __init__(
        self,
        language="en",
        normaliser=None,
        resamples=1000,
        rare_words_of=None,
        common_words=5000,
        text_key="wrd",
    ):
        self.normaliser = normaliser or wer_normaliser(language)
        # Figure -> its head in a table; an interval is shown if there is one.
        self.columns = {
            "wer": "WER %",
            "cer": "CER %",
            "deletion_rate": "del %",
            "insertion_rate": "ins %",
            "substitution_rate": "sub %",
            "hallucination_rate": "hallucinated %",
        }
        self.common = None
        if rare_words_of is not None:
            self.columns["rare_word_error_rate"] = "rare words %"
            words = collections.Counter()
            for _, row, _ in iter_manifest(
                rare_words_of, text_key, need_audio=False
            ):
                words.update(self.normaliser(row.get("text", "")).split())
            self.common = {w for w, _ in words.most_common(common_words)}
        super().__init__(resamples)

    def __repr__(self):
        """Name the normaliser."""
        name = getattr(self.normaliser, "__name__", None)
        return f"ErrorRates({name or type(self.normaliser).__name__})"

    def clear(self):
        """Forget all clips."""
        self.words = ErrorRateStats()
        self.characters = []
        self.summary = {}

    def append(self, ids, predict, target, source=None):
        """Add clips.

        Arguments
        ---------
        ids : list of str
            Their ids.
        predict : list of str
            What a system said.
        target : list of str
            What it should have said.
        source : list of str, optional
            Not used: other metrics need the transcripts.
        """
        predict = [self.normaliser(text).split() for text in predict]
        target = [self.normaliser(text).split() for text in target]
        self.words.append(ids, predict, target)
        # No alignment of characters is kept: it would outweigh all the rest.
        self.characters += wer_details_for_batch(
            ids,
            [list(" ".join(words)) for words in target],
            [list(" ".join(words)) for words in predict],
        )

    def scores(self):
        """Each clip's own WER.

        Returns
        -------
        dict
            id -> percent.
        """
        return {clip["key"]: clip["WER"] for clip in self.words.scores}

    def statistics(self):
        """Edits and reference words, see `CorpusMetric.statistics`."""
        return numpy.array(
            [[c["num_edits"], c["num_ref_tokens"]] for c in self.words.scores]
        ).reshape(-1, 2)

    def rate(self, sums):
        """The WER, see `CorpusMetric.rate`."""
        return share(sums)

    def summarize(self, field=None):
        """Rates over all clips.

        Arguments
        ---------
        field : str, optional
            Return this one only.

        Returns
        -------
        dict or float
            ``wer``, ``cer``, ``deletion_rate``, ``insertion_rate``,
            ``substitution_rate`` (percent; the last three add up to the WER),
            ``hallucination_rate`` (percent of clips), maybe
            ``rare_word_error_rate``, ``words`` (in the references), and with
            a bootstrap ``wer_low`` and ``wer_high``.
        """
        words = self.words.summarize()
        total = words["num_scored_tokens"]
        clips = self.words.scores
        hallucinated = sum(_longest_insertion(clip) >= _RUN for clip in clips)
        self.summary = {
            "wer": words["WER"],
            "cer": wer_summary(self.characters)["WER"],
            "deletion_rate": 100 * words["deletions"] / max(1, total),
            "insertion_rate": 100 * words["insertions"] / max(1, total),
            "substitution_rate": 100 * words["substitutions"] / max(1, total),
            "hallucination_rate": 100 * hallucinated / max(1, len(clips)),
            "words": total,
            **self.interval(),
        }
        if self.common is not None:
            rare = numpy.array([self._rare(clip) for clip in clips]).sum(0)
            self.summary["rare_word_error_rate"] = float(share(rare))
        return self.summary if field is None else self.summary[field]

    def _rare(self, clip):
        """Rare words of a clip: missed, all."""
        tokens = clip["ref_tokens"]
        fate = {place: op for op, place, _ in clip["alignment"] if op != "I"}
        places = [i for i, word in enumerate(tokens) if word not in self.common]
        return sum(fate[place] != "=" for place in places), len(places)

    def write_stats(self, filestream):
        """Write the toolkit's alignments of all clips.

        Arguments
        ---------
        filestream : file object
            Opened for writing text.
        """
        self.words.write_stats(filestream)


def _longest_insertion(clip):
    """Most words in a row that are not in the reference."""
    ops = "".join("I" if op == "I" else "." for op, *_ in clip["alignment"])
    return max(map(len, ops.split(".")))
