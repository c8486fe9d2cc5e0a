"""Write the same recordings in each layout that the readers know."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile
from pyarrow import parquet

RATE = 16_000
TEXTS = ("One, two.", "Three four", "“Five” | six\tseven")


def noise(seed, num_samples=1600):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, num_samples).astype(np.float32)


def encode(wave, rate=RATE, kind="WAV"):
    content = io.BytesIO()
    soundfile.write(content, wave, rate, format=kind)
    return content.getvalue()


def write_audio(path: Path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(noise(seed), kind=path.suffix[1:].upper()))
    return path


def write_folder(folder, texts=TEXTS):
    for number, text in enumerate(texts):
        path = write_audio(folder / f"anna/{number}.wav", number)
        path.with_suffix(".lab" if number else ".txt").write_text(text + "\n", encoding="utf-8")
    return folder


def write_ljspeech(folder, texts=TEXTS):
    for number in range(len(texts)):
        write_audio(folder / f"wavs/LJ001-{number}.wav", number)
    rows = [f"LJ001-{number}|{text.replace('|', ' ')}|{text.replace('|', ' ')}" for number, text in enumerate(texts)]
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_common_voice(folder, texts=TEXTS):
    lines = ["client_id\tpath\tsentence\tup_votes"]
    for number, text in enumerate(texts):
        write_audio(folder / f"clips/common_{number}.mp3", number)
        lines.append("\t".join(["anna", f"common_{number}.mp3", text.replace("\t", " "), "2"]))
    (folder / "validated.tsv").write_text("\n".join(lines), encoding="utf-8")
    (folder / "other.tsv").write_text("client_id\tpath\tsentence\n", encoding="utf-8")
    return folder


def write_librispeech(folder, texts=TEXTS):
    for number in range(len(texts)):
        write_audio(folder / f"19/198/19-198-{number}.flac", number)
    lines = [f"19-198-{number} {text}" for number, text in enumerate(texts)]
    (folder / "19/198/19-198.trans.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_csv(folder, texts=TEXTS, suffix=".csv"):
    import csv

    for number in range(len(texts)):
        write_audio(folder / f"audio/{number}.ogg", number)
    with open(folder / f"list{suffix}", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["File_Name", "Transcription", "Speaker"])
        writer.writerows([f"{number}.ogg", text, "anna"] for number, text in enumerate(texts))
    return folder / f"list{suffix}"


def write_csv_without_header(folder, texts=TEXTS):
    path = write_csv(folder, texts)
    path.write_text("".join(path.read_text(encoding="utf-8-sig").splitlines(keepends=True)[1:]), encoding="utf-8")
    return folder


def write_jsonl(folder, texts=TEXTS):
    rows = []
    for number, text in enumerate(texts):
        path = write_audio(folder / f"audio/{number}.flac", number)
        rows.append({"audio_filepath": str(path), "text": text, "duration": 0.1, "speaker": "anna"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def write_webdataset(folder, texts=TEXTS, name="00000.tar"):
    with tarfile.open(folder / name, "w") as archive:
        for number, text in enumerate(texts):
            members = {
                "flac": encode(noise(number), kind="FLAC"),
                "json": json.dumps({"text": text, "speaker": "anna"}),
            }
            for suffix, content in members.items():
                content = content if isinstance(content, bytes) else content.encode()
                member = tarfile.TarInfo(f"part/{number}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder


def write_parquet(folder, texts=TEXTS):
    rows = [
        {"audio": {"bytes": encode(noise(number)), "path": f"{number}.wav"}, "sentence": text, "client_id": "anna"}
        for number, text in enumerate(texts)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "train-00000.parquet", row_group_size=2)
    return folder


LAYOUTS = {
    "folder": (write_folder, "folder"),
    "ljspeech": (write_ljspeech, "ljspeech"),
    "common_voice": (write_common_voice, "common_voice"),
    "librispeech": (write_librispeech, "librispeech"),
    "csv": (write_csv, "list"),
    "csv without a header": (write_csv_without_header, "list"),
    "jsonl": (write_jsonl, "list"),
    "webdataset": (write_webdataset, "webdataset"),
    "parquet": (write_parquet, "parquet"),
}
