"""Model folders, damaged, and what transformers hears with them."""

import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil

import numpy as np
import soundfile

from .program import error_of, fatal, row, run


def transformers_text(folder, audio, pipe):
    """Sends what transformers writes, and what it lacks or why it does not load the folder."""
    resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
    try:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(1)
        x, rate = soundfile.read(audio, dtype="float32")
        pipe.send("ready")
        while True:
            folder = pathlib.Path(pipe.recv())
            try:
                transformers.AutoConfig.from_pretrained(folder)  # which it must read
                if (folder / "vocab.json").exists() or not (folder / "tokenizer.json").exists():
                    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
                else:
                    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
                if (folder / "preprocessor_config.json").exists() or (folder / "processor_config.json").exists():
                    features = transformers.AutoFeatureExtractor.from_pretrained(folder)
                else:
                    features = transformers.Wav2Vec2FeatureExtractor()
                model, loaded = transformers.Wav2Vec2ConformerForCTC.from_pretrained(folder, output_loading_info=True)
                missing = [k for k in loaded["missing_keys"] if "masked_spec_embed" not in k]
                bad = [*missing, *loaded["mismatched_keys"], *loaded.get("error_msgs", [])]
                with torch.no_grad():
                    logits = (
                        model.eval().float()(features(x, sampling_rate=rate, return_tensors="pt").input_values).logits
                    )
                text = " ".join(tokenizer.batch_decode(logits.argmax(-1))[0].split())
                problem = (
                    f"missing: {len(bad)}, {bad[0]}"[:120]
                    if bad
                    else "" if torch.isfinite(logits).all() else "logits are not finite"
                )
                pipe.send((text, problem))
            except BaseException as error:
                pipe.send(
                    (
                        "",
                        f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
                            :160
                        ],
                    )
                )
    except EOFError:
        return


class Reference:
    """Runs transformers in a process of its own, which damaged folders may kill or block."""

    def __init__(self, audio):
        self.audio, self.process = audio, None

    def text(self, folder):
        if self.process is None:
            self.pipe, other = multiprocessing.Pipe()
            self.process = multiprocessing.Process(
                target=transformers_text, args=(folder, self.audio, other), daemon=True
            )
            self.process.start()
            other.close()
            self.pipe.recv()  # the libraries are loaded
        self.pipe.send(str(folder))
        try:
            if self.pipe.poll(60):
                return self.pipe.recv()
            said = "takes more than 60 s"
        except EOFError:
            said = "dies"
        self.process.kill()
        self.process.join()
        self.process = None
        return "", said


