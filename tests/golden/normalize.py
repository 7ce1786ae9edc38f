#!/usr/bin/env python3
"""Writes normalize.json: texts, what the normalisers of Whisper make of them, as transformers has them, and the word
errors that jiwer counts between such texts.

    pip install transformers whisper-normalizer jiwer && python3 tests/golden/normalize.py

Written with jiwer 4.0.0 and transformers 5.24.0, whose EnglishTextNormalizer takes the list of spellings that
Whisper's tokenizers have in normalizer.json; whisper-normalizer 0.1.15 has the same as english.json. Runs of white
space are one space, as laconic writes them. bench/normalize.py makes many more texts by `random_text`.
"""

import importlib.util
import json
import pathlib
import random

import jiwer
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

UNITS = """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
POWERS = "hundred thousand million billion trillion quadrillion decillion".split()
ORDINALS = """zeroth first second third fourth fifth sixth seventh eighth nineth ninth tenth twelfth twentieth
thirtieth hundredth thousandth millionth ones twos sixes nines twenties nineties hundreds thousands
millions""".split()
AROUND = """o oh zero and point double triple minus negative plus positive pound pounds euro dollar dollars cent cents
per percent half a""".split()
DIGITS = """0 1 2 5 10 19 20 100 1960 2.5 0.07 3.0 007 1,000 1,234,567 1,2,3 $5 $2.50 $0.05 $0 £7 €1 €100 ¢7 ¢07 20%
5% 1st 2nd 3rd 4th 60s 1960s 1s a1 b2b 5g 4x4 1.2.3 192.168.0.1 12:30 1/2 ½ ² 10-20 +5 -3 #1 .5 5.""".split()
WORDS = """the colour of an organised theatre analysed travelling catalogue aluminium defence grey neighbours'
"quoted" he's it'd been they're I'm won't can't let's y'all gonna wanna shoulda ma'am she'd gone who's got isn't we'll
you've Mr. Mrs. Dr. St. Prof. Lt Col Jr. uh um hmm mm-hmm [noise] <unk> (laughs) () naïve café façade Łódź straße
œuvre Þór ﬁne … — – • % $ ¢ £ € . , ; ! ? ' '' rock 'n' roll o'clock O'Brien 'tis e.g. U.S.A. a.m. No.5 x-ray
mid-1990s ready...go""".split()
OTHERS = [*"Привет мир नमस्ते 你好 こんにちは مرحبا ΟΔΟΣ İstanbul ÅNGSTRÖM ＡＢＣ１２３ ™ ٣ ５".split(),
          "\u00a0", "\u2003", "\u200b", "¿Qué?", "«Oui»"]  # fmt: skip


def normalizers():
    """Returns the two normalisers of transformers by name, and the list of spellings."""
    folder = pathlib.Path(importlib.util.find_spec("whisper_normalizer").submodule_search_locations[0])
    spellings = json.loads((folder / "normalizers" / "english.json").read_text())
    return {"basic": BasicTextNormalizer(), "whisper": EnglishTextNormalizer(spellings)}, spellings


def spelled(n):
    """Returns a number below a million in words."""
    if n < 20:
        return ["zero", *UNITS][n]
    if n < 100:
        return TENS[n // 10 - 2] + (" " + UNITS[n % 10 - 1] if n % 10 else "")
    big, word = (1000, "thousand") if n >= 1000 else (100, "hundred")
    rest = n % big
    return f"{spelled(n // big)} {word}" + ((" and " if rest < 100 else " ") + spelled(rest) if rest else "")


def random_text(random):
    """Returns words of all kinds in any order, or numbers as people say them."""
    kind = random.random()
    if kind < 0.2:
        text = spelled(random.randrange(10 ** random.randrange(1, 7)))
        return random.choice(["{}", "minus {}", "{} dollars and {} cents", "{} percent", "{} point {}", "{} and a half",
                              "{} and a half million", "in {} {}", "{} euros", "£{}", "the {}s"]).format(
            text, spelled(random.randrange(100)))  # fmt: skip
    numbers = [UNITS, TENS, POWERS, ORDINALS, AROUND, DIGITS]
    pools = numbers if kind < 0.5 else [*numbers, WORDS, WORDS, *([OTHERS] if kind < 0.6 else [])]
    words = [random.choice(random.choice(pools)) for _ in range(random.randrange(1, 10))]
    text = random.choice([" ", " ", " ", " ", " ", "-", ", ", ""]).join(words)
    return text if kind < 0.9 else text.upper() if kind < 0.95 else text.title()


CHOSEN = [
    "", " ", "Mr. Smith's colour-blind dog didn't bark.", "one oh one", "double oh seven", "triple nine",
    "nineteen twenty five", "twenty one", "two thousand and twenty one", "three hundred and five",
    "one hundred thousand", "one point five million", "two and a half million dollars", "and a half",
    "five and a half and a half", "x and a half", "fifty fifty", "nineteen eighties", "the sixties",
    "twenty first of May", "the ninth", "one", "ones", "1", "1s", "$1", "1.5", "two dollars and seven cents",
    "$2 and ¢7", "zero dollars and five cents", "five cents", "ten per cent", "ten per day", "minus five degrees",
    "plus", "a plus", "minus minus two", "one thousand thousand", "one thousand one thousand", "point", "point five",
    "zero point zero five", "three point one four one five nine", "point twenty", "5 point 6.7",
    "nine nine nine nine thousand", "one decillion decillion", "1,000,000", "1,2,3,4", "a..5", "...", ". . .", "5th",
    "5 th", "1960s", "1960 s", "st", "st's", "Dr. Dre", "he's been", "he'd done", "the dog's", "dogs' tails",
    "rock 'n' roll", "can't've", "[inaudible] yes", "<a[b>c]", "(a (b) c)", "()", "(", "a < b", "one,two",
    "twenty-one", "a%", "%%", "5%%", "$ five", "€5 and ¢07", "$0x55", "$0.123", "pummelled archaeology",
    "organisations' programme", "ﬁve ½ ²", "İ I",
]  # fmt: skip


def other_text(text, random):
    """Returns a text with words of it missing, added or changed."""
    words = [w for w in text.split() if random.random() < 0.8]
    words.insert(random.randrange(len(words) + 1), random.choice([*UNITS, *WORDS]))
    return " ".join(words)


if __name__ == "__main__":
    normalize = {name: lambda t, f=f: " ".join(f(t).split()) for name, f in normalizers()[0].items()}
    rng = random.Random(1)
    texts = CHOSEN + [random_text(rng) for _ in range(400)]
    cases = [{"text": t} | {name: f(t) for name, f in normalize.items()} for t in texts]
    spoken = [t for t in texts if all(f(t) for f in normalize.values())]
    pairs = [{"reference": t, "hypothesis": other_text(t, rng)} for t in spoken[-100:]]
    for name, f in normalize.items():
        for pair in pairs:
            out = jiwer.process_words(f(pair["reference"]), f(pair["hypothesis"]))
            pair[name] = [out.substitutions + out.deletions + out.insertions, len(out.references[0])]
    file = pathlib.Path(__file__).with_name("normalize.json")
    lists = [f'"{name}": [\n' + ",\n".join(map(json.dumps, each)) + "\n]"
             for name, each in {"texts": cases, "pairs": pairs}.items()]  # fmt: skip
    file.write_text("{" + ",\n".join(lists) + "}\n")
    print(f"{file}: {len(cases)} texts, {len(pairs)} pairs")
