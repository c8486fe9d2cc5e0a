import json
from pathlib import Path

import pytest
from toy_codec import ToyCodec

from vita_audio.data.codes import AudioCodeStore
from vita_audio.text import TextTokenizer

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="session")
def tokenizer():
    return TextTokenizer.from_pretrained(ASSETS / "tiny_tokenizer", 16384)


@pytest.fixture
def store(tmp_path):
    return AudioCodeStore(tmp_path / "codes", ToyCodec.fingerprint)


@pytest.fixture
def write_mixture(tmp_path):
    """Write samples as JSON lines and a data yaml beside them; strings are written as they are."""

    def write(samples, name="data"):
        lines = [sample if isinstance(sample, str) else json.dumps(sample, ensure_ascii=False) for sample in samples]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"dataset:\n  {name}:\n    data_paths: [{name}.jsonl]\n", encoding="utf-8")
        return path

    return write
