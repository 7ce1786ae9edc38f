"""Writes ctc_beams.arpa and ctc_beams.safetensors: a language model of 4-grams, KenLM's scores of sentences, and the
results of pyctcdecode's beam search, for tests/decode/ctc_beam_search_test.cpp.

    pip install pyctcdecode kenlm safetensors          # numpy is older than 2 for pyctcdecode
    python tests/golden/ctc_beams.py [--out tests/golden]

The model is of a public speech (Lincoln, 1863), by Witten and Bell's counts with back-off weights that make it sum to
1; then a third of the n-grams that continue nothing are left out, so that some n-grams lack what they end in, as in
models that SRILM has pruned. Metadata of the safetensors file:

    sentences   a line each: log10 of each word's probability and of </s>, a tab, and the words
    CASE        JSON: the arguments of pyctcdecode, and its results: [text, logit_score, lm_score, word_score]

lm_score is logit_score and what the model and hotwords give. pyctcdecode scores a text whose best alignment ends in a
space as if an unknown word followed; word_score is what the text itself gets by pyctcdecode's own functions.

Tensors are logits (frames, classes) of each CASE. They are those of a text, a few frames for each character, with
noise and with characters that sound alike.
"""

import argparse
import collections
import json
import logging
import math
import pathlib
import random

import kenlm
import numpy as np
from pyctcdecode import build_ctcdecoder
from pyctcdecode.language_model import HotwordScorer
from safetensors.numpy import save_file

ORDER = 4
SPEECH = """four score and seven years ago our fathers brought forth on this continent a new nation conceived in liberty
and dedicated to the proposition that all men are created equal
now we are engaged in a great civil war testing whether that nation or any nation so conceived and so dedicated can long
endure
we are met on a great battle field of that war
we have come to dedicate a portion of that field as a final resting place for those who here gave their lives that that
nation might live
it is altogether fitting and proper that we should do this
but in a larger sense we can not dedicate we can not consecrate we can not hallow this ground
the brave men living and dead who struggled here have consecrated it far above our poor power to add or detract
the world will little note nor long remember what we say here but it can never forget what they did here
it is for us the living rather to be dedicated here to the unfinished work which they who fought here have thus far so
nobly advanced
it is rather for us to be here dedicated to the great task remaining before us that from these honored dead we take
increased devotion to that cause for which they gave the last full measure of devotion that we here highly resolve that
these dead shall not have died in vain that this nation under god shall have a new birth of freedom and that government
of the people by the people for the people shall not perish from the earth"""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALIKE = ["bp", "dt", "gk", "vf", "mn", "sz", "ea", "ei", "ou", "rl", "ck"]


def sentences():
    """The sentences of the speech, each a list of words: a line that begins small goes on, so stops are kept here."""
    starts = ("four", "now", "we are met", "we have come", "it is", "but in", "the brave", "the world")
    out = []
    for line in SPEECH.splitlines():
        if line.startswith(starts):
            out.append([])
        out[-1] += line.split()
    return out


def write_arpa(path, rng):
    """Witten and Bell (1991): P(w | h) = c(h w) / (c(h) + T(h)), where T(h) words follow h."""
    counts = [collections.Counter() for _ in range(ORDER + 1)]
    for words in sentences():
        words = ["<s>", *words, "</s>"]
        for n in range(1, ORDER + 1):
            counts[n].update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    after = collections.defaultdict(dict)  # h: {w: count}
    for n in range(1, ORDER + 1):
        for gram, count in counts[n].items():
            if gram != ("<s>",):
                after[gram[:-1]][gram[-1]] = count
    kept = {n: set(counts[n]) for n in range(1, ORDER + 1)}
    for n in range(ORDER, 1, -1):
        contexts = {gram[:-1] for gram in kept[n + 1]} if n < ORDER else set()
        kept[n] = {gram for gram in sorted(kept[n]) if gram in contexts or rng.random() > 1 / 3}

    def seen(gram):
        followers = after[gram[:-1]]
        return followers[gram[-1]] / (sum(followers.values()) + len(followers))

    def prob(gram):
        if len(gram) == 1 or gram in kept[len(gram)]:
            return seen(gram)
        return weight(gram[:-1]) * prob(gram[1:])

    weights = {}

    def weight(h):
        if h not in weights:
            followers = [w for w in after[h] if h + (w,) in kept[len(h) + 1]] if len(h) < ORDER else []
            rest = 1 - sum(prob(h[1:] + (w,)) for w in followers)
            left = 1 - sum(seen(h + (w,)) for w in followers)
            weights[h] = left / rest if h in kept[len(h)] else 1.0
        return weights[h]

    unknown = len(after[()]) / (sum(after[()].values()) + len(after[()]))
    with open(path, "w") as f:
        print("\\data\\", file=f)
        for n in range(1, ORDER + 1):
            print(f"ngram {n}={len(kept[n]) + (n == 1)}", file=f)
        for n in range(1, ORDER + 1):
            print(f"\n\\{n}-grams:", file=f)
            if n == 1:
                print(f"{math.log10(unknown):.5f}\t<unk>\t0", file=f)
            for gram in sorted(kept[n]):
                log_prob = -99 if gram == ("<s>",) else math.log10(prob(gram))
                back_off = f"\t{math.log10(weight(gram)):.5f}" if n < ORDER else ""
                print(f"{log_prob:.5f}\t{' '.join(gram)}{back_off}", file=f)
        print("\n\\end\\", file=f)


