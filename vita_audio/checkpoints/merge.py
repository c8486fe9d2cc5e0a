"""Merge an adapter into its base: a whole model that needs neither of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from vita_audio.files.checkpoint import GENERATION_FILE
from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.adapters import ADAPTER_CONFIG, is_adapter, load_language_model
from vita_audio.models.loading import read_config
from vita_audio.speech_features import CMVN_FILE
from vita_audio.text import TextTokenizer


def save_merged(folder: Path, output: Path, base: str | None = None) -> None:
    """Write the model that an adapter and its base make.

    Args:
        folder: Adapter made by training.
        output: New or empty folder.
        base: Base of the adapter, if it is no longer where it was.
    Raises: FileNotFoundError or ValueError for a folder that does not load or is no adapter; FileExistsError if
        `output` is in use.
    """
    if not is_adapter(folder):
        raise ValueError(f"{folder} holds no adapter to merge: {ADAPTER_CONFIG} is missing; leave out --merge")
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is in use; give a new folder")
    config = read_config(folder, SPEECH_CONFIGS)
    model, _ = load_language_model(folder, config, base=base, offline=True, dtype=config.dtype)
    model.save_pretrained(output)
    TextTokenizer.from_pretrained(folder).base.save_pretrained(output)
    for name in (GENERATION_FILE, CMVN_FILE):
        if (folder / name).exists():
            shutil.copyfile(folder / name, output / name)
