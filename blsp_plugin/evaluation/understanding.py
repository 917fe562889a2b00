"""Scores of spoken language understanding: intents and slots.

Authors
 * The blsp_plugin team 2026
"""

import collections
import json
import re

import numpy
from speechbrain.utils.edit_distance import accumulatable_wer_stats

from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.metrics import CorpusMetric, share

__all__ = ["LabelAccuracy", "SlotF1", "parse_slots"]


def _plain(text):
    """A label as it is compared: lower case, words only."""
    return " ".join(re.findall(r"\w+", text.lower()))


class LabelAccuracy(CorpusMetric):
    """How often the right one of a set of labels is named.

    For labels that were chosen by likelihood and for answers in words; an
    answer that is none of the labels is invalid, and wrong.

    Arguments
    ---------
    labels : dict or list, optional
        Labels, or label -> wording in which it is asked for; either counts.
        Taken from the references if not given.
    contained : bool
        An answer of several words counts as the one label in it ("It is the
        kitchen." for "kitchen").
    resamples : int
        Bootstrap draws for the 95 % interval of the accuracy; 0 for none.

    Example
    -------
    >>> metric = LabelAccuracy(["zero", "one"], resamples=0)
    >>> metric.append(["a", "b", "c"], ["Zero.", "one", "I hear one one"],
    ...     ["zero", "zero", "one"])
    >>> stats = metric.summarize()
    >>> [round(stats[name], 1) for name in ("accuracy", "invalid_rate")]
    [33.3, 33.3]
    """

    main = "accuracy"
    kind = "slu"
    columns = {
        "accuracy": "accuracy %",
        "macro_f1": "macro F1 %",
        "invalid_rate": "invalid %",
    }

    def __init__(self, labels=None, contained=False, resamples=1000):
        self.labels = labels
        self.contained = contained
        super().__init__(resamples)

    def __repr__(self):
        """Say how answers are matched."""
        how = "contained in the answer" if self.contained else "whole answer"
        return f"LabelAccuracy({how})"

    def clear(self):
        """Forget all clips."""
        self.ids, self.predict, self.target = [], [], []

    def append(self, ids, predict, target, source=None):
        """Add clips: their ids, answers and labels, lists of str."""
        self.ids += ids
        self.predict += predict
        self.target += target

    def chosen(self):
        """The label that each answer names.

        Returns
        -------
        list of str or None
            None of an invalid answer.
        """
        labels = self.labels
        if not isinstance(labels, dict):
            labels = {x: x for x in labels or sorted(set(self.target))}
        names = {}
        for label, wording in labels.items():
            names[_plain(str(label))] = names[_plain(str(wording))] = str(label)
        return [self._match(_plain(answer), names) for answer in self.predict]

    def _match(self, answer, names):
        if answer in names:
            return names[answer]
        if not self.contained:
            return None
        padded = f" {answer} "
        found = [name for name in names if f" {name} " in padded]
        # "turn on" is in "turn on all": the longer one is meant.
        found = {
            names[name]
            for name in found
            if not any(name != x and f" {name} " in f" {x} " for x in found)
        }
        return found.pop() if len(found) == 1 else None

    def scores(self):
        """100 for each clip that is right, else 0; by id."""
        right = 100.0 * self.statistics()[:, 0]
        return dict(zip(self.ids, right.tolist(), strict=True))

    def statistics(self):
        """Right or not, and one, of each clip."""
        pairs = zip(self.chosen(), self.target, strict=True)
        return numpy.array([[said == wanted, 1] for said, wanted in pairs])

    def rate(self, sums):
        """The accuracy, see `CorpusMetric.rate`."""
        return share(sums)

    def summarize(self, field=None):
        """Scores over all clips.

        Arguments
        ---------
        field : str, optional
            Return this one only.

        Returns
        -------
        dict or float
            ``accuracy``, ``macro_f1``, ``invalid_rate`` (percent), and with a
            bootstrap ``accuracy_low`` and ``accuracy_high``.
        """
        chosen = self.chosen()
        pairs = collections.Counter(zip(chosen, self.target, strict=True))
        said, wanted = (collections.Counter(x) for x in (chosen, self.target))
        f1 = [2 * pairs[x, x] / (said[x] + wanted[x]) for x in wanted]
        summary = {
            "accuracy": float(share(self.statistics().sum(0))),
            "macro_f1": 100 * sum(f1) / max(1, len(f1)),
            "invalid_rate": 100 * said[None] / max(1, len(chosen)),
            **self.interval(),
        }
        return summary if field is None else summary[field]


