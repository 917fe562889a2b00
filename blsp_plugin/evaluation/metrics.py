"""Word and character error rates over a corpus, with an interval.

Authors
 * The blsp_plugin team 2026
"""

import numpy
from speechbrain.utils.edit_distance import wer_details_for_batch, wer_summary
from speechbrain.utils.metric_stats import ErrorRateStats, MetricStats

from blsp_plugin.data.text import wer_normaliser

__all__ = ["ErrorRates", "bootstrap_interval"]


def bootstrap_interval(errors, totals, resamples=1000, seed=0):
    """95 % percentile interval of a corpus rate, by resampling the clips.

    Whole clips are drawn, as errors within one are not independent (Bisani
    and Ney, ICASSP 2004). The same number of clips and the same seed give the
    same draws, so that systems are compared on the same resamples.

    Arguments
    ---------
    errors : sequence of float
        Of each clip.
    totals : sequence of float
        Reference tokens of each clip.
    resamples : int
        Number of draws.
    seed : int
        Of the draws.

    Returns
    -------
    low : float
    high : float
        Of ``sum(errors) / sum(totals)``, in the same unit.

    Example
    -------
    >>> bootstrap_interval([1, 1, 1], [4, 4, 4])
    (0.25, 0.25)
    """
    errors, totals = numpy.asarray(errors), numpy.asarray(totals)
    rng = numpy.random.default_rng(seed)
    rates = numpy.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(len(errors), size=len(errors))
        rates[i] = errors[drawn].sum() / max(1, totals[drawn].sum())
    low, high = numpy.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


class ErrorRates(MetricStats):
    """WER and CER of a corpus, after text normalisation, in percent.

    Rates are totals over totals (not means of clips' rates), on the toolkit's
    `ErrorRateStats`. Characters include the spaces between words.

    Arguments
    ---------
    language : str
        Of the texts; chooses Whisper's English normaliser or its basic one.
    normaliser : callable, optional
        From str to str, in the place of Whisper's.
    resamples : int
        Bootstrap draws for the 95 % interval of the WER; 0 for none.

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

    def __init__(self, language="en", normaliser=None, resamples=1000):
        self.normaliser = normaliser or wer_normaliser(language)
        self.resamples = resamples
        # Figure -> its head in a table; an interval is shown if there is one.
        self.columns = {
            "wer": "WER %",
            "cer": "CER %",
            "deletion_rate": "del %",
            "insertion_rate": "ins %",
            "substitution_rate": "sub %",
        }
        self.clear()

    def __repr__(self):
        """Name the normaliser."""
        name = getattr(self.normaliser, "__name__", None)
        return f"ErrorRates({name or type(self.normaliser).__name__})"

    def clear(self):
        """Forget all clips."""
        self.words = ErrorRateStats()
        self.characters = []
        self.summary = {}

    def append(self, ids, predict, target):
        """Add clips.

        Arguments
        ---------
        ids : list of str
            Their ids.
        predict : list of str
            What a system said.
        target : list of str
            What it should have said.
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
            ``words`` (in the references), and with a bootstrap ``wer_low``
            and ``wer_high``.
        """
        words = self.words.summarize()
        total = words["num_scored_tokens"]
        self.summary = {
            "wer": words["WER"],
            "cer": wer_summary(self.characters)["WER"],
            "deletion_rate": 100 * words["deletions"] / max(1, total),
            "insertion_rate": 100 * words["insertions"] / max(1, total),
            "substitution_rate": 100 * words["substitutions"] / max(1, total),
            "words": total,
        }
        if self.resamples:
            low, high = bootstrap_interval(
                [clip["num_edits"] for clip in self.words.scores],
                [clip["num_ref_tokens"] for clip in self.words.scores],
                self.resamples,
            )
            self.summary.update(wer_low=100 * low, wer_high=100 * high)
        return self.summary if field is None else self.summary[field]

    def write_stats(self, filestream):
        """Write the toolkit's alignments of all clips.

        Arguments
        ---------
        filestream : file object
            Opened for writing text.
        """
        self.words.write_stats(filestream)
