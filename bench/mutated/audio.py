"""Audio files, damaged, and what libsndfile and ffmpeg hear of them."""

import hashlib
import json
import random
import shutil
import struct
import subprocess

import numpy as np
import soundfile

from .program import error_of, fatal, row, run


def chunk(name, data, size=None, pad=True):
    return (
        name
        + struct.pack("<I", (len(data) if size is None else size) & 0xFFFFFFFF)
        + data
        + b"\0" * (len(data) % 2 * pad)
    )


def riff(*chunks, size=None):
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def fmt(rate=16000, channels=1, bits=16, tag=1, extra=b""):
    frame = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits) + extra


def extensible(rate, channels, bits, tag):
    guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
    return fmt(rate, channels, bits, 0xFFFE, struct.pack("<HHI", 22, bits, (1 << channels) - 1) + guid)


def ogg_checksum(page):
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


def with_checksum(page):
    page = page[:22] + b"\0\0\0\0" + page[26:]
    return page[:22] + struct.pack("<I", ogg_checksum(page)) + page[26:]


def mp3_frame_size(data, at):
    """Returns the size of a frame of layer III at this place, or 0."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 not in (0xE2,) or head[1] & 0x18 == 0x08:
        return 0
    first = head[1] & 0x18 == 0x18
    kbps = (
        [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0]
        if first
        else [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0]
    )[head[2] >> 4]
    if not kbps or head[2] >> 2 & 3 == 3:
        return 0
    rate = [44100, 48000, 32000][head[2] >> 2 & 3] >> {0x18: 0, 0x10: 1, 0: 2}[head[1] & 0x18]
    return (144 if first else 72) * 1000 * kbps // rate + (head[2] >> 1 & 1)


def units(name, data):
    """Returns a file as its head and the chunks, pages, frames or blocks that follow."""
    kind = name.split("-")[0]
    out, at = [], 0
    if kind in ("wav", "rf64", "aiff"):
        head, order = data[:12], ">" if kind == "aiff" else "<"
        at = 12
        while at + 8 <= len(data):
            size = struct.unpack(order + "I", data[at + 4 : at + 8])[0]
            out.append(data[at : at + 8 + size + size % 2])
            at += 8 + size + size % 2
        return head, out
    if kind in ("vorbis", "opus"):
        while at < len(data):
            n = data[at + 26]
            size = 27 + n + sum(data[at + 27 : at + 27 + n])
            out.append(data[at : at + size])
            at += size
        return b"", out
    if kind == "mp3":
        while at < len(data) and not mp3_frame_size(data, at):
            at += 1
        head = data[:at]
        while size := mp3_frame_size(data, at):
            out.append(data[at : at + size])
            at += size
        return head, out + ([data[at:]] if at < len(data) else [])
    if kind == "flac":
        at = 4
        while True:  # blocks of metadata
            last, size = data[at] & 0x80, int.from_bytes(data[at + 1 : at + 4], "big")
            at += 4 + size
            if last:
                break
        starts = [at]
        while (at := data.find(data[at : at + 2], at + 1)) > 0:
            if data[at + 4] == len(starts) and len(starts) < 128:  # the frames are counted
                starts.append(at)
        return data[: starts[0]], [data[a:b] for a, b in zip(starts, starts[1:] + [len(data)])]
    return data[:64], [data[a : a + 4000] for a in range(64, len(data), 4000)]


class Sounds:
    """Makes good files of a recording, and damages them."""

    def __init__(self, recording, work):
        x, self.rate = soundfile.read(recording, dtype="float32")
        self.x = x[: 3 * self.rate]
        self.seconds = len(self.x) / self.rate
        self.pcm = np.clip(np.round(self.x * 32767), -32768, 32767).astype("<i2").tobytes()
        self.work = work
        self.good = {
            "wav-16": self.write("WAV", "PCM_16"),
            "wav-24": self.write("WAV", "PCM_24"),
            "wav-float": self.write("WAV", "FLOAT"),
            "rf64": self.write("RF64", "PCM_16"),
            "aiff": self.write("AIFF", "PCM_16"),
            "au": self.write("AU", "PCM_16"),
            "w64": self.write("W64", "PCM_16"),
            "caf": self.write("CAF", "PCM_16"),
            "flac": self.write("FLAC", "PCM_16"),
            "vorbis": self.write("OGG", "VORBIS"),
            "opus": self.write("OGG", "OPUS"),
            "mp3": self.write("MP3", "MPEG_LAYER_III"),
            "mp3-lame": self.encode("mp3", "-b:a", "32k"),
            "mp3-bare": self.encode("mp3", "-b:a", "24k", "-write_xing", "0", "-id3v2_version", "0"),
            "flac-ffmpeg": self.encode("flac"),
            "opus-ffmpeg": self.encode("opus"),
        }

    def write(self, container, subtype, rate=None, channels=1):
        path = self.work / "made"
        x = self.x if channels == 1 else np.stack([self.x] * channels, 1)
        soundfile.write(path, x, rate or self.rate, format=container, subtype=subtype)
        return path.read_bytes()

    def encode(self, container, *options):
        (self.work / "made.wav").write_bytes(
            self.good["wav-16"]
            if hasattr(self, "good")
            else riff(chunk(b"fmt ", fmt(self.rate)), chunk(b"data", self.pcm))
        )
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-y",
            "-i",
            self.work / "made.wav",
            *options,
            "-f",
            container,
            self.work / "made",
        ]
        subprocess.run(list(map(str, command)), check=True)
        return (self.work / "made").read_bytes()

    def wav(self, *before, header=None, data=None, after=(), **how):
        return riff(
            *before,
            chunk(b"fmt ", header or fmt(self.rate)),
            chunk(b"data", self.pcm if data is None else data),
            *after,
            **how,
        )

    # Each returns bytes and the seconds of sound that were in the file before something was taken away.

    def cut(self, r, name, data):
        return data[: r.choice([r.randrange(1, len(data)), len(data) - r.randrange(1, 200), r.randrange(1, 200)])], 1

    def cut_at_unit(self, r, name, data):
        head, parts = units(name, data)
        return head + b"".join(parts[: r.randrange(0, len(parts))]), 1

    def flip_header(self, r, name, data):
        out = bytearray(data)
        for _ in range(r.randint(1, 3)):
            out[r.randrange(min(100, len(out)))] = r.randrange(256)
        return bytes(out), 1

    def flip_body(self, r, name, data):
        out = bytearray(data)
        for _ in range(r.choice([1, 8, 64])):
            out[r.randrange(100, len(out))] ^= 1 << r.randrange(8)
        return bytes(out), 1

    def zeros(self, r, name, data):
        at, count = r.randrange(len(data)), r.choice([100, 4096])
        return data[:at] + bytes(len(data[at : at + count])) + data[at + count :], 1

    def removed(self, r, name, data):
        head, parts = units(name, data)
        at = r.randrange(len(parts))
        return head + b"".join(parts[:at] + parts[at + r.randint(1, 3) :]), 1

    def doubled(self, r, name, data):
        head, parts = units(name, data)
        at = r.randrange(len(parts))
        return head + b"".join(parts[: at + 1] + parts[at:]), 1

    def swapped(self, r, name, data):
        head, parts = units(name, data)
        a, b = r.randrange(len(parts)), r.randrange(len(parts))
        parts[a], parts[b] = parts[b], parts[a]
        return head + b"".join(parts), 1

    def garbage(self, r, name, data):
        junk = r.choice(
            [r.randbytes(r.randint(1, 9000)), bytes(r.randint(1, 9000)), b"<html>Not found</html>\n" * r.randint(1, 99)]
        )
        at = r.choice([0, len(data), len(data), r.randrange(len(data))])
        return data[:at] + junk + data[at:], 1

    def length(self, r, name, data):
        """Writes another number where a size stands."""
        out, kind = bytearray(data), name.split("-")[0]
        if kind in ("vorbis", "opus"):
            _, pages = units(name, data)
            at = r.randrange(2, len(pages))
            pages[at] = with_checksum(
                pages[at][:6] + struct.pack("<q", r.choice([0, -1, 1, 1 << 40, 12345])) + pages[at][14:]
            )
            return b"".join(pages), 1
        ends = ">" if kind in ("aiff", "au", "flac", "mp3", "caf") else "<"
        places = {
            "wav": [4, data.find(b"data") + 4, 16],
            "rf64": [20, 28, 36, data.find(b"data") + 4],
            "aiff": [4, data.find(b"SSND") + 4, data.find(b"COMM") + 10, data.find(b"COMM") + 4],
            "au": [4, 8],
            "w64": [16, data.find(b"data", 40) + 16],
            "caf": [data.find(b"data") + 8, 16],
            "flac": [22, 4],
            "mp3": [max(data.find(b"Xing"), data.find(b"Info")) + 8, 6],
        }[kind]
        at = r.choice(places)
        was = struct.unpack(ends + "I", data[at : at + 4])[0]
        new = r.choice(
            [
                0,
                1,
                was | 1,
                was + 2,
                was - 2,
                was // 2,
                was * 2,
                was + 1000,
                0x7FFFFFFF,
                0x80000000,
                0xFFFFFFFF,
                0xFFFFFFFE,
            ]
        )
        out[at : at + 4] = struct.pack(ends + "I", new & 0xFFFFFFFF)
        return bytes(out), 1

    def chained(self, r, name, data):
        other = r.choice([name, name, r.choice(list(self.good))])
        return data + self.good[other], 2 if other == name else 1

    def tagged(self, r, name, data):
        size = r.choice([100, 3000, 300000])
        body = r.choice([bytes(size), r.randbytes(size), b"\xff\xfb\x90\x00" * (size // 4)])
        coded = bytes(len(body) >> s & 127 for s in (21, 14, 7, 0))
        id3 = b"ID3\4\0\0" + coded + body
        ape = b"APETAGEX" + struct.pack("<IIII", 2000, len(body) + 32, 1, 0x80000000) + bytes(8)
        ape_after = body + b"APETAGEX" + struct.pack("<IIII", 2000, len(body) + 32, 1, 0) + bytes(8)
        id3_after = b"TAG" + b"title".ljust(125, b"\0")
        return (
            r.choice(
                [
                    id3 + data,
                    id3 + id3 + data,
                    data + ape + ape_after,
                    data + ape_after,
                    data + id3_after,
                    data + ape_after + id3_after,
                    id3 + data + id3_after,
                    ape + body + data,
                ]
            ),
            1,
        )

    def odd_wav(self, r, name, data):
        """A WAV file that is valid, or that programs read."""
        head, pcm = chunk(b"fmt ", fmt(self.rate)), self.pcm
        odd = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 5) + b"Laval", pad=True)
        unpadded = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 5) + b"Laval", pad=False)
        return (
            r.choice(
                [
                    lambda: self.wav(chunk(b"JUNK", bytes(28))),
                    lambda: self.wav(chunk(b"JUNK", bytes(r.randint(1, 5000)))),
                    lambda: self.wav(chunk(b"bext", bytes(602 + r.randint(0, 9)))),
                    lambda: self.wav(odd),
                    lambda: self.wav(unpadded),
                    lambda: riff(head, chunk(b"fact", struct.pack("<I", 17)), chunk(b"data", pcm)),
                    lambda: self.wav(after=[odd]),
                    lambda: self.wav(after=[unpadded]),
                    lambda: self.wav(after=[chunk(b"id3 ", bytes(99))]),
                    lambda: self.wav(data=pcm[:-1]),
                    lambda: self.wav(data=pcm[:-1], after=[odd]),
                    lambda: riff(chunk(b"data", pcm), head),
                    lambda: riff(odd, chunk(b"data", pcm), head, odd),
                    lambda: self.wav(header=extensible(self.rate, 1, 16, 1)),
                    lambda: riff(head, head, chunk(b"data", pcm)),
                    lambda: self.wav(header=fmt(self.rate, extra=b"\0\0")),
                    lambda: self.wav(size=0),
                    lambda: self.wav(size=0xFFFFFFFF),
                    lambda: riff(head, chunk(b"data", pcm[:1000]), chunk(b"LIST", b"INFO"), chunk(b"data", pcm[1000:])),
                    lambda: riff(head, chunk(b"data", pcm, size=0xFFFFFFFF)),
                    lambda: riff(head, chunk(b"PAD ", bytes(3)), chunk(b"data", pcm)),
                    lambda: b"RIFX"
                    + struct.pack(">I", 36 + len(pcm))
                    + b"WAVEfmt "
                    + struct.pack(">IHHIIHH", 16, 1, 1, self.rate, 2 * self.rate, 2, 16)
                    + b"data"
                    + struct.pack(">I", len(pcm))
                    + np.frombuffer(pcm, "<i2").astype(">i2").tobytes(),
                ]
            )(),
            1,
        )

    def other_codec(self, r, name, data):
        subtype = r.choice(["PCM_U8", "ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "PCM_32", "DOUBLE"])
        if r.random() < 0.3:
            return (
                self.encode(
                    "wav",
                    "-c:a",
                    r.choice(["adpcm_ima_wav", "adpcm_ms", "pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_f64le"]),
                ),
                1,
            )
        if r.random() < 0.3:
            container = r.choice(["AIFF", "AU", "CAF", "W64"])
            subtype = r.choice(["PCM_24", "PCM_32", "FLOAT", "ULAW", "ALAW", "DOUBLE"])
            return self.write(container, subtype), 1
        return (
            self.write(
                r.choice(["WAV", "WAVEX"]) if subtype not in ("IMA_ADPCM", "MS_ADPCM", "GSM610") else "WAV", subtype
            ),
            1,
        )

    def other_shape(self, r, name, data):
        channels, rate = r.choice([1, 2, 3, 6, 8]), r.choice([8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
        container, subtype = r.choice(
            [
                ("WAV", "PCM_16"),
                ("WAVEX", "PCM_24"),
                ("FLAC", "PCM_16"),
                ("FLAC", "PCM_24"),
                ("AIFF", "PCM_16"),
                ("OGG", "VORBIS"),
                ("OGG", "OPUS"),
                ("MP3", "MPEG_LAYER_III"),
                ("CAF", "PCM_16"),
            ]
        )
        if subtype == "OPUS":
            rate = r.choice([8000, 12000, 16000, 24000, 48000])
        if subtype == "MPEG_LAYER_III":
            channels, rate = min(channels, 2), r.choice([8000, 11025, 16000, 22050, 44100, 48000])
        try:
            return self.write(container, subtype, rate, channels), self.rate / rate
        except soundfile.LibsndfileError:
            return self.wav(), 1

    def empty(self, r, name, data):
        return (
            r.choice(
                [
                    lambda: b"",
                    lambda: self.wav(data=b""),
                    lambda: data[:44],
                    lambda: b"\0" * r.randint(1, 5000),
                    lambda: riff(chunk(b"fmt ", fmt(self.rate))),
                    lambda: self.wav(data=b"\0"),
                    lambda: data[: r.randint(1, 12)],
                    lambda: b"FORM"
                    + struct.pack(">I", 46)
                    + b"AIFFCOMM"
                    + struct.pack(">IhIh", 18, 1, r.choice([0, 48000]), 16)
                    + bytes.fromhex("400cfa00000000000000")
                    + b"ANNO"
                    + struct.pack(">I", 200)
                    + b"note" * 50
                    + r.choice([b"", b"SSND" + struct.pack(">III", r.choice([0, 8]), 0, 0)]),
                ]
            )(),
            0,
        )

    def damage(self, r, i):
        """Returns the kind, the name of the file it was made of, bytes and seconds."""
        kinds = [
            "cut",
            "cut_at_unit",
            "flip_header",
            "flip_body",
            "zeros",
            "removed",
            "doubled",
            "swapped",
            "garbage",
            "length",
            "chained",
            "tagged",
            "odd_wav",
            "other_codec",
            "other_shape",
            "empty",
        ]
        kind, name = kinds[i % len(kinds)], r.choice(list(self.good))
        data, times = getattr(self, kind)(r, name, self.good[name])
        return kind, "wav" if kind in ("odd_wav", "other_codec", "other_shape") else name, data, times * self.seconds


def decoded(path, work):
    """Returns what libsndfile and ffmpeg decode: for each the mono samples, the rate and the complaint, or None."""
    out = {}
    try:
        x, rate = soundfile.read(path, dtype="float32", always_2d=True)
        out["libsndfile"] = (x.mean(1), rate, "" if len(x) else "no samples")
    except Exception as error:  # of libsndfile, or of a size that cannot be
        out["libsndfile"] = (np.zeros(0, "float32"), 1, str(error).splitlines()[0][:120])
    target = work / "decoded.wav"
    target.unlink(missing_ok=True)
    command = [
        "ffmpeg",
        "-nostdin",
        "-v",
        "warning",
        "-y",
        "-i",
        str(path),
        "-map",
        "0:a:0",
        "-c:a",
        "pcm_f32le",
        str(target),
    ]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)
        ignored = (
            "Estimating duration",
            "Guessed Channel Layout",
            "Discarding ID3",
            "invalid as first byte of an EBML",
            "low score of",
            "multichannel",
            "Application provided",
            "Last message repeated",
            "Invalid Broadcast",
            "no TTY",
        )
        lines = [
            l
            for l in done.stderr.decode("utf-8", "replace").splitlines()
            if l.strip() and not any(i in l for i in ignored)
        ]
        said = lines[0].split("] ", 1)[-1][:120] if lines else ""
        x, rate = (
            soundfile.read(target, dtype="float32", always_2d=True)
            if target.exists()
            else (np.zeros((0, 1), "float32"), 1)
        )
        out["ffmpeg"] = (x.mean(1), rate, said or ("" if len(x) else "no samples"))
    except Exception as error:
        out["ffmpeg"] = (np.zeros(0, "float32"), 1, str(error)[:120])
    return out


class AudioStudy:
    def __init__(self, args, work):
        self.args, self.work = args, work
        self.sounds = Sounds(args.recording, work)
        self.texts = {}

    def transcribe(self, path):
        result = self.work / "heard.json"
        result.unlink(missing_ok=True)
        done = run(
            [
                self.args.laconic,
                "transcribe",
                "--model",
                str(self.args.model),
                "--threads",
                "1",
                "--json",
                str(result),
                str(path),
            ],
            self.work,
        )
        heard = json.loads(result.read_text())[0] if result.exists() else {}
        notes = [one.split(": ", 1)[-1] for one in heard.get("notes", [])]
        notes = [
            p for n in notes for p in n.split("; ") if not any(w in p for w in ("resampled", "converted", "averaged"))
        ]
        return done, heard.get("seconds", 0.0), heard.get("text", ""), notes

    def text_of(self, x, rate):
        """Returns what the program hears of samples that a reference has decoded."""
        key = hashlib.sha1(x.tobytes() + str(rate).encode()).hexdigest()
        if key not in self.texts:
            soundfile.write(self.work / "plain.wav", x, rate, subtype="FLOAT")
            self.texts[key] = self.transcribe(self.work / "plain.wav")[2]
        return self.texts[key]

    def one(self, i):
        kind, name, data, true = self.sounds.damage(random.Random(f"{self.args.seed} audio {i}"), i)
        path = self.work / f"{i:03}-{kind}-{name}"
        path.write_bytes(data)
        done, heard, text, notes = self.transcribe(path)
        references = decoded(path, self.work)
        seconds = {who: len(x) / rate for who, (x, rate, _) in references.items()}
        clean = [who for who, (x, rate, said) in references.items() if not said]
        longest = max((seconds[who] for who in clean), default=0.0)
        category = fatal(done)
        if not category and done["exit"] == 1:
            category = (
                "agree" if not clean else "doubted" if 0 < longest <= heard + 0.1 else "refused" if longest else "agree"
            )
        elif not category:
            # Decoders begin up to 0.04 s apart in MP3.
            same = any(
                text in (self.text_of(x, rate), self.text_of(x[max(0, len(x) - round(heard * rate)) :], rate))
                for who, (x, rate, _) in references.items()
                if abs(seconds[who] - heard) < 0.1
            )
            if longest > heard + 0.1:
                category = "less heard"  # also with a note: exit code 0 says that all is there
            elif notes:
                category = "noted"
            elif not clean:
                category = "unnoticed"
            elif heard < true - 0.1:
                category = "short"
            else:
                category = "agree" if same else "another text"
        if category == "agree" or not self.args.keep:
            path.unlink()
        else:
            shutil.move(path, self.args.keep / path.name)
        return row(
            i,
            kind,
            name,
            category,
            done,
            heard=round(heard, 2),
            true=round(true, 2),
            error=error_of(done).replace(str(path), "FILE"),
            notes=notes,
            references={
                who: dict(seconds=round(seconds[who], 2), says=said) for who, (_, _, said) in references.items()
            },
        )