def scored(model, rng):
    """Sentences of the speech, of words at random, and with words that the model does not know."""
    speech = sentences()
    known = sorted({word for words in speech for word in words})
    out = []
    for words in speech:
        out += [words, [w if rng.random() > 0.2 else rng.choice(known) for w in words]]
    for n in range(12):
        out.append([rng.choice(known) for _ in range(n)] + ["laconic", "Nation"][n % 3 : 2])
    lines = []
    for words in out:
        scores = [score for score, _, _ in model.full_scores(" ".join(words), bos=True, eos=True)]
        lines.append(" ".join(f"{s:.6g}" for s in scores) + "\t" + " ".join(words))
    return "\n".join(lines)


def logits_of(text, labels, rng, noise):
    """Two to four frames for each character, the first the surest, and blanks between some."""
    blank, rows = labels.index(""), []

    def frame(likely):
        row = rng.normal(0, 1, len(labels))
        for label, height in likely.items():
            row[labels.index(label)] += height
        rows.append(row)

    def like(c):
        return [next(iter(set(pair) - {c})) for pair in ALIKE if c in pair]

    for i, c in enumerate(text):
        if i and (text[i - 1] == c or rng.random() < 0.4):
            frame({"": 9})
        confused = {other: rng.uniform(0, noise) for other in like(c)}
        confused[""] = rng.uniform(0, noise)
        if rng.random() < 0.1:
            confused[" "] = rng.uniform(0, noise)
        for k in range(rng.integers(1, 4)):
            frame({c: 8 - k, **confused})
    return np.array(rows, dtype=np.float32), blank


def word_score(decoder, text, hotwords=(), hotword_weight=10.0, **_):
    """What pyctcdecode's model and hotwords give for the words of a text."""
    out, model, words = HotwordScorer.build_scorer(hotwords, hotword_weight).score(text), decoder._language_model, text.split()
    if model is not None:
        state = model.get_start_state()
        for i, word in enumerate(words):
            score, state = model.score(state, word, is_last_word=i + 1 == len(words))
            out += score
    return out


def main():
    here = pathlib.Path(__file__).parent
    parser = argparse.ArgumentParser(description="writes the golden scores of KenLM and results of pyctcdecode")
    parser.add_argument("--out", type=pathlib.Path, default=here)
    out = parser.parse_args().out
    logging.disable(logging.WARNING)
    arpa = out / "ctc_beams.arpa"
    write_arpa(arpa, random.Random(1))
    metadata = {"source": "tests/golden/ctc_beams.py, pyctcdecode 0.5.0, kenlm 0.3.0",
                "sentences": scored(kenlm.Model(str(arpa)), random.Random(2))}  # fmt: skip

    model = {"model": True}
    wide = {"beam_width": 2000, "beam_prune_logp": -40.0}
    cases = {
        "plain": ("we can not hallow", {}, wide),
        "plain_default": ("we can not hallow this ground", {}, {}),
        "model": ("we can not hallow this ground", model, wide),
        "model_default": ("the world will little note nor long remember what we say here", model, {}),
        "unknown": ("we say laconic", model, {**wide, "beam_width": 8000}),
        "hotword": ("a laconic people rather", model, {**wide, "hotwords": ["laconic", "people this"]}),
        "hotword_alone": ("a laconic fan", {}, {**wide, "hotwords": ["laconic", "lacking"], "hotword_weight": 5.0}),
        "hotword_default": ("we say laconic people dedicate this field", model, {"hotwords": ["laconic"]}),
        "weights": ("it is altogether", {**model, "alpha": 1.2, "beta": 0.5, "unk_score_offset": -4.0}, wide),
        "part": ("nor long remember what", {**model, "lm_score_boundary": False}, wide),
        "narrow_default": ("the brave men living and dead", model, {"beam_width": 8, "beam_prune_logp": -6.0}),
        "open": ("a new birth", model, {**wide, "token_min_logp": -7.0}),
        "blank_last": ("from the earth", model, wide),
    }
    tensors = {}
    for number, (case, (text, making, decoding)) in enumerate(cases.items()):
        labels = [*LETTERS, " ", ""] if case == "blank_last" else ["", " ", *LETTERS]
        logits, blank = logits_of(text, labels, np.random.default_rng(number + 10), noise=7)
        options = {k: v for k, v in making.items() if k != "model"}
        decoder = build_ctcdecoder(labels, str(arpa) if "model" in making else None, **options)
        beams = decoder.decode_beams(logits, **decoding)
        results = [[text, float(logit), float(lm), word_score(decoder, text, **decoding)]
                   for text, _, _, logit, lm in beams[:10]]  # fmt: skip
        tensors[case] = logits
        metadata[case] = json.dumps({"labels": labels, "blank": blank, **making, **decoding, "results": results})
        print(case, len(logits), [(r[0], round(r[2], 3)) for r in results[:2]])
    path = out / "ctc_beams.safetensors"
    save_file(tensors, path, metadata)
    path.chmod(0o644)  # the library leaves it unreadable to others
    print(arpa.stat().st_size, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
