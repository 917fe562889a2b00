"""Scores against values computed by hand and by trusted scorers."""

import http.server
import io
import json
import subprocess
import sys
import threading

import numpy
import pytest

from blsp_plugin.errors import BadInput
from blsp_plugin.evaluation.conversation import (
    AnswerAgreement,
    InstructionFollowing,
    Judge,
)
from blsp_plugin.evaluation.metrics import ErrorRates, paired_p_value
from blsp_plugin.evaluation.translation import TranslationScores
from blsp_plugin.evaluation.understanding import LabelAccuracy, SlotF1


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


def error_rates(errors, words, **options):
    """A metric whose clips have so many errors in so many words."""
    metric = ErrorRates(normaliser=str, **options)
    for number, (wrong, count) in enumerate(zip(errors, words, strict=True)):
        said = ["x"] * wrong + ["a"] * (count - wrong)
        metric.append([str(number)], [" ".join(said)], ["a " * count])
    return metric


def test_bootstrap_interval():
    errors, words = [0, 1, 2, 0, 3, 1, 0, 0, 2, 1], [10] * 10
    stats = error_rates(errors, words).summarize()
    assert stats["wer_low"] < 10 < stats["wer_high"]
    assert stats == error_rates(errors, words).summarize()
    wide = stats["wer_high"] - stats["wer_low"]
    stats = error_rates(errors * 16, words * 16).summarize()
    narrow = stats["wer_high"] - stats["wer_low"]
    assert wide / 6 < narrow < wide / 2.5  # as the root of the clips
    stats = rates([("a b", "a c"), ("a", "a")], resamples=0)
    assert "wer_low" not in stats


def test_bootstrap_interval_covers():
    """Of many corpora, 95 % intervals hold the true rate about that often."""
    rng = numpy.random.default_rng(0)
    metric = LabelAccuracy(["a", "b"], resamples=200)
    held = 0
    for _ in range(300):
        metric.clear()
        right = rng.random(100) < 0.7
        said = ["a" if yes else "b" for yes in right]
        metric.append(list(map(str, range(100))), said, ["a"] * 100)
        interval = metric.interval()
        held += interval["accuracy_low"] <= 70 <= interval["accuracy_high"]
    assert 0.90 <= held / 300 <= 0.98


def test_paired_p_value():
    rng = numpy.random.default_rng(1)
    metric = LabelAccuracy(["a", "b"])
    easy = rng.random(200)

    def statistics(level):
        metric.clear()
        said = ["a" if x < level else "b" for x in easy]
        metric.append(list(map(str, range(200))), said, ["a"] * 200)
        return metric.statistics()

    good, same = statistics(0.8), statistics(0.8)
    bad, near = statistics(0.6), statistics(0.79)
    # The same clips are hard for both: a small difference is found out that
    # the two intervals, which overlap, do not show.
    assert paired_p_value(metric, good, bad) == 1 / 1000
    assert paired_p_value(metric, good, same) == 1
    assert 0.05 < paired_p_value(metric, good, near) < 1
    assert paired_p_value(metric, bad, good) == 1 / 1000


def random_texts(count, seed=0):
    """Sentences and what somebody might make of them."""
    rng = numpy.random.default_rng(seed)
    words = "the cat, sat on a Mat. it's 7 dogs! where are we going".split()
    said, wanted = [], []
    for _ in range(count):
        truth = rng.choice(words, rng.integers(1, 12)).tolist()
        wanted.append(" ".join(truth))
        kept = [w for w in truth if rng.random() < 0.8]
        kept += rng.choice(words, rng.integers(0, 3)).tolist()
        said.append(" ".join(kept))
    return said, wanted


def test_wer_equals_jiwer():
    jiwer = pytest.importorskip("jiwer")
    said, wanted = random_texts(200)
    metric = ErrorRates(resamples=0)
    metric.append(list(map(str, range(200))), said, wanted)
    stats = metric.summarize()
    said = [metric.normaliser(text) for text in said]
    wanted = [metric.normaliser(text) for text in wanted]
    words = jiwer.process_words(wanted, said)
    assert stats["wer"] == pytest.approx(100 * words.wer, abs=1e-9)
    assert stats["cer"] == pytest.approx(100 * jiwer.cer(wanted, said))
    assert stats["words"] == (
        words.hits + words.substitutions + words.deletions
    )
    scores = list(metric.scores().values())
    for number in range(200):
        own = jiwer.wer(wanted[number], said[number])
        assert scores[number] == pytest.approx(100 * own)


