#!/usr/bin/env python3
"""Damages good audio files and model folders at random, has the program transcribe each, and compares what comes of it
with libsndfile and ffmpeg (audio) and with transformers (folders of Hugging Face).

usage: mutations.py --laconic build/release/laconic --model TRAINED_MODEL --models DIR --output mutations.json

TRAINED_MODEL is a folder of `laconic train`; DIR holds folders of Hugging Face. Needs numpy, soundfile, safetensors,
torch, transformers and the program ffmpeg. The same seed gives the same files. --keep DIR keeps those that do not
agree.

Exit code 0 says that all was heard. So what matters most are the categories `less heard` (a reference decodes more
without complaint), `short` (sound is known to be gone, and nobody says so), `unnoticed` (every reference complains or
refuses) and `another text`; then `crash`, `hang` (20 s) and `memory` (2 GiB). `noted` is exit code 0 with a note of
what is odd. `doubted` is exit code 1 with as much heard as the references decode, and a note that more may be missing.
`refused` is an error, or less heard with a note, where a reference reads without complaint."""

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np
import soundfile

max_seconds, max_mib = 20, 2048


def run(command, work):
    """Returns exit code, signal, seconds, MiB, standard output and error of a program."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    with open(work / "stdout", "wb") as out, open(work / "stderr", "wb") as err:
        start = time.time()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, preexec_fn=limit)
        killed = False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            if time.time() - start > max_seconds and not killed:
                killed = True
                process.kill()
            time.sleep(0.005)
    process.returncode = 0  # wait4 has taken it
    code, number = (os.WEXITSTATUS(status), 0) if os.WIFEXITED(status) else (-1, os.WTERMSIG(status))
    read = lambda name: (work / name).read_bytes().decode("utf-8", "replace")
    return dict(
        exit=code,
        signal=number,
        hangs=killed,
        seconds=round(time.time() - start, 2),
        mib=usage.ru_maxrss >> 10,
        out=read("stdout"),
        err=read("stderr"),
    )


def fatal(done):
    """Returns the category of a run that is wrong whatever the references say, or None."""
    if done["hangs"]:
        return "hang"
    if done["signal"] or done["exit"] not in (0, 1):
        return "crash"
    return "memory" if done["mib"] > max_mib else None


def error_of(done):
    return next((line for line in done["err"].splitlines() if line.startswith("laconic: ")), "")


# --- audio ------------------------------------------------------------------------------------------------------------


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
            category = (
                "noted"
                if notes
                else (
                    "less heard"
                    if longest > heard + 0.1
                    else (
                        "unnoticed"
                        if not clean
                        else "short" if heard < true - 0.1 else "agree" if same else "another text"
                    )
                )
            )
        if category == "agree" or not self.args.keep:
            path.unlink()
        else:
            shutil.move(path, self.args.keep / path.name)
        return dict(
            number=i,
            kind=kind,
            of=name,
            category=category,
            exit=done["exit"],
            signal=done["signal"],
            took=done["seconds"],
            mib=done["mib"],
            heard=round(heard, 2),
            true=round(true, 2),
            error=error_of(done).replace(str(path), "FILE"),
            notes=notes,
            references={
                who: dict(seconds=round(seconds[who], 2), says=said) for who, (_, _, said) in references.items()
            },
        )


# --- models -----------------------------------------------------------------------------------------------------------


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
                config = transformers.AutoConfig.from_pretrained(folder)
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
        return dict(
            number=i,
            kind=kind,
            of=name,
            category=category,
            exit=done["exit"],
            signal=done["signal"],
            took=done["seconds"],
            mib=done["mib"],
            what=self.models.what,
            error=error_of(done).replace(str(self.work) + "/", ""),
            text=text[:60],
            expected=expected[:60],
            reference=problem,
        )


def table(title, rows):
    """Prints the number of files of each kind in each category."""
    order = [
        "agree",
        "noted",
        "doubted",
        "refused",
        "less heard",
        "short",
        "unnoticed",
        "another text",
        "crash",
        "hang",
        "memory",
    ]
    counts = collections.Counter((row["kind"], row["category"]) for row in rows)
    shown = [c for c in order if any(row["category"] == c for row in rows)]
    print(f"\n| {title} | " + " | ".join(shown) + " |\n|---|" + "---|" * len(shown))
    for kind in list(dict.fromkeys(row["kind"] for row in rows)):
        print(f"| {kind.replace('_', ' ')} | " + " | ".join(str(counts[kind, c] or "") for c in shown) + " |")
    print("| all | " + " | ".join(str(sum(row["category"] == c for row in rows)) for c in shown) + " |")
    print(
        f"longest {max(row['took'] for row in rows):.2f} s, most memory {max(row['mib'] for row in rows)} MiB",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent.parent
    place = lambda p: pathlib.Path(p).resolve()
    parser.add_argument("--laconic", default="build/release/laconic", type=lambda p: str(place(p)))
    parser.add_argument("--model", required=True, type=place)
    parser.add_argument("--models", required=True, type=place)
    parser.add_argument("--recording", type=place, default=next((here / "tests/data").rglob("*.flac")))
    parser.add_argument("--count", type=int, default=500, help="audio files, and as many model folders")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", required=True, type=place)
    parser.add_argument("--keep", type=place)
    args = parser.parse_args()
    if (args.model / "model" / "config.json").exists():
        args.model = args.model / "model"
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    results = dict(seed=args.seed, count=args.count)
    for name, study in (("audio", AudioStudy), ("models", ModelStudy)):
        with tempfile.TemporaryDirectory() as work:
            one = study(args, pathlib.Path(work))
            rows = results[name] = []
            for i in range(args.count):
                rows.append(one.one(i))
                if (i + 1) % 50 == 0:
                    print(f"{name}: {i + 1} of {args.count}", flush=True)
        table(name, rows)
        args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