class Models:
    """Damages copies of model folders."""

    odd_values = [
        None,
        True,
        "text",
        "",
        [],
        [1, 2],
        {},
        {"a": 1},
        0,
        1,
        -1,
        3,
        0.5,
        1 << 31,
        1 << 63,
        10**30,
        -(1 << 40),
        1e300,
    ]

    def json_file(self, r, folder):
        return r.choice(sorted(p for p in folder.glob("*.json") if "index" not in p.name))

    def edit(self, path, change, **how):
        value = json.loads(path.read_text())
        changed = change(value)
        path.write_text(json.dumps(value if changed is None else changed, ensure_ascii=False, **how))

    def key(self, r, folder, change):
        """Changes a member of one of the JSON files, or of an object in it."""
        path = self.json_file(r, folder)

        def within(value):
            while isinstance(value, dict) and value:
                key = r.choice(sorted(value))
                if isinstance(value[key], dict) and value[key] and r.random() < 0.7:
                    value = value[key]
                    continue
                self.what = f"{path.name}: {key}"
                change(value, key)
                return

        self.edit(path, within)

    def key_removed(self, r, folder):
        self.key(r, folder, lambda o, k: o.pop(k))

    def key_null(self, r, folder):
        self.key(r, folder, lambda o, k: o.__setitem__(k, None))

    def key_other(self, r, folder):
        value = r.choice(self.odd_values)
        self.key(r, folder, lambda o, k: o.__setitem__(k, value))
        self.what += f" = {value!r}"

    def number(self, r, folder):
        """Changes a number of config.json."""

        def change(config):
            config = config.get("encoder", config)
            key = r.choice(
                sorted(k for k, v in config.items() if isinstance(v, (int, float)) and not isinstance(v, bool))
            )
            config[key] = r.choice([0, -1, config[key] + 1, config[key] * 2, 1 << 20, 1 << 31, 1 << 62, 1e-9])
            self.what = f"{key} = {config[key]}"

        self.edit(folder / "config.json", change)

    def contradiction(self, r, folder):
        def put(name, **members):
            path = folder / name
            value = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(value | members))
            self.what = f"{name}: {members}"

        vocab = json.loads((folder / "vocab.json").read_text())
        token = r.choice(sorted(vocab))
        r.choice(
            [
                lambda: put("config.json", pad_token_id=r.randrange(len(vocab))),
                lambda: put("config.json", vocab_size=len(vocab) + r.choice([-1, 1, 8])),
                lambda: put("tokenizer_config.json", pad_token=token),
                lambda: put("special_tokens_map.json", pad_token=token),
                lambda: put("special_tokens_map.json", unk_token="[UNK]"),
                lambda: put("preprocessor_config.json", do_normalize=False, sampling_rate=16000),
                lambda: put("preprocessor_config.json", sampling_rate=8000),
                lambda: put("processor_config.json", feature_extractor={"sampling_rate": 16000, "do_normalize": False}),
                lambda: put("tokenizer_config.json", word_delimiter_token=token),
                lambda: put("tokenizer_config.json", do_lower_case=True),
                lambda: put("added_tokens.json", **{"<new>": r.choice([0, len(vocab), 5])}),
                lambda: put("tokenizer_config.json", replace_word_delimiter_char="_"),
                lambda: put("config.json", conv_dim=[32] * 6),
                lambda: put("config.json", conv_stride=[5, 2, 2]),
                lambda: put("config.json", tie_word_embeddings=True),
                lambda: put("tokenizer_config.json", tokenizer_class="Wav2Vec2PhonemeCTCTokenizer"),
                lambda: put("tokenizer_config.json", target_lang="eng"),
                lambda: put("config.json", architectures=["Wav2Vec2ForCTC"]),
                lambda: put("config.json", model_type="wav2vec2"),
            ]
        )()

    def vocab(self, r, folder):
        """Changes an index or a token of vocab.json."""

        def change(vocab):
            keys = sorted(vocab)
            a, b = r.sample(keys, 2)
            n = r.randrange(11)
            self.what = f"{n}: {a!r}, {b!r}"
            if n == 0:
                vocab[a] = vocab[b]
            elif n == 1:
                del vocab[a]
            elif n == 2:
                vocab[a] = len(vocab) + r.choice([0, 5, 1000, 1 << 23, 1 << 33])
            elif n == 3:
                vocab[a] = r.choice([-1, 1.5, str(vocab[a]), None, [vocab[a]]])
            elif n == 4:
                vocab[a], vocab[b] = vocab[b], vocab[a]
            elif n == 5:
                vocab[r.choice(["<blank>", "", " ", "\n", "\x1b[2J", "ab", "<other>", "[PAD]", "Ä", "|"])] = vocab.pop(
                    a
                )
            elif n == 6:
                return {"eng": vocab}
            elif n == 7:
                return keys
            elif n == 8:
                vocab["<extra>"] = len(vocab)
            elif n == 9:
                pad = next((p for p in ("<pad>", "[PAD]", "<ctc>") if p in vocab), keys[0])
                vocab["<blank>"] = vocab.pop(pad)
            else:
                return {k: v + 1 for k, v in vocab.items()}

        self.edit(folder / "vocab.json", change)

    def blank_name(self, r, folder):
        """The blank is a token named <blank>, at an index of its own."""
        config = json.loads((folder / "config.json").read_text())
        if "model_type" not in config:
            return self.vocab(r, folder)
        index = config.get("pad_token_id") or 0

        def rename(text):
            return "<blank>" if text == pad else text

        vocab = json.loads((folder / "vocab.json").read_text())
        pad = next((k for k, v in vocab.items() if v == index), None)
        other = r.choice(sorted(vocab))
        vocab = {rename(k): v for k, v in vocab.items()}
        if r.random() < 0.5 and other in vocab:
            vocab["<blank>"], vocab[other] = vocab[other], vocab["<blank>"]
        (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
        config["pad_token_id"] = vocab["<blank>"]
        (folder / "config.json").write_text(json.dumps(config))
        for path in (folder / "tokenizer_config.json", folder / "added_tokens.json"):
            if path.exists():
                text = path.read_text().replace(json.dumps(pad), '"<blank>"')
                path.write_text(
                    text.replace(f'"{index}": {{', f'"{vocab["<blank>"]}": {{') if vocab["<blank>"] != index else text
                )
        self.what = f"{pad!r} is <blank> at {vocab['<blank>']}"

    def weights(self, folder):
        from safetensors.numpy import load_file

        path = folder / "model.safetensors"
        if not path.exists():
            return None, None
        return path, load_file(path)

    def header(self, r, folder):
        """Changes the header of the weights."""
        path = folder / "model.safetensors"
        if not path.exists():
            path = folder / "pytorch_model.bin"
            data = bytearray(path.read_bytes())
            for _ in range(4):
                data[r.randrange(len(data))] = r.randrange(256)
            path.write_bytes(data)
            self.what = "4 bytes of pytorch_model.bin"
            return
        data = path.read_bytes()
        n = int.from_bytes(data[:8], "little")
        header, rest = json.loads(data[8 : 8 + n]), data[8 + n :]
        name = r.choice(sorted(k for k in header if k != "__metadata__"))
        entry = header[name]
        kind = r.randrange(13)
        length = None
        if kind == 0:
            length = r.choice([0, n - 1, n + 1, n + 8, 1 << 40, (1 << 64) - 1])
        elif kind == 1:
            entry["dtype"] = r.choice(["F16", "BF16", "I32", "U32", "F64", "I8", "C64", "f32", 7])
        elif kind == 2:
            entry["shape"] = entry["shape"][::-1]
        elif kind == 3:
            entry["shape"] = r.choice(
                [
                    [],
                    [0],
                    [1] + entry["shape"],
                    [-1] + entry["shape"],
                    [1 << 40, 1 << 40],
                    [int(np.prod(entry["shape"]))],
                ]
            )
        elif kind == 4:
            entry["data_offsets"] = r.choice(
                [[0, 4], [4, 0], [-4, 0], [entry["data_offsets"][0] - 4, entry["data_offsets"][1] - 4], [0, 1 << 50]]
            )
        elif kind == 5:
            rest = rest[: r.randrange(len(rest))]
        elif kind == 6:
            rest += r.randbytes(r.randint(1, 99))
        elif kind == 7:
            header[name + ".other"] = entry
        elif kind == 8:
            header["renamed." + name] = header.pop(name)
        elif kind == 9:
            del header[name]
        elif kind == 10:
            header["__metadata__"] = r.choice([{"format": "tf"}, {"a": 1}, [], "pt", {}])
        elif kind == 11:
            entry["other"] = 1
        text = json.dumps(header).encode()
        if kind == 12:
            text = text.replace(b'"dtype"', b'"dtype": "F32", "dtype"', 1)
        path.write_bytes((length if length is not None else len(text)).to_bytes(8, "little") + text + rest)
        self.what = f"{kind}: {name}"

    def tensors(self, r, folder):
        """Writes the weights again: another type, other names, less, more, or values that are none."""
        from safetensors.numpy import save_file

        path, tensors = self.weights(folder)
        if path is None:
            return self.header(r, folder)
        name = r.choice(sorted(tensors))
        kind = r.randrange(9)
        if kind == 0:
            del tensors[name]
        elif kind == 1:
            tensors = (
                {r.choice(["module.", "model.", "_orig_mod."]) + k: v for k, v in tensors.items()}
                if r.random() < 0.3
                else (lambda p: {p + k: v for k, v in tensors.items()})(
                    r.choice(["module.", "model.", "_orig_mod.", "student.model."])
                )
            )
        elif kind == 2:
            tensors = {k: v.astype(np.float16) for k, v in tensors.items()}
        elif kind == 3:
            tensors = {k: v.astype(np.float64) for k, v in tensors.items()}
        elif kind == 4:
            tensors[name] = np.full_like(tensors[name], r.choice([np.nan, np.inf, 3e38]))
        elif kind == 5:
            tensors[name] = tensors[name][..., :-1].copy() if tensors[name].ndim else tensors[name]
        elif kind == 6:
            tensors["extra.weight"] = np.zeros((2, 3), np.float32)
        elif kind == 7:
            tensors = {k.removeprefix("wav2vec2_conformer."): v for k, v in tensors.items()}
        else:
            tensors[name] = tensors[name].astype(np.int32)
        save_file(tensors, path, metadata={"format": "pt"})
        self.what = f"{kind}: {name}"

    def layout(self, r, folder):
        """The weights in other files."""
        import torch
        from safetensors.numpy import save_file

        path, tensors = self.weights(folder)
        if path is None:
            return self.header(r, folder)
        kind = r.randrange(6)
        names = sorted(tensors)
        if kind < 2:
            torch.save(
                {k: torch.tensor(v) for k, v in tensors.items()},
                folder / "pytorch_model.bin",
                _use_new_zipfile_serialization=kind == 0,
            )
            path.unlink()
        elif kind < 5:
            half = len(names) // 2
            for n, part in enumerate((names[:half], names[half:])):
                save_file({k: tensors[k] for k in part}, folder / f"model-{n}.safetensors", metadata={"format": "pt"})
            index = {k: f"model-{int(n >= half)}.safetensors" for n, k in enumerate(names)}
            if kind == 3:
                (folder / "model-1.safetensors").unlink()
            if kind == 4:
                index[names[0]] = "model-1.safetensors"
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
            path.unlink()
        else:
            (folder / "pytorch_model.bin").write_bytes(b"nothing")
        self.what = [
            "pytorch_model.bin",
            "pytorch_model.bin of old",
            "shards",
            "a shard is missing",
            "wrong index",
            "both",
        ][kind]

    def file(self, r, folder):
        """Something else in the place of a file."""
        path = r.choice(sorted(p for p in folder.iterdir()))
        data = path.read_bytes()
        kind = r.randrange(8)
        path.unlink()
        if kind == 1:
            path.mkdir()
        elif kind == 2:
            os.mkfifo(path)
        elif kind == 3:
            path.write_text(
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{hashlib.sha256(data).hexdigest()}\nsize {len(data)}\n"
            )
        elif kind == 4:
            (folder / "blobs").mkdir()
            (folder / "blobs" / "x").write_bytes(data)
            path.symlink_to("blobs/x")
        elif kind == 5:
            path.symlink_to("nowhere")
        elif kind == 6:
            path.write_bytes(b"")
        elif kind == 7:
            path.symlink_to(path.name)
        self.what = (
            f"{path.name}: "
            + [
                "gone",
                "a folder",
                "a pipe",
                "a pointer of Git LFS",
                "a link",
                "a dangling link",
                "empty",
                "a link to itself",
            ][kind]
        )

    def spelling(self, r, folder):
        """The bytes of a JSON file."""
        path = self.json_file(r, folder)
        text = path.read_text()
        kind = r.randrange(12)
        first = next(iter(json.loads(text)), "a")
        data = [
            lambda: b"\xef\xbb\xbf" + text.encode(),
            lambda: text.replace("\n", "\r\n").encode(),
            lambda: text.replace("e", "\xe4", 1).encode("latin-1", "replace"),
            lambda: text.encode("utf-16"),
            lambda: (text.rstrip()[:-1] + ",}").encode(),
            lambda: b"// comment\n" + text.encode(),
            lambda: text[: r.randrange(1, len(text))].encode(),
            lambda: text.encode() + b"}",
            lambda: text.encode() + b"\n\n  \n",
            lambda: text.replace("{", "{" + json.dumps(first) + ": 1, ", 1).encode(),
            lambda: text.replace(": 0", ": NaN", 1).encode(),
            lambda: text.encode() + b"\0",
        ][kind]()
        path.write_bytes(data)
        self.what = (
            f"{path.name}: "
            + [
                "BOM",
                "CRLF",
                "no UTF-8",
                "UTF-16",
                "comma",
                "comment",
                "cut",
                "more",
                "white space",
                "a key twice",
                "NaN",
                "zero",
            ][kind]
        )

    def fast(self, r, folder):
        """tokenizer.json instead of vocab.json, with a decoder."""
        from tokenizers import Tokenizer, decoders, models

        vocab = json.loads((folder / "vocab.json").read_text())
        config_path = folder / "tokenizer_config.json"
        config = json.loads(config_path.read_text()) if config_path.exists() else {}
        pad = config.get("pad_token", "<pad>")
        pad = pad.get("content") if isinstance(pad, dict) else pad
        vocab.setdefault(pad, len(vocab))
        delimiter = config.get("word_delimiter_token") or "|"
        ctc = lambda cleanup=True: decoders.CTC(pad_token=pad, word_delimiter_token=delimiter, cleanup=cleanup)
        kind = r.randrange(9)
        decoder = [
            lambda: ctc(),
            lambda: ctc(False),
            lambda: decoders.Sequence([ctc()]),
            lambda: decoders.Sequence([ctc(), decoders.Fuse()]),
            lambda: decoders.Sequence([ctc(), decoders.Replace("E", "X")]),
            lambda: decoders.WordPiece(),
            lambda: decoders.Metaspace(),
            lambda: decoders.ByteLevel(),
            lambda: None,
        ][kind]()
        model = (
            models.WordLevel(vocab, config.get("unk_token") or "<unk>") if r.random() < 0.5 else models.BPE(vocab, [])
        )
        tokenizer = Tokenizer(model)
        if decoder is not None:
            tokenizer.decoder = decoder
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "vocab.json").unlink()
        config.pop("tokenizer_class", None)
        config_path.write_text(json.dumps(config))
        self.what = [
            "CTC",
            "CTC without cleanup",
            "Sequence of CTC",
            "CTC, Fuse",
            "CTC, Replace",
            "WordPiece",
            "Metaspace",
            "ByteLevel",
            "none",
        ][kind]

    def damage(self, r, i, folder):
        kinds = [
            "key_removed",
            "key_null",
            "key_other",
            "number",
            "contradiction",
            "vocab",
            "blank_name",
            "header",
            "tensors",
            "layout",
            "file",
            "file",
            "spelling",
            "fast",
        ]
        kind = kinds[i % len(kinds)]
        self.what = ""
        getattr(self, kind)(r, folder)
        return kind


