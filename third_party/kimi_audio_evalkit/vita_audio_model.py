"""VITA-Audio models in Kimi-Audio-Evalkit: copy this file to its folder almeval/models, see the README next to it.

The toolkit finds subclasses of `BaseModel` in that folder by their NAME and creates them without arguments, so settings
come from the environment. It excludes a sample from the score if the answer is None or "null", or if the audio is too
long or too short; this model answers every sample, and one that fails counts as wrong.
"""

import os

from vita_audio.inference.harness import HarnessModel
from vita_audio.inference.tasks import SYSTEMS
from vita_audio.text import ASR_PROMPT

from .base import BaseModel

EXCLUDED = "null"  # the toolkit excludes samples with this answer
# Environment variable -> argument of `HarnessModel.from_pretrained`
SETTINGS = {
    "VITA_AUDIO_TOKENIZER_TYPE": "audio_tokenizer_type",
    "VITA_AUDIO_TOKENIZER": "audio_tokenizer_path",
    "VITA_AUDIO_DECODER": "audio_decoder_path",
    "VITA_AUDIO_SENSEVOICE": "audio_model",
    "VITA_AUDIO_DEVICE": "device",
    "VITA_AUDIO_MODE": "plan",
}


class VITAAudio(BaseModel):
    NAME = "VITA-Audio"

    def __init__(self, model_path: str | None = None, **kwargs):
        """Load the model; `kwargs` take precedence over the environment. Raises: ValueError if no model is named."""
        model_path = model_path or os.environ.get("VITA_AUDIO_MODEL")
        if not model_path:
            raise ValueError("set VITA_AUDIO_MODEL to the folder or hub name of a VITA-Audio model")
        settings = {name: os.environ[variable] for variable, name in SETTINGS.items() if os.environ.get(variable)}
        self.model = HarnessModel.from_pretrained(model_path, **settings | kwargs)
        self.max_new_tokens = int(os.environ.get("VITA_AUDIO_MAX_NEW_TOKENS", 1024))

    @staticmethod
    def check_audio_legal(audio_path: str | list[str], max_duration: float = 60) -> bool:
        """Accept every audio; otherwise the toolkit would exclude the sample from the score."""
        return True

    def get_prompt(self, msg: dict) -> str:
        """Return the text prompt: one the model was trained with, or the question of the data set."""
        meta = msg["meta"]
        if meta["task"] == "ASR":
            return ASR_PROMPT
        return SYSTEMS["omni"] if meta["interactive"] == "Audio-QA" else msg["text"]

    def generate_inner(self, msg: dict) -> tuple[str, str]:
        """Return the prompt and the text of the answer, "" if the sample fails."""
        prompt = self.get_prompt(msg)
        is_question = prompt == SYSTEMS["omni"]
        audios = [msg["audio"]] if isinstance(msg["audio"], str) else msg["audio"]
        request = ("" if is_question else prompt, {"max_gen_toks": self.max_new_tokens}, {"audio": audios})
        (text,) = self.model.generate_until([request], system="omni" if is_question else None, skip_errors=True)
        return prompt, f"{text}." if text == EXCLUDED else text
