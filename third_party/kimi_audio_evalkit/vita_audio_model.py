"""VITA-Audio models in Kimi-Audio-Evalkit: a file for its folder almeval/models, see the README beside this one.

The toolkit finds classes of `BaseModel` in that folder by their NAME and makes them without arguments, so settings come
from the environment. It leaves samples out of the score whose answer is None or reads "null", and those whose audio it
finds too long or too short; here each sample is answered, and what cannot be answered counts as wrong.
"""

import os

from vita_audio.inference.harness import HarnessModel
from vita_audio.inference.tasks import SYSTEMS
from vita_audio.text import ASR_PROMPT

from .base import BaseModel

LEFT_OUT = "null"  # an answer that the toolkit takes for none
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
        """Load the model; `kwargs` come before the environment.

        Raises: ValueError if no model is named.
        """
        model_path = model_path or os.environ.get("VITA_AUDIO_MODEL")
        if not model_path:
            raise ValueError("set VITA_AUDIO_MODEL to the folder or hub name of a VITA-Audio model")
        settings = {name: os.environ[variable] for variable, name in SETTINGS.items() if os.environ.get(variable)}
        self.model = HarnessModel.from_pretrained(model_path, **settings | kwargs)
        self.max_new_tokens = int(os.environ.get("VITA_AUDIO_MAX_NEW_TOKENS", 1024))

    @staticmethod
    def check_audio_legal(audio_path: str | list[str], max_duration: float = 60) -> bool:
        """Accept every audio; the toolkit would leave a sample out of the score."""
        return True

    def get_prompt(self, msg: dict) -> str:
        """Return what is written for the model: the prompts it was trained with, or the data set's own question."""
        meta = msg["meta"]
        if meta["task"] == "ASR":
            return ASR_PROMPT
        return SYSTEMS["omni"] if meta["interactive"] == "Audio-QA" else msg["text"]

    def generate_inner(self, msg: dict) -> tuple[str, str]:
        """Return the prompt and the text of the answer, "" if there can be none."""
        prompt = self.get_prompt(msg)
        is_question = prompt == SYSTEMS["omni"]
        audios = [msg["audio"]] if isinstance(msg["audio"], str) else msg["audio"]
        request = ("" if is_question else prompt, {"max_gen_toks": self.max_new_tokens}, {"audio": audios})
        (text,) = self.model.generate_until([request], system="omni" if is_question else None, skip_errors=True)
        return prompt, f"{text}." if text == LEFT_OUT else text
