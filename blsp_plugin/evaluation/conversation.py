"""Scores of answers: does the model obey, and as the text LLM would?

Authors
 * The blsp_plugin team 2026
"""

import collections
import os
import re

import numpy
from speechbrain.utils.edit_distance import wer_details_for_batch

from blsp_plugin.data.text import wer_normaliser
from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.metrics import CorpusMetric, share

__all__ = ["AnswerAgreement", "InstructionFollowing", "Judge"]

JUDGE_PROMPT = """\
Somebody said: "{source}"
They asked for this: {instruction}
Reference answer: {target}
Answer to be judged: {predict}

How good is the answer, from 1 (wrong, or of something else) to 5 (as good as \
the reference)? Reply with the number alone."""


class InstructionFollowing(CorpusMetric):
    """How often the model does what it is told instead of writing down.

    A speech LLM that was trained on recognition transcribes whatever it is
    told. An answer counts as a transcription if at least half of what was said
    stands at its beginning (WER of that part at most 50 %); an answer that is
    neither that nor empty follows the instruction. Small LLMs begin many
    continuations with the text itself, so an answer that is the transcript and
    nothing more (WER of all of it at most 50 %) is counted apart. Whether an
    answer is a good one is another question; the rows of the table that read
    text bound it.

    Arguments
    ---------
    language : str
        Of the speech.
    resamples : int
        Bootstrap draws for the 95 % interval; 0 for none.

    Example
    -------
    >>> metric = InstructionFollowing(resamples=0)
    >>> said = ["where is the station"] * 2
    >>> metric.append(["a", "b"], ["Where is a station?", "Over there."],
    ...     ["", ""], said)
    >>> metric.summarize("followed_rate"), metric.scores()
    (50.0, {'a': 0.0, 'b': 100.0})
    """

    main = "followed_rate"
    kind = "chat"
    columns = {
        "followed_rate": "follows %",
        "transcribed_rate": "transcribes %",
        "only_transcribed_rate": "nothing more %",
        "empty_rate": "empty %",
    }

    def __init__(self, language="en", resamples=1000):
        self.normaliser = wer_normaliser(language)
        super().__init__(resamples)

    def __repr__(self):
        """Say what a transcription is."""
        return "InstructionFollowing(transcription: WER of its start <= 50 %)"

    def clear(self):
        """Forget all clips."""
        self.ids, self._rows = [], []

    def append(self, ids, predict, target, source):
        """Add clips: ids, answers, references (not used), transcripts."""
        self.ids += ids
        for said, heard in zip(predict, source, strict=True):
            said = self.normaliser(said).split()
            heard = self.normaliser(heard).split()
            transcribed = bool(said) and _is_like(said[: len(heard)], heard)
            only = bool(said) and _is_like(said, heard)
            empty = not said
            followed = not (transcribed or empty)
            self._rows.append([followed, transcribed, empty, only])

    def scores(self):
        """100 for each clip that is answered, else 0; by id."""
        followed = 100.0 * self.statistics()[:, 0]
        return dict(zip(self.ids, followed.tolist(), strict=True))

    def statistics(self):
        """Followed, one, transcribed, empty, only transcribed."""
        rows = numpy.array(self._rows, dtype=float).reshape(-1, 4)
        return numpy.insert(rows, 1, 1.0, axis=1)

    def rate(self, sums):
        """The rate of followed instructions, see `CorpusMetric.rate`."""
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
            ``followed_rate``, ``transcribed_rate``, of these
            ``only_transcribed_rate``, ``empty_rate`` (percent), and with a
            bootstrap ``followed_rate_low`` and ``_high``.
        """
        sums = self.statistics().sum(0)
        summary = {
            "followed_rate": float(share(sums)),
            "transcribed_rate": float(share(sums[[2, 1]])),
            "only_transcribed_rate": float(share(sums[[4, 1]])),
            "empty_rate": float(share(sums[[3, 1]])),
            **self.interval(),
        }
        return summary if field is None else summary[field]


def _is_like(said, heard):
    """Whether words are others, half of them at least."""
    if not heard:
        return False
    details = wer_details_for_batch(["clip"], [heard], [said])
    return details[0]["WER"] <= 50


class Judge:
    """An LLM behind an OpenAI-compatible address that gives marks.

    Arguments
    ---------
    url : str
        Of the API, "http://host:8000/v1", say.
    model : str
        Name of the LLM there.
    template : str
        Prompt with ``{source}``, ``{instruction}``, ``{target}`` and
        ``{predict}``; the first whole number of the reply is the mark.
    most : int
        The best mark; the worst is 1.
    api_key : str, optional
        If the server wants one; `OPENAI_API_KEY` if not given.

    Raises
    ------
    BadInput
        If the package ``openai`` is not installed.
    """

    def __init__(self, url, model, template=JUDGE_PROMPT, most=5, api_key=None):
        try:
            import openai
        except ImportError as error:
            raise BadInput(
                "judge: needs the package openai; pip install "
                "blsp_plugin[server], or leave the judge out"
            ) from error
        self.model = model
        self.template = template
        self.most = most
        key = api_key or os.environ.get("OPENAI_API_KEY", "none")
        self._client = openai.OpenAI(base_url=url, api_key=key)
        self._known = {}

    def mark(self, **parts):
        """Mark one answer.

        Arguments
        ---------
        **parts : dict of str
            What stands in the template.

        Returns
        -------
        float or None
            0 to 100; None if the reply has no mark in it.
        """
        prompt = self.template.format(**parts)
        if prompt not in self._known:
            reply = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0.0,
                max_tokens=16,
            )
            self._known[prompt] = reply.choices[0].message.content or ""
        found = re.search(r"\d+", self._known[prompt])
        if found is None or not 1 <= int(found.group()) <= self.most:
            return None
        return 100 * (int(found.group()) - 1) / (self.most - 1)


class AnswerAgreement(InstructionFollowing):
    """How close answers are to those of the text LLM on the transcript.

    For a `Task` whose references are the answers of another system
    (``reference_system``): there is no right answer in a conversation, but
    behaviour alignment says what it should be. Words in common (F1 of bags of
    words, as SQuAD's), identical answers, and how far the beginnings agree.

    Arguments
    ---------
    language : str
        Of speech and answers.
    resamples : int
        Bootstrap draws for the 95 % interval of the F1; 0 for none.
    judge : Judge, optional
        Gives marks to all answers.
    instruction : str
        Shown to the judge.

    Example
    -------
    >>> metric = AnswerAgreement(resamples=0)
    >>> metric.append(["a"], ["It is green."], ["It is red."], ["what is it"])
    >>> round(metric.summarize("word_f1"), 1), metric.summarize("same_rate")
    (66.7, 0.0)
    """

    main = "word_f1"
    columns = {
        "word_f1": "word F1 %",
        "same_rate": "same answer %",
        "common_start": "common start %",
        "followed_rate": "follows %",
        "transcribed_rate": "transcribes %",
    }

    def __init__(
        self, language="en", resamples=1000, judge=None, instruction=""
    ):
        self.judge = judge
        self.instruction = instruction
        if judge is not None:
            self.columns = {**self.columns, "judge": "judge %"}
        super().__init__(language, resamples)

    def __repr__(self):
        """Name the judge."""
        judge = "" if self.judge is None else f", judge {self.judge.model}"
        return f"AnswerAgreement(with the text LLM{judge})"

    def clear(self):
        """Forget all clips."""
        super().clear()
        self._agreed, self._texts = [], []

    def append(self, ids, predict, target, source):
        """Add clips: ids, answers, the text LLM's answers, transcripts."""
        super().append(ids, predict, target, source)
        self._texts += zip(predict, target, source, strict=True)
        for said, wanted in zip(predict, target, strict=True):
            said = self.normaliser(said).split()
            wanted = self.normaliser(wanted).split()
            both = collections.Counter(said) & collections.Counter(wanted)
            start = len(os.path.commonprefix([said, wanted]))
            row = [both.total(), len(said), len(wanted), start, said == wanted]
            self._agreed.append(row)

    def scores(self):
        """Each clip's own F1; by id."""
        rates = self.rate(self.statistics())
        return dict(zip(self.ids, rates.tolist(), strict=True))

    def statistics(self):
        """Words in common, said, wanted."""
        return numpy.array(self._agreed, dtype=float).reshape(-1, 5)

    def rate(self, sums):
        """The F1 of words, see `CorpusMetric.rate`; 100 if both are empty."""
        words = sums[..., 1] + sums[..., 2]
        f1 = 200 * sums[..., 0] / numpy.maximum(1, words)
        return numpy.where(words == 0, 100.0, f1)

    def summarize(self, field=None):
        """Scores over all clips.

        Arguments
        ---------
        field : str, optional
            Return this one only.

        Returns
        -------
        dict or float
            ``word_f1``, ``same_rate``, ``common_start`` (percent of the text
            LLM's words), ``followed_rate``, ``transcribed_rate``, maybe
            ``judge`` and ``unjudged_rate``, and with a bootstrap
            ``word_f1_low`` and ``word_f1_high``.
        """
        sums = self.statistics().sum(0)
        followed = InstructionFollowing.statistics(self).sum(0)
        clips = max(1, len(self.ids))
        summary = {
            "word_f1": float(self.rate(sums)),
            "same_rate": float(100 * sums[4] / clips),
            "common_start": float(share(sums[[3, 2]])),
            "followed_rate": float(share(followed)),
            "transcribed_rate": float(share(followed[[2, 1]])),
            **self.interval(),
        }
        if self.judge is not None:
            marks = [
                self.judge.mark(
                    predict=said,
                    target=wanted,
                    source=heard,
                    instruction=self.instruction,
                )
                for said, wanted, heard in self._texts
            ]
            given = [mark for mark in marks if mark is not None]
            summary["judge"] = sum(given) / max(1, len(given))
            summary["unjudged_rate"] = 100 * (1 - len(given) / clips)
        return summary if field is None else summary[field]
