#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2): SoundFile.read() of compressed WAV files, and files named .raw.
#
# Expected: SoundFile(path).read() reads whatever soundfile.read(path) reads, and a file that cannot be read raises
# LibsndfileError.
# Seen: for a WAV file with GSM 6.10 coding, common in telephony, soundfile.read(path) works, while SoundFile(path).read()
# raises ValueError, because the file cannot seek; SoundFile(path).read(frames=SoundFile.frames) works. Any path that
# ends in .raw raises TypeError before the file is opened, whatever it contains. A program that catches LibsndfileError
# alone stops at either file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" soundfile==0.14.0 numpy 2> "$folder/pip.log" \
    || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - "$folder" <<'PYTHON'
import shutil
import sys
from pathlib import Path

import numpy as np
import soundfile

folder = Path(sys.argv[1])
wave = (0.3 * np.sin(np.arange(16_000) / 10)).astype(np.float32)
gsm, raw = folder / "gsm.wav", folder / "plain.raw"
soundfile.write(gsm, wave, 8000, subtype="GSM610")
soundfile.write(folder / "plain.wav", wave, 8000)
shutil.copy(folder / "plain.wav", raw)


def outcome(read) -> str:
    try:
        return f"{len(read())} samples"
    except Exception as error:
        return type(error).__name__


with soundfile.SoundFile(gsm) as file:
    seen = {
        "soundfile.read(gsm)": outcome(lambda: soundfile.read(gsm)[0]),
        "SoundFile(gsm).read()": outcome(file.read),
        "SoundFile(gsm).read(frames)": outcome(lambda: file.read(file.frames)),
        "soundfile.read(raw)": outcome(lambda: soundfile.read(raw)[0]),
    }
for call, result in seen.items():
    print(call, "->", result)
if list(seen.values()) != ["16000 samples", "ValueError", "16000 samples", "TypeError"]:
    raise SystemExit(f"changed: {seen}")
PYTHON
