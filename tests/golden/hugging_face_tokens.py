#!/usr/bin/env python3
"""Writes hugging_face_tokens.json: folders of tokenizers as transformers saves them, classes of frames, and the text that
batch_decode makes of them.

    pip install torch transformers && python3 tests/golden/hugging_face_tokens.py

Written with transformers 5.24.0. Runs of white space in the texts are one space, as laconic writes them.
"""

import json
import pathlib
import random
import tempfile

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer

letters = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"
standard = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *letters])}
blog = {c: i for i, c in enumerate("|abcdefghijklmnopqrstuvwxyz'")} | {"[UNK]": 28, "[PAD]": 29}
phonemes = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", "n", "s", "t", "\u0259", "i\u02d0", "a\u026a"])}
brackets = dict(unk_token="[UNK]", pad_token="[PAD]")


def fast_case(name, decoder, model):
    """tokenizer.json without vocab.json, as the tokenizers library saves it."""
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "tokenizer.json"
        tokenizer.save(str(path))
        files = {path.name: json.loads(path.read_text())}
    random.seed(name)
    frames = [f for f in (random.choice([random.randrange(len(standard)), 0]) for _ in range(80))
              for _ in range(random.choice([1, 1, 2]))]
    text = " ".join(PreTrainedTokenizerFast(tokenizer_object=tokenizer).batch_decode([frames])[0].split())
    return dict(name=name, files=files, pad_token_id=0, classes=len(standard), frames=frames, text=text)


def case(name, vocab, options={}, classes=None, kind=Wav2Vec2CTCTokenizer, legacy=False):
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "v.json").write_text(json.dumps(vocab))
        extra = dict(do_phonemize=False) if kind is Wav2Vec2PhonemeCTCTokenizer else {}
        tokenizer = kind(str(folder / "v.json"), **options, **extra)
        tokenizer.save_pretrained(folder / "out")
        files = {path.name: json.loads(path.read_text()) for path in (folder / "out").glob("*.json")}
    config = files["tokenizer_config.json"]
    if legacy:  # transformers before 4.34: names alone
        files["special_tokens_map.json"] = {k: config.pop(k) for k in ("pad_token", "unk_token", "bos_token", "eos_token")}
        del config["added_tokens_decoder"]
    config.pop("model_max_length", None)
    classes = classes or len(vocab)
    random.seed(name)
    frames = [random.choice([random.randrange(classes), tokenizer.pad_token_id]) for _ in range(80)]
    frames = [f for f in frames for _ in range(random.choice([1, 1, 2]))]
    text = " ".join(tokenizer.batch_decode([frames])[0].split())
    return dict(name=name, files=files, pad_token_id=tokenizer.pad_token_id, classes=classes, frames=frames, text=text)


cases = [
    case("standard", standard),
    case("blank last, special tokens added", blog, brackets),
    case("classes for added tokens", blog, brackets, classes=32),
    case("classes without tokens", blog, brackets, classes=40),
    case("blank by name", standard | {"<ctc>": 32}, dict(pad_token="<ctc>")),
    case("word delimiter", {("\u2581" if t == "|" else t): i for t, i in standard.items()},
         dict(word_delimiter_token="\u2581")),
    case("replaced word delimiter", standard, dict(replace_word_delimiter_char="_")),
    case("lower case", standard, dict(do_lower_case=True)),
    case("tokens of several characters", phonemes),
    case("more tokens than classes", standard | {"<extra>": 32}, classes=32),
    case("languages", {"deu": {"<pad>": 0, "a": 1, "\u00e4": 2, "|": 3}, "eng": {"<pad>": 0, "o": 1, "|": 2}},
         dict(target_lang="deu"), classes=4),
    case("names in a file of their own", blog, brackets, classes=32, legacy=True),
    case("phonemes", phonemes, kind=Wav2Vec2PhonemeCTCTokenizer),
    case("blank of laconic's name", {t: i for i, t in enumerate(["<s>", "</s>", "<unk>", "<blank>", "|", *letters])},
         dict(pad_token="<blank>")),
    fast_case("fast", decoders.CTC(), models.WordLevel(standard, "<unk>")),
    fast_case("fast without cleanup", decoders.CTC(cleanup=False), models.WordLevel(standard, "<unk>")),
    fast_case("fast, a sequence", decoders.Sequence([decoders.CTC(), decoders.Fuse()]), models.BPE(standard, [])),
]
path = pathlib.Path(__file__).with_name("hugging_face_tokens.json")
path.write_text("[\n" + ",\n".join(json.dumps(one, sort_keys=True) for one in cases) + "\n]\n")
print(path, len(cases), "cases")
