"""The features of continuous speech input, from the speech encoder's folder or the checkpoint itself."""

from __future__ import annotations

from pathlib import Path

from vita_audio.files.checkpoint import check_whole, find_checkpoint
from vita_audio.models.sensevoice import CMVN_FILE, SenseVoiceFrontEnd
from vita_audio.text import TextTokenizer


def load_front_end(
    tokenizer: TextTokenizer,
    checkpoint: str | Path | None,
    audio_model: str | Path | None = None,
    *,
    offline: bool = False,
) -> SenseVoiceFrontEnd | None:
    """Load what makes features; None if the tokenizer has no continuous input.

    Args:
        checkpoint: Of the language model; ours hold the normalisation, the released ones do not.
        audio_model: Folder or hub name of a SenseVoiceSmall, which comes first.
        offline: As in `find_checkpoint`.
    Raises: FileNotFoundError that says what to give; ValueError for a damaged file.
    """
    if not tokenizer.continuous_roles:
        return None
    source = audio_model or checkpoint
    folder = source and find_checkpoint(source, offline=offline)
    if folder is None or not (folder / CMVN_FILE).is_file():
        raise FileNotFoundError(
            f"audio of {', '.join(tokenizer.continuous_roles)} is continuous input, whose normalisation {CMVN_FILE} is "
            f"not in {source}; give the folder of a SenseVoiceSmall as audio model"
        )
    check_whole(folder / CMVN_FILE)
    return SenseVoiceFrontEnd.from_pretrained(folder)