def parse_slots(text):
    """Slots of an answer or a reference.

    Arguments
    ---------
    text : str
        JSON, a list of ``{"type": ..., "filler": ...}`` or an object of type
        -> filler; or ``type: filler`` by lines, commas or semicolons.

    Returns
    -------
    list of (str, str)
        Type and filler, lower case, in their order.

    Example
    -------
    >>> parse_slots('[{"type": "date", "filler": "Today"}]')
    [('date', 'today')]
    >>> parse_slots("size: small; drink: iced coffee, please")
    [('size', 'small'), ('drink', 'iced coffee')]
    """
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            pairs = list(found.items())
        else:
            pairs = [(entity["type"], entity["filler"]) for entity in found]
    except (ValueError, TypeError, KeyError):
        parts = (part.split(":") for part in re.split(r"[;,\n]", text))
        pairs = [part for part in parts if len(part) == 2]
    pairs = [
        (re.sub(r"[\s_]+", "_", str(kind).strip().lower()), _plain(str(filler)))
        for kind, filler in pairs
    ]
    return [(kind, filler) for kind, filler in pairs if kind and filler]


class SlotF1(CorpusMetric):
    """SLU-F1 of entities, SLURP's measure, and their exact F1.

    A predicted entity whose type is right counts as found, and by the distance
    of its filler from the nearest one of that type (word error rate, and
    normalised edit distance of characters, added up) as too much and as missed
    (Bastianelli et al., EMNLP 2020, section 5; their ``slu_f1``).

    Arguments
    ---------
    resamples : int
        Bootstrap draws for the 95 % interval of the SLU-F1; 0 for none.

    Example
    -------
    >>> metric = SlotF1(resamples=0)
    >>> metric.append(["a"], ["date: to day"], ['{"date": "to night"}'])
    >>> round(metric.summarize("slu_f1"), 1), metric.summarize("slot_f1")
    (64.0, 0.0)
    """

    main = "slu_f1"
    kind = "slu"
    columns = {
        "slu_f1": "SLU-F1 %",
        "slot_f1": "slot F1 %",
        "all_slots_right": "all right %",
    }

    def __repr__(self):
        """Name the measure."""
        return "SlotF1(SLURP's SLU-F1, micro-averaged)"

    def clear(self):
        """Forget all clips."""
        self.ids, self._rows = [], []

    def append(self, ids, predict, target, source=None):
        """Add clips: ids, answers and references for `parse_slots`."""
        self.ids += ids
        for clip, said, wanted in zip(ids, predict, target, strict=True):
            reference = parse_slots(wanted)
            if wanted.strip() not in ("", "[]", "{}") and not reference:
                raise BadInput(
                    f"{clip}: {wanted!r} are no slots; give JSON or "
                    "`type: filler; type: filler`"
                )
            said = parse_slots(said)
            soft = [_soft(said, reference, unit) for unit in (str.split, list)]
            both = collections.Counter(said) & collections.Counter(reference)
            row = [sum(x) for x in zip(*soft, strict=True)]
            row += [both.total(), len(said), len(reference)]
            row += [sorted(said) == sorted(reference)]
            self._rows.append(row)

    def scores(self):
        """Each clip's own SLU-F1; by id."""
        rates = self.rate(self.statistics())
        return dict(zip(self.ids, rates.tolist(), strict=True))

    def statistics(self):
        """True, too many and missed slots; exact, said, wanted; all right."""
        return numpy.array(self._rows, dtype=float).reshape(-1, 7)

    def rate(self, sums):
        """The SLU-F1, see `CorpusMetric.rate`; 100 where nothing is to say."""
        found, extra, missed = sums[..., 0], sums[..., 1], sums[..., 2]
        whole = 2 * found + extra + missed
        f1 = 200 * found / numpy.where(whole == 0, 1, whole)
        return numpy.where(whole == 0, 100.0, f1)

    def summarize(self, field=None):
        """Scores over all clips.

        Arguments
        ---------
        field : str, optional
            Return this one only.

        Returns
        -------
        dict or float
            ``slu_f1``, ``slot_f1``, ``all_slots_right`` (percent, of clips),
            and with a bootstrap ``slu_f1_low`` and ``slu_f1_high``.
        """
        sums = self.statistics().sum(0)
        summary = {
            "slu_f1": float(self.rate(sums)),
            "slot_f1": float(200 * sums[3] / max(1.0, sums[4] + sums[5])),
            "all_slots_right": float(100 * sums[6] / max(1, len(self.ids))),
            **self.interval(),
        }
        return summary if field is None else summary[field]


def _soft(said, wanted, unit):
    """(found, too much, missed), softened by the fillers' distances."""
    wanted, found, off, extra = list(wanted), 0, 0.0, 0
    for kind, filler in said:
        near = [
            (_distance(unit(other), unit(filler), unit), place)
            for place, (other_kind, other) in enumerate(wanted)
            if other_kind == kind
        ]
        if near:
            distance, place = min(near)
            found, off = found + 1, off + distance
            del wanted[place]
        else:
            extra += 1
    return found, off + extra, off + len(wanted)


def _distance(reference, said, unit):
    """WER of words; of characters, edits over the longer one."""
    edits = accumulatable_wer_stats([reference], [said])
    edits = sum(edits[k] for k in ("insertions", "deletions", "substitutions"))
    length = len(reference)
    return edits / (length if unit is str.split else max(length, len(said)))
