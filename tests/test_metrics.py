"""Error rates against values computed by hand, and their interval."""

import io

import pytest

from blsp_plugin.evaluation.metrics import ErrorRates, bootstrap_interval


def rates(pairs, **options):
    """Summary of (hypothesis, reference) pairs."""
    metric = ErrorRates(**options)
    ids = [f"clip-{i}" for i in range(len(pairs))]
    metric.append(ids, *map(list, zip(*pairs, strict=True)))
    return metric.summarize()


def test_error_rates_by_hand():
    # 6 words: one substituted (sat/sit), one deleted (the), one inserted.
    stats = rates([("the cat sit on mat now", "the cat sat on the mat")])
    assert stats["words"] == 6
    assert stats["substitution_rate"] == pytest.approx(100 / 6)
    assert stats["deletion_rate"] == pytest.approx(100 / 6)
    assert stats["insertion_rate"] == pytest.approx(100 / 6)
    assert stats["wer"] == pytest.approx(300 / 6)
    # Characters, with spaces: a -> i, then "the mat" -> "mat now" keeps the
    # space and changes the other six; the reference has 22.
    assert stats["cer"] == pytest.approx(100 * (1 + 6) / 22)


def test_rates_are_of_the_corpus_not_of_clips():
    # 1 of 1 word and 1 of 9 words: 2/10, not the mean of 100 % and 11 %.
    nine = "one two three four five six seven eight nine".split()
    pairs = [("yes", "no"), (" ".join(nine[1:]), " ".join(nine))]
    stats = rates(pairs, normaliser=str)
    assert stats["wer"] == pytest.approx(20.0)
    assert stats["deletion_rate"] == pytest.approx(10.0)


def test_normaliser_is_named_and_applied():
    pair = [
        ("mister brown has twenty five colours", "Mr. Brown has 25 colors.")
    ]
    assert rates(pair)["wer"] == 0
    assert rates(pair, language="fr")["wer"] > 0
    assert repr(ErrorRates()) == "ErrorRates(EnglishTextNormalizer)"
    assert repr(ErrorRates("fr")) == "ErrorRates(BasicTextNormalizer)"


def test_empty_texts():
    assert rates([("", "two words")])["deletion_rate"] == 100
    # Nothing was said: what is heard counts as inserted, over other clips.
    stats = rates([("hallucinated words", "Hmm."), ("a b", "a b")])
    assert stats["words"] == 2
    assert stats["insertion_rate"] == 100


def test_scores_and_alignments_of_clips():
    metric = ErrorRates(normaliser=str)
    metric.append(["a"], ["x y"], ["x z"])
    metric.append(["b"], ["x"], ["x"])
    assert metric.scores() == {"a": 50.0, "b": 0.0}
    stream = io.StringIO()
    metric.write_stats(stream)
    assert "%WER 33.33 [ 1 / 3, 0 ins, 0 del, 1 sub ]" in stream.getvalue()
    metric.clear()
    assert metric.scores() == {}


def test_bootstrap_interval():
    errors, words = [0, 1, 2, 0, 3, 1, 0, 0, 2, 1], [10] * 10
    low, high = bootstrap_interval(errors, words)
    assert low < 0.1 < high
    assert (low, high) == bootstrap_interval(errors, words)
    wide = high - low
    low, high = bootstrap_interval(errors * 16, words * 16)
    assert wide / 6 < high - low < wide / 2.5  # as the root of the clips
    stats = rates([("a b", "a c"), ("a", "a")], resamples=0)
    assert "wer_low" not in stats
