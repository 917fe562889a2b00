"""Case and punctuation of a rewriting, on the transcript's own words."""

import random
import string
import unicodedata

import pytest

from blsp_plugin.data.recasing import WORD, Recaser, project, words
from blsp_plugin.data.text import needs_recasing, normalise_transcript, recase
from blsp_plugin.errors import BadInput

SENTENCES = (
    "You must sleep, he urged.",
    "God bless 'em, I hope I'll go on seeing them forever.",
    "In partnership with Daylight, the pair raided the San Jose Interurban.",
    "His hand shot out and clutched Crooked-Leg by the neck.",
    "Why, he's bought forty pounds of goods from you already; isn't it odd?",
    "Captain West may be a Samurai, but he is also human.",
    "The boys' boat, the Dazzler, lay in San Francisco Bay!",
    "Mr. O'Neil of McCoy & Co. was paid $5, I think.",
    "The Ph.D. met the U.S. consul at five.",
    "Wait... what is it -- a bear?",
    "“Go away,” said Ångström – “I'm ill.”",
    "L’été, déjà ?",
    "Der große Straßenbahnfahrer aß, und ging.",
)


def bare(text):
    """As LibriSpeech has it: upper-case words and apostrophes."""
    kept = (c if c.isalnum() or c in "'’" else " " for c in text)
    return " ".join("".join(kept).split()).upper()


@pytest.mark.parametrize("text", SENTENCES[:7])
def test_true_text_comes_back(text):
    assert project(bare(text), text) == (text, 1.0)
    assert project(bare(text).lower(), text) == (text, 1.0)


@pytest.mark.parametrize(
    ("transcript", "rewritten", "expected"),
    [
        # Words that the LLM changes, leaves out or adds.
        ("I SAW TOM IN ROME", "I met Tom, in Rome!", "I saw Tom, in Rome!"),
        ("I SAW OLD TOM", "I saw Tom.", "I saw old Tom."),
        ("I SAW TOM", "I saw my Tom.", "I saw Tom."),
        ("IT'S ITS OWN", "Its it's own.", "It's its own."),
        ("I DON'T KNOW", "I do not know.", "I don't know."),
        ("TWENTY FIVE MEN DIED", "25 men died!", "Twenty five men died!"),
        (
            "I SAW TWENTY FIVE THEN",
            "I saw 25, then",
            "I saw twenty five, then.",
        ),
        ("SO HE LEFT TO MORROW", "So he left. Tomorrow?", None),
        # No comma where a dropped word stood.
        ("IN ROME TOO HE SAT", "In Rome, he sat.", "In Rome too he sat."),
        # Hyphens, dashes.
        ("A WELL KNOWN MAN", "A well-known man.", "A well-known man."),
        ("A WELL KNOWN MAN", "A well-to-do man.", "A well known man."),
        ("A WELL-KNOWN MAN", "A well known man.", "A well-known man."),
        ("NO YOU GO", "No — you go.", "No — you go."),
        ("NO YOU GO", "No—you go.", "No—you go."),
        ("NO YOU GO", "No—we go.", "No you go."),
        # What the transcript has stays.
        ("hello. who is it", "Hello! Who, is it?", "Hello. Who, is it?"),
        ("THE BOYS' CAT 'TIS SO", "The boys cat, tis so", None),
        ("GO TO 5/6", "Go to 5-6.", "Go to 5/6."),
        # Apostrophes of either shape.
        ("IT'S HERE", "It’s here!", "It's here!"),
        ("L’ÉTÉ EN FRANCE", "L'été, en France.", "L’été, en France."),
        # Preambles, quotation marks, markdown.
        (
            "I MET TOM THERE",
            'Here is the corrected text: "I met Tom there."',
            "I met Tom there.",
        ),
        ("I MET TOM THERE", "**I met Tom there?**", "I met Tom there?"),
        ("I MET TOM THERE", "I met (Tom) there. [End]", "I met Tom there."),
        ("COME HE SAID", '"Come," he said.', '"Come," he said.'),
        ("COME HE SAID", '"Come, he said.', "Come, he said."),
        # The rewriting goes on, stops early, or has no end.
        ("I MET TOM", "I met Tom, and Ann too. Bye.", "I met Tom."),
        ("I MET TOM", "I met Tom. And Ann.", "I met Tom."),
        ("I MET TOM IN ROME", "I met Tom.", "I met Tom in rome."),
        ("I MET TOM", "i met Tom", "I met Tom."),
        ("I MET TOM", "I met Tom,", "I met Tom."),
        # Nothing to learn from.
        ("I MET TOM", "I MET TOM!", "I met tom."),
        ("I MET TOM", "Sure: I MET TOM!", "I met tom."),
        ("I MET TOM", "", "I met tom."),
        ("OK", "OK.", "Ok."),
        ("", "Hello.", ""),
        ("5 6", "5, 6.", "5 6"),
        ("Tom met ann", "Tom met Ann.", "Tom met ann"),
        ("你好", "你好。", "你好"),
        # Letters whose case is not one letter.
        ("STRASSE UND HOF", "Straße, und Hof.", "Straße, und Hof."),
        ("İSTANBUL AND ΟΔΟΣ", "İstanbul and Οδος!", "İstanbul and Οδος!"),
        ("ÉTÉ ÉTÉ", "E\u0301te\u0301, e\u0301te\u0301!", "Été, été!"),
    ],
)
def test_project(transcript, rewritten, expected):
    text = project(transcript, rewritten).text
    assert words(text) == words(transcript)
    if expected is not None:
        assert text == expected


