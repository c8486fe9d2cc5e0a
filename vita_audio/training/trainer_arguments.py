"""TrainingArguments with the options of speech training; `arguments` has the flags that are parsed before it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from vita_audio.training.arguments import SpeechOptions


@dataclass
class SpeechTrainingArguments(SpeechOptions, TrainingArguments):
    """TrainingArguments of transformers with `SpeechOptions`, whose defaults win."""

    def __post_init__(self):
        SpeechOptions.__post_init__(self)
        TrainingArguments.__post_init__(self)
        if self.eval_suite and self.save_strategy == SaveStrategy.NO:
            raise ValueError("--eval_suite evaluates checkpoints, which --save_strategy no does not write")
