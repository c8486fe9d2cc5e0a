"""A tiny training set-up on disk: text model, tokenizers, speech, data yaml; and how to run stages on it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from audio_tokenizers.tiny_folders import make_glm4voice_folders
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from vita_audio.models import Qwen2MTPConfig, Qwen2MTPSenseVoiceConfig
from vita_audio.models.sensevoice import SenseVoiceConfig, SenseVoiceSmall
from vita_audio.speech_features import SenseVoiceFrontEnd
from vita_audio.training.settings import StageSettings

ROOT = Path(__file__).parents[2]
STAGES = ROOT / "scripts" / "deepspeed" / "sts_qwen25"
TINY_TOKENIZER = ROOT / "tests" / "assets" / "tiny_tokenizer"
NUM_TEXT_ROWS = 744  # 736 text tokens of the tiny tokenizer and some padding, as in Qwen2.5
SETTINGS = dict(
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=256,
    tie_word_embeddings=True,
)
NUM_BACKBONE_LAYERS = 2
ENCODER_SIZES = {"output_size": 8, "attention_heads": 2, "linear_units": 12, "num_blocks": 2, "tp_blocks": 1}
ENCODER_SIZES |= {"vocab_size": 10}


@dataclass(frozen=True)
class ToyRun:
    """Paths of a set-up."""

    folder: Path
    text_model: Path
    audio_tokenizer: Path
    speech_encoder: Path
    data: Path

    def config(self, num_modules: int, *, plus: bool = False, config_class: type | None = None, **changes) -> Path:
        """Write the model config of a stage, by default on Qwen2; `plus`: with a speech encoder."""
        settings = {"num_hidden_layers": NUM_BACKBONE_LAYERS + num_modules, "vocab_size": NUM_TEXT_ROWS, **SETTINGS}
        if plus:
            settings["audio_config"] = ENCODER_SIZES
        config_class = config_class or (Qwen2MTPSenseVoiceConfig if plus else Qwen2MTPConfig)
        config = config_class(num_nextn_predict_layers=num_modules, **(settings | changes))
        folder = self.folder / "-".join(["config", config.model_type, str(num_modules), *changes])
        config.save_pretrained(folder)
        return folder / "config.json"

    def settings(self, **changes) -> StageSettings:
        """Return the settings of a stage like that of `flags`."""
        values = {
            "dataset_name": str(self.data),
            "audio_code_dir": self.folder / "codes",
            "pack_cache_dir": self.folder / "packs",
            "tokenizer_name": str(TINY_TOKENIZER),
            "model_name_or_path": str(self.text_model),
            "audio_tokenizer_path": str(self.audio_tokenizer),
            "model_max_length": 128,
        }
        return StageSettings(**values | changes)

    def flags(self, output_dir: Path, **changes) -> list[str]:
        """Return the flags of tools/finetune_sts.py for a run of a few steps on the CPU."""
        flags = {
            "model_name_or_path": self.text_model,
            "dataset_name": self.data,
            "audio_tokenizer_path": self.audio_tokenizer,
            "audio_code_dir": self.folder / "codes",
            "pack_cache_dir": self.folder / "packs",
            "output_dir": output_dir,
            "model_max_length": 128,
            "learning_rate": 1e-3,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        } | changes
        return [part for name, value in flags.items() for part in (f"--{name}", *str(value).split())]


def make_toy_run(folder: Path) -> ToyRun:
    """Write everything: 12 spoken samples, 4 text samples, a plain Qwen2 model, a speech encoder."""
    torch.manual_seed(0)
    audio_tokenizer, _ = make_glm4voice_folders(folder)
    speech_encoder = make_speech_encoder(folder / "speech_encoder")
    config = Qwen2Config(num_hidden_layers=NUM_BACKBONE_LAYERS, vocab_size=NUM_TEXT_ROWS, **SETTINGS)
    Qwen2ForCausalLM(config).save_pretrained(folder / "text_model")
    AutoTokenizer.from_pretrained(TINY_TOKENIZER).save_pretrained(folder / "text_model")
    rng, waves = random.Random(0), np.random.default_rng(0)
    samples = []
    for number in range(16):
        question, answer = (" ".join(str(rng.randrange(10)) for _ in range(6)) for _ in range(2))
        sample = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        if number % 4:
            wave = folder / "audio" / f"{number}.wav"
            wave.parent.mkdir(exist_ok=True)
            soundfile.write(wave, waves.standard_normal(16_000 + 1_600 * number) * 0.1, 16_000)
            sample["messages"][number % 2]["content"] += "\n<|audio|>"
            sample["audios"] = [f"audio/{number}.wav"]
        samples.append(json.dumps(sample))
    (folder / "data.jsonl").write_text("\n".join(samples), encoding="utf-8")
    (folder / "data.yaml").write_text("dataset:\n  toy:\n    data_paths: [data.jsonl]\n", encoding="utf-8")
    return ToyRun(folder, folder / "text_model", audio_tokenizer, speech_encoder, folder / "data.yaml")


def make_merged_model(run: ToyRun, folder: Path) -> dict[str, torch.Tensor]:
    """Write the text model with a head of its own under a configuration that ties it; return its weights."""
    shutil.copytree(run.text_model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return weights


def make_speech_encoder(folder: Path) -> Path:
    """Write a folder like SenseVoiceSmall, with random weights."""
    folder.mkdir()
    torch.save(SenseVoiceSmall(SenseVoiceConfig(**ENCODER_SIZES)).state_dict(), folder / "model.pt")
    SenseVoiceFrontEnd(torch.full((560,), -8.0), torch.full((560,), 0.2)).save_pretrained(folder)
    return folder


def stage_command(script: str, run: ToyRun, *arguments: object, bin_folder: Path | None = None, **variables: object):
    """Return the command of a stage script, and the keyword arguments of subprocess: its folder and environment.

    Args:
        bin_folder: Folder of programs that come before all others.
        variables: Environment variables beside those of the set-up; None removes one.
    """
    defaults = {
        "MODEL_NAME_OR_PATH": run.text_model,
        "DATA": run.data,
        "AUDIO_TOKENIZER_PATH": run.audio_tokenizer,
        "OUTPUT_ROOT": run.folder / "outputs",
        "AUDIO_CODE_DIR": run.folder / "codes",
        "OMP_NUM_THREADS": 1,
        "CUDA_VISIBLE_DEVICES": "",
    }
    folders = [bin_folder, Path(sys.executable).parent, os.environ["PATH"]]
    values = {**os.environ, "PATH": os.pathsep.join(str(folder) for folder in folders if folder)}
    values |= {name: str(value) for name, value in (defaults | variables).items()}
    removed = [name for name, value in variables.items() if value is None]
    environment = {name: value for name, value in values.items() if name not in removed}
    return ["bash", str(STAGES / script), *map(str, arguments)], {"cwd": run.folder, "env": environment}


def run_stage(script: str, run: ToyRun, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run a stage script to its end; arguments as in `stage_command`."""
    command, settings = stage_command(script, run, *arguments, **options)
    return subprocess.run(command, capture_output=True, text=True, **settings)


def logged(output_dir: Path, key: str = "loss") -> list[float]:
    """Return a value of every log entry of a finished run."""
    history = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[key] for entry in history if "loss" in entry]