class ModelStudy:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.audio = work / "speech.wav"
        x, rate = soundfile.read(args.recording, dtype="float32")
        soundfile.write(self.audio, x[: 2 * rate], rate, subtype="PCM_16")
        self.models, self.reference, self.plain = Models(), Reference(self.audio), {}
        self.good = {p.name: p for p in sorted(args.models.iterdir()) if (p / "config.json").exists()}
        for name in list(self.good):
            if self.transcribe(self.good[name])[0]["exit"] or self.reference.text(self.good[name])[1]:
                del self.good[name]
        self.good["laconic"] = args.model
        print(f"folders that both read: {' '.join(self.good)}", flush=True)

    def transcribe(self, folder):
        done = run(
            [self.args.laconic, "transcribe", "--model", str(folder), "--threads", "1", str(self.audio)], self.work
        )
        return done, done["out"].split(": ", 1)[-1].strip()

    def one(self, i):
        r = random.Random(f"{self.args.seed} model {i}")
        name = r.choice([*self.good, "laconic"])
        folder = self.work / f"model-{i:03}"
        shutil.copytree(self.good[name], folder)
        kind = self.models.damage(r, i, folder)
        done, text = self.transcribe(folder)
        if name == "laconic":
            if name not in self.plain:
                self.plain[name] = self.transcribe(self.good[name])[1]
            expected, problem = self.plain[name], ""
        else:
            expected, problem = self.reference.text(folder)
        category = fatal(done)
        if not category and done["exit"] == 1:
            category = "agree" if problem else "refused"
        elif not category:
            category = "unnoticed" if problem else "agree" if text == expected else "another text"
        if category == "agree" or not self.args.keep:
            shutil.rmtree(folder)
        else:
            shutil.rmtree(self.args.keep / folder.name, ignore_errors=True)
            os.rename(folder, self.args.keep / folder.name)
        return row(
            i,
            kind,
            name,
            category,
            done,
            what=self.models.what,
            error=error_of(done).replace(str(self.work) + "/", ""),
            text=text[:60],
            expected=expected[:60],
            reference=problem,
        )