def test_matched_counts_words():
    assert project("ONE TWO THREE FOUR", "One two, tree four.").matched == 0.75
    assert project("ONE TWO", "Three.").matched == 0
    assert project("ONE TWO", "ONE TWO.").matched == 0


def mangle(text, rng):
    """What an LLM may make of a text: anything near it."""
    tokens = text.split()
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(tokens) + 1)
        junk = rng.choice(
            ["the", "“", "**", "—", "(no)", "\n", "'", "Ǆ", "ß", "25,", "!?"]
        )
        what = rng.randrange(4)
        if what == 0:
            tokens.insert(at, junk)
        elif what == 1:
            tokens[at : at + rng.randrange(3)] = []
        elif what == 2:
            tokens[at : at + 1] = [t.swapcase() + junk for t in tokens[at:][:1]]
        else:
            tokens[at : at + 2] = [junk.join(tokens[at : at + 2])]
    return rng.choice(["", "Sure! "]) + " ".join(tokens)


def test_words_never_change():
    rng = random.Random(0)
    for _ in range(2000):
        true = rng.choice(SENTENCES)
        transcript = normalise_transcript(
            rng.choice([bare(true), true.upper(), true.lower(), true])
        )
        text, matched = project(transcript, mangle(true, rng))
        assert words(text) == words(transcript)
        assert 0 <= matched <= 1
        assert text == " ".join(text.split())


def test_hostile_characters_do_no_harm():
    """Letters of every script and case, marks, controls, symbols."""
    rng = random.Random(1)
    odd = "".join(
        chr(c)
        for c in (
            *range(0x20, 0x600),
            *range(0x1E00, 0x2070),
            *range(0xFB00, 0xFB20),
        )
        if unicodedata.category(chr(c)) != "Cn"
    )
    for _ in range(3000):
        letters = rng.choice(
            [string.ascii_letters + " '-.,", odd, odd + " " * 300]
        )
        a, b = (
            "".join(rng.choices(letters, k=rng.randrange(30))) for _ in "ab"
        )
        transcript = normalise_transcript(rng.choice([a.upper(), a.lower()]))
        for rewritten in (b, a, a + b, a.title(), a.swapcase()):
            text = project(transcript, rewritten).text
            assert words(text) == words(transcript), (transcript, rewritten)
            letters_of = [
                c for c in WORD.sub("", transcript) if not c.isspace()
            ]
            assert not set(letters_of) - set(text)


def test_long_text_is_quick():
    text = " ".join(["the", "sea", "is", "calm"] * 100).upper()
    assert project(text, text.lower() + "?").matched == 1


def test_recaser():
    recaser = Recaser("Correct it.", min_matched=0.75)
    given = "I MET TOM IN PARIS"
    assert recaser.apply(given, "I met Tom, Paris.") == "I met Tom in Paris."
    assert recaser.apply(given, "Met Tom? Yes.") == recase(given)
    assert recaser.apply("A Name", "a name") == "A Name"
    assert recaser.given(given) == "I met tom in paris."
    assert Recaser(form="lower").given(given) == "i met tom in paris"
    assert Recaser(form="lower").given("A Name") == "A Name"
    assert recaser.describe()["instruction"] == "Correct it."
    assert not needs_recasing(recaser.apply(given, ""))


@pytest.mark.parametrize(
    "settings", [{"max_growth": 0}, {"min_matched": 1.5}, {"min_matched": -1}]
)
def test_recaser_refuses(settings):
    with pytest.raises(BadInput):
        Recaser("Correct it.", **settings)
