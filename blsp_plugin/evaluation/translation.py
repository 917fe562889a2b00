"""Scores of translations: BLEU and chrF, as sacreBLEU computes them.

Authors
 * The blsp_plugin team 2026
"""

import logging

import numpy
from sacrebleu.metrics import BLEU, CHRF

from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.metrics import CorpusMetric

__all__ = ["TranslationScores"]


class TranslationScores(CorpusMetric):
    """Corpus BLEU (Papineni et al., 2002) and chrF (Popovic, 2015).

    Texts are scored as they are: cased, with punctuation, detokenised (Post,
    WMT 2018). `signatures` say how, to be printed beside the figures.

    Arguments
    ---------
    language : str
        Of the translations; Chinese, Japanese and Korean get sacreBLEU's own
        tokenisers.
    resamples : int
        Bootstrap draws for the 95 % interval of the BLEU; 0 for none.
    comet : str, optional
        A COMET model, by name or path to a checkpoint ("Unbabel/wmt22-
        comet-da"); it needs the package ``unbabel-comet`` and source texts,
        which `append` gets as ``source``.

    Example
    -------
    >>> metric = TranslationScores(language="fr", resamples=0)
    >>> metric.append(["a"], ["Le chat dort ici."], ["Le chat dort ici."])
    >>> round(metric.summarize("bleu")), round(metric.summarize("chrf"))
    (100, 100)
    >>> metric.signatures()["bleu"]
    'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0'
    """

    main = "bleu"
    kind = "st"

    def __init__(self, language=None, resamples=1000, comet=None):
        self.columns = {"bleu": "BLEU", "chrf": "chrF"}
        family = (language or "").lower().replace("_", "-").split("-")[0]
        # Its own choice of tokeniser is by the target language.
        self._bleu = BLEU(trg_lang=family)
        self._chrf = CHRF()
        for metric in (self._bleu, self._chrf):  # no signature before a score
            metric.corpus_score(["a"], [["a"]])
        # Of a sentence alone n-grams may be missing: then of lower order.
        self._sentence = BLEU(trg_lang=family, effective_order=True)
        self._comet = None
        if comet is not None:
            self.columns["comet"] = "COMET"
            self._comet = _open_comet(comet)
        super().__init__(resamples)

    def __repr__(self):
        """Name the signatures."""
        signatures = self.signatures()
        return ", ".join(f"{k} {signatures[k]}" for k in signatures)

    def signatures(self):
        """How the scores are computed.

        Returns
        -------
        dict of str
            Figure -> sacreBLEU's signature.
        """
        return {
            name: str(metric.get_signature())
            for name, metric in (("bleu", self._bleu), ("chrf", self._chrf))
        }

    def clear(self):
        """Forget all clips."""
        self.ids, self.predict, self.target, self.source = [], [], [], []

    def append(self, ids, predict, target, source=None):
        """Add clips.

        Arguments
        ---------
        ids : list of str
            Their ids.
        predict : list of str
            What a system said.
        target : list of str
            The translations.
        source : list of str, optional
            The transcripts, for COMET.
        """
        self.ids += ids
        self.predict += predict
        self.target += target
        self.source += source or [""] * len(ids)

    def scores(self):
        """Each clip's own chrF, steadier on one sentence than BLEU.

        Returns
        -------
        dict
            id -> percent.
        """
        return {
            clip: self._chrf.sentence_score(said, [wanted]).score
            for clip, said, wanted in zip(
                self.ids, self.predict, self.target, strict=True
            )
        }

    def statistics(self):
        """Matching and all n-grams of each order, and both lengths."""
        rows = []
        for said, wanted in zip(self.predict, self.target, strict=True):
            score = self._sentence.sentence_score(said, [wanted])
            lengths = [score.sys_len, score.ref_len]
            rows.append([*score.counts, *score.totals, *lengths])
        return numpy.array(rows)

    def rate(self, sums):
        """The BLEU of each row of sums, see `CorpusMetric.rate`."""
        return numpy.array(
            [
                self._bleu.compute_bleu(
                    list(row[:4]),
                    list(row[4:8]),
                    int(row[8]),
                    int(row[9]),
                    smooth_method="exp",
                ).score
                for row in numpy.atleast_2d(sums)
            ]
        )

    def summarize(self, field=None):
        """Scores over all clips.

        Arguments
        ---------
        field : str, optional
            Return this one only.

        Returns
        -------
        dict or float
            ``bleu``, ``chrf`` (percent), maybe ``comet``, and with a bootstrap
            ``bleu_low`` and ``bleu_high``.
        """
        summary = {
            "bleu": self._bleu.corpus_score(self.predict, [self.target]).score,
            "chrf": self._chrf.corpus_score(self.predict, [self.target]).score,
            **self.interval(),
        }
        if self._comet is not None:
            rows = [
                {"src": source, "mt": said, "ref": wanted}
                for source, said, wanted in zip(
                    self.source, self.predict, self.target, strict=True
                )
            ]
            summary["comet"] = 100 * self._comet.predict(rows).system_score
        return summary if field is None else summary[field]

    def write_stats(self, filestream):
        """Write signatures and figures."""
        for name, signature in self.signatures().items():
            filestream.write(f"{name} = {signature}\n")
        super().write_stats(filestream)


def _open_comet(source):
    """A COMET model; its package is no dependency of this one."""
    try:
        import comet
    except ImportError as error:
        raise BadInput(
            "comet: needs the package of that name; pip install unbabel-comet, "
            "or leave it out"
        ) from error
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    if not source.endswith(".ckpt"):
        source = comet.download_model(source)
    return comet.load_from_checkpoint(source)
