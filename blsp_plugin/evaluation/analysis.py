"""What the answers of a task show beside its score.

Everything works on ``answers``: system's name -> {clip's id: its record}.

Authors
 * The blsp_plugin team 2026
"""

from collections import Counter
from typing import NamedTuple

import numpy

from blsp_plugin.data.text import wer_normaliser
from blsp_plugin.evaluation.metrics import ErrorRates

__all__ = [
    "Bins",
    "Confusion",
    "agreement",
    "choose_clips",
    "confusion",
    "error_bins",
    "quantile_bins",
    "word_errors",
]

# More distinct references than this are texts, not labels.
_CLOSED = 100
NO_LABEL = "(no label)"
OTHER = "(other)"


class Bins(NamedTuple):
    """Error rates of groups of clips.

    Arguments
    ---------
    ranges : list of tuple of float
        Lowest and highest value of each group.
    counts : list of int
        Clips in each.
    rates : dict
        System's name -> WER of each group in percent.
    """

    ranges: list
    counts: list
    rates: dict


class Confusion(NamedTuple):
    """How often a label was taken for another.

    Arguments
    ---------
    rows : list of str
        What was meant.
    columns : list of str
        What was answered; `NO_LABEL` where it was none of the labels.
    counts : list of list of int
        Clips, a list a row.
    """

    rows: list
    columns: list
    counts: list


def word_errors(records, language="en"):
    """Word edits and reference words of every clip.

    Arguments
    ---------
    records : iterable of dict
        With ``id``, ``reference``, ``hypothesis``.
    language : str
        Chooses the normaliser, see `ErrorRates`.

    Returns
    -------
    dict
        id -> (edits, words).

    Example
    -------
    >>> clip = {"id": "a", "reference": "the cat", "hypothesis": "The bat!"}
    >>> word_errors([clip])
    {'a': (1, 2)}
    """
    metric = ErrorRates(language, resamples=0)
    records = list(records)
    # Its words only: aligning the characters takes most of the time.
    metric.words.append(
        [record["id"] for record in records],
        [metric.normaliser(r["hypothesis"]).split() for r in records],
        [metric.normaliser(r["reference"]).split() for r in records],
    )
    return {
        clip["key"]: (clip["num_edits"], clip["num_ref_tokens"])
        for clip in metric.words.scores
    }


def quantile_bins(values, n=5):
    """Groups of about equal size, by value; equal values stay together.

    Arguments
    ---------
    values : sequence of float
        One a clip.
    n : int
        Groups, fewer where values repeat.

    Returns
    -------
    list of numpy.ndarray
        Indices of each group, lowest values first.

    Example
    -------
    >>> [group.tolist() for group in quantile_bins([5, 1, 2, 9, 1], 2)]
    [[1, 2, 4], [0, 3]]
    """
    values = numpy.asarray(values, dtype=float)
    if not len(values):
        return []
    edges = numpy.quantile(values, numpy.linspace(0, 1, n + 1)[1:-1])
    # A value on an edge belongs below it.
    groups = numpy.searchsorted(edges, values, side="left")
    groups = [numpy.flatnonzero(groups == i) for i in range(n)]
    return [group for group in groups if len(group)]


def error_bins(errors, values, n=5):
    """Pool word errors over clips of similar length or speech rate.

    Arguments
    ---------
    errors : dict
        System's name -> {id: (edits, words)}, from `word_errors`.
    values : dict
        id -> what clips are grouped by. Clips that a system lacks are left
        out, so that all rates are over the same clips.
    n : int
        Groups.

    Returns
    -------
    Bins
        Total edits over total words of each group, never a mean of clips.
    """
    ids = [
        clip for clip in values if all(clip in done for done in errors.values())
    ]
    groups = [
        [ids[i] for i in group]
        for group in quantile_bins([values[clip] for clip in ids], n)
    ]
    rates = {}
    for name, done in errors.items():
        totals = [numpy.sum([done[c] for c in group], 0) for group in groups]
        rates[name] = [float(100 * e / max(1, words)) for e, words in totals]
    spans = [[values[clip] for clip in group] for group in groups]
    return Bins(
        [(min(span), max(span)) for span in spans],
        [len(group) for group in groups],
        rates,
    )