def test_hallucinations_and_rare_words(tmp_path):
    path = str(tmp_path / "train.csv")
    rows = [("1", "the cat and the dog"), ("2", "the cat and a bird")]
    with open(path, "w", encoding="utf-8") as stream:
        stream.write("ID,wrd\n")
        stream.writelines(f"{name},{text}\n" for name, text in rows)
    metric = ErrorRates(resamples=0, rare_words_of=path, common_words=3)
    assert metric.common == {"the", "cat", "and"}
    metric.append(
        ["a", "b", "c"],
        ["the fox and a dog", "x y z v w the cat", "x y z the v w cat"],
        ["the dog and a zebra", "the cat", "the cat"],
    )
    stats = metric.summarize()
    # dog and zebra are missed, "a" is said; one clip of three has five words
    # in a row that nobody said.
    assert stats["rare_word_error_rate"] == pytest.approx(200 / 3)
    assert stats["hallucination_rate"] == pytest.approx(100 / 3)
    with pytest.raises(BadInput, match="no such manifest"):
        ErrorRates(rare_words_of=str(tmp_path / "none.csv"))


def test_bleu_signature(tmp_path):
    """The same figures and signatures as sacreBLEU's own command."""
    said, wanted = random_texts(60, seed=3)
    metric = TranslationScores(language="fr")
    metric.append(list(map(str, range(60))), said, wanted)
    stats = metric.summarize()
    for name, texts in (("said", said), ("wanted", wanted)):
        (tmp_path / name).write_text("\n".join(texts) + "\n", "utf-8")
    command = [sys.executable, "-m", "sacrebleu", str(tmp_path / "wanted")]
    command += ["-i", str(tmp_path / "said"), "-m", "bleu", "chrf", "-w", "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    signatures = metric.signatures()
    for line, name in zip(json.loads(done.stdout), stats, strict=False):
        assert stats[name] == pytest.approx(line["score"], abs=1e-5)
        assert signatures[name] == line["signature"]
        assert line["signature"] in repr(metric)
    assert stats["bleu_low"] < stats["bleu"] < stats["bleu_high"]
    # The sums that are resampled give the corpus' own score.
    whole = metric.rate(metric.statistics().sum(0))
    assert whole[0] == pytest.approx(stats["bleu"])
    assert "tok:zh" in TranslationScores(language="zh-CN").signatures()["bleu"]
    stream = io.StringIO()
    metric.write_stats(stream)
    assert signatures["chrf"] in stream.getvalue()
    with pytest.raises(BadInput, match="pip install unbabel-comet"):
        TranslationScores(comet="Unbabel/wmt22-comet-da")


def test_labels_in_answers():
    labels = {
        "turn_on": "turn on",
        "turn_on_all": "turn on all",
        "stop": "halt",
    }
    said = ["Turn on.", "please TURN ON ALL of it", "halt or turn on?", "no"]
    said += ["stop", "halt!"]
    wanted = ["turn_on", "turn_on_all", "stop", "stop", "stop", "stop"]
    ids = list("abcdef")
    metric = LabelAccuracy(labels, contained=True, resamples=0)
    metric.append(ids, said, wanted)
    assert metric.chosen() == wanted[:2] + [None, None] + wanted[4:]
    stats = metric.summarize()
    assert stats["accuracy"] == pytest.approx(400 / 6)
    assert stats["invalid_rate"] == pytest.approx(200 / 6)
    # 1, 1, and 2 of 4 found without a false one: F1 2/3.
    assert stats["macro_f1"] == pytest.approx(100 * (1 + 1 + 2 / 3) / 3)
    assert metric.scores()["c"] == 0
    strict = LabelAccuracy(labels, resamples=0)
    strict.append(ids, said, wanted)
    assert strict.summarize("invalid_rate") == pytest.approx(300 / 6)


def slots(*pairs):
    """As a reference has them."""
    return json.dumps([{"type": k, "filler": v} for k, v in pairs])


@pytest.mark.parametrize(
    "said, wanted, found, extra, missed",
    [
        # Both distances are 0; once by words and once by characters.
        ([("date", "today")], [("date", "today")], 2, 0, 0),
        ([], [("date", "today")], 0, 0, 2),
        ([("date", "today")], [], 0, 2, 0),
        ([("time", "today")], [("date", "today")], 0, 2, 2),
        # 1 of 2 words is wrong, 1 of 8 characters.
        (
            [("date", "to night")],
            [("date", "to might")],
            2,
            1 / 2 + 1 / 8,
            1 / 2 + 1 / 8,
        ),
        # The nearest of one type; the other one is missed.
        (
            [("who", "ann lee")],
            [("who", "bob"), ("who", "ann lee")],
            2,
            0,
            2,
        ),
        # Longer than the reference: a WER of 2, 7 of 8 characters.
        ([("who", "ab cd ef")], [("who", "a")], 2, 3 + 7 / 8, 3 + 7 / 8),
    ],
)
def test_slu_f1_by_hand(said, wanted, found, extra, missed):
    """SLURP's scorer, step by step: true positives, false ones, misses."""
    metric = SlotF1(resamples=0)
    metric.append(["a"], [slots(*said)], [slots(*wanted)])
    assert metric.statistics()[0, :3] == pytest.approx([found, extra, missed])
    precision = found / (found + extra) if found + extra else 0
    recall = found / (found + missed) if found + missed else 0
    f1 = 2 * precision * recall / max(1e-9, precision + recall)
    assert metric.summarize("slu_f1") == pytest.approx(100 * f1)


def test_slots_over_clips():
    metric = SlotF1()
    metric.append(
        ["a", "b", "c"],
        ["size: small; drink: tea", '{"drink": "black tea"}', "nothing"],
        [slots(("size", "small"), ("drink", "tea")), "{}", "[]"],
    )
    stats = metric.summarize()
    # Two of three that are said are right, and all that are wanted.
    assert stats["slot_f1"] == pytest.approx(200 * 2 / (3 + 2))
    assert stats["all_slots_right"] == pytest.approx(200 / 3)
    assert metric.scores() == {"a": 100, "b": 0, "c": 100}
    assert stats["slu_f1_low"] <= stats["slu_f1"] <= stats["slu_f1_high"]
    with pytest.raises(BadInput, match="d: 'small' are no slots"):
        metric.append(["d"], [""], ["small"])


def test_who_obeys_and_who_transcribes():
    heard = "what is the capital of france"
    said = ["Paris.", "What is the capital of France?", "", "what is the ..."]
    said += ["The capital of France is Paris."]
    said += ["What is the capital of France? It has been Paris for long."]
    metric = InstructionFollowing(resamples=0)
    metric.append(list("abcdef"), said, [""] * 6, [heard] * 6)
    scores = {"a": 100, "b": 0, "c": 0, "d": 0, "e": 100, "f": 0}
    assert metric.scores() == scores
    stats = metric.summarize()
    assert stats["followed_rate"] == pytest.approx(100 * 2 / 6)
    assert stats["transcribed_rate"] == pytest.approx(100 * 3 / 6)
    assert stats["only_transcribed_rate"] == pytest.approx(100 * 2 / 6)
    assert stats["empty_rate"] == pytest.approx(100 / 6)


class Marks(http.server.BaseHTTPRequestHandler):
    """An OpenAI-compatible server that likes Paris."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        prompt = json.loads(self.rfile.read(length))["messages"][0]["content"]
        judged = prompt.split("Answer to be judged:")[1].split("\n")[0]
        reply = (
            "5" if "Paris" in judged else "I can't" if "?" in judged else "2"
        )
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "judge",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": reply},
                }
            ],
        }
        body = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Be quiet."""


def test_agreement_and_the_judge():
    pytest.importorskip("openai")
    server = http.server.HTTPServer(("127.0.0.1", 0), Marks)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    metric = AnswerAgreement(resamples=10, judge=Judge(url, "judge"))
    metric.append(
        ["a", "b", "c"],
        ["It is Paris.", "It is Rome.", "What?"],
        ["It is Paris."] * 3,
        ["what is the capital of france"] * 3,
    )
    stats = metric.summarize()
    server.shutdown()
    assert stats["same_rate"] == pytest.approx(100 / 3)
    assert stats["common_start"] == pytest.approx(100 * (3 + 2) / 9)
    assert stats["word_f1"] == pytest.approx(200 * (3 + 2) / (7 + 9))
    assert stats["judge"] == pytest.approx((100 + 25) / 2)
    assert stats["unjudged_rate"] == pytest.approx(100 / 3)
    assert stats["word_f1_low"] <= stats["word_f1"] <= stats["word_f1_high"]
    assert "judge judge" in repr(metric)