def agreement(answers, names, base="gold", longest=30):
    """How far answers go word by word with those to the gold transcript.

    Case and punctuation are set aside. Where both end, they agree on.

    Arguments
    ---------
    answers : dict
        System's name -> {id: record}.
    names : list of str
        Systems to compare.
    base : str
        The system they are compared with.
    longest : int
        Number of words.

    Returns
    -------
    dict
        Name -> for n = 1..longest the percentage of clips whose first n words
        are the same; only for systems that have clips in common with it.

    Example
    -------
    >>> said = {"gold": "a b", "speech": "A c."}
    >>> said = {name: {"1": {"hypothesis": t}} for name, t in said.items()}
    >>> agreement(said, ["speech"], longest=3)
    {'speech': [100.0, 0.0, 0.0]}
    """
    normaliser = wer_normaliser("any")

    def words(record):
        return normaliser(record["hypothesis"]).split()[:longest]

    wanted = {clip: words(r) for clip, r in answers.get(base, {}).items()}
    curves = {}
    for name in names:
        common = [clip for clip in answers.get(name, {}) if clip in wanted]
        if not common:
            continue
        agreed = numpy.zeros(longest)
        for clip in common:
            agreed[: _common(wanted[clip], words(answers[name][clip]))] += 1
        curves[name] = (100 * agreed / len(common)).tolist()
    return curves


def _common(ours, theirs):
    """Words until the first difference; None if there is none."""
    if ours == theirs:
        return None
    pairs = zip(ours, theirs, strict=False)
    same = [a == b for a, b in pairs]
    return same.index(False) if False in same else len(same)


def confusion(records, most=20):
    """Count which label was taken for which.

    A record's ``label`` is what its answer was understood as; without one the
    answer itself is looked up among the references.

    Arguments
    ---------
    records : iterable of dict
        With ``reference``, ``hypothesis``, perhaps ``label``.
    most : int
        Labels with a row of their own, the most frequent; the others share
        one.

    Returns
    -------
    Confusion or None
        None if the references are texts rather than labels.

    Example
    -------
    >>> confusion(
    ...     [
    ...         {"reference": "yes", "hypothesis": "Yes."},
    ...         {"reference": "yes", "hypothesis": "no"},
    ...         {"reference": "no", "hypothesis": "perhaps"},
    ...         {"reference": "no", "hypothesis": "no"},
    ...     ]
    ... )  # doctest: +NORMALIZE_WHITESPACE
    Confusion(rows=['yes', 'no'], columns=['yes', 'no', '(no label)'],
        counts=[[1, 1, 0], [0, 1, 1]])
    """
    records = list(records)
    meant = Counter(record["reference"] for record in records)
    labelled = all("label" in record for record in records)
    repeated = 2 * len(meant) <= len(records)
    if not records or len(meant) > _CLOSED or not (labelled or repeated):
        return None
    known = {_plain(label): label for label in meant}
    shown = [label for label, _ in meant.most_common(most)]

    def place(text):
        label = known.get(_plain(text))
        if label is None:
            return NO_LABEL
        return label if label in shown else OTHER

    pairs = Counter()
    for record in records:
        answer = record["label"] if labelled else record["hypothesis"]
        answer = "" if answer is None else str(answer)
        pairs[place(record["reference"]), place(answer)] += 1
    rows = shown + [OTHER] * (len(meant) > most)
    columns = rows + [NO_LABEL] * any(said == NO_LABEL for _, said in pairs)
    return Confusion(
        rows,
        columns,
        [[pairs[meant, said] for said in columns] for meant in rows],
    )


def _plain(text):
    """A label's words, case and punctuation set aside."""
    return " ".join(wer_normaliser("any")(text.replace("_", " ")).split())


def choose_clips(records, n=20, higher_is_better=False):
    """Clips to listen to: the worst, then others spread over the rest.

    Arguments
    ---------
    records : iterable of dict
        With ``score``; without it clips are only spread.
    n : int
        Number of clips.
    higher_is_better : bool
        Of the score.

    Returns
    -------
    list of dict
        Half of them the worst ones, worst first.

    Example
    -------
    >>> clips = [{"id": str(i), "score": i} for i in range(9)]
    >>> [clip["id"] for clip in choose_clips(clips, 4)]
    ['8', '7', '6', '3']
    """
    records = list(records)
    scored = [r for r in records if isinstance(r.get("score"), int | float)]
    if len(scored) < len(records) or not records:
        return _spread(records, n)
    ranked = sorted(
        records,
        key=lambda record: record["score"],
        reverse=not higher_is_better,
    )
    worst = ranked[: -(-n // 2)]
    return worst + _spread(ranked[len(worst) :], n - len(worst))


def _spread(items, n):
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]
