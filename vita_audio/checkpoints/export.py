"""Export a checkpoint for the public VITA-Audio code, which uses transformers 4.48.

Weights have the same names and values, so their files are linked or copied; configurations are written in the older
format. The public code loads a model through the Python files that `auto_map` in config.json names, which come from a
folder of the caller or from a released repository on the hub.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from vita_audio.files.atomic import write_json
from vita_audio.files.checkpoint import (
    CONFIG_FILE,
    GENERATION_FILE,
    WEIGHT_NAMES,
    check_weights,
    check_whole,
    read_json,
)
from vita_audio.models import SPEECH_CONFIGS, MTPConfig, Qwen2MTPSenseVoiceConfig
from vita_audio.models.adapters import is_adapter
from vita_audio.models.loading import read_config
from vita_audio.speech_features import CMVN_FILE
from vita_audio.text import TextTokenizer, chat_template

CODE_FILES = ("configuration_qwen2", "modeling_qwen2")  # Python modules of the public classes

# model_type -> repository with the code of the public classes, which have the names of ours
REPOSITORIES = {
    "qwen2_mtp": "VITA-MLLM/VITA-Audio-Boost",
    "qwen2_mtp_sensevoice": "VITA-MLLM/VITA-Audio-Plus-Boost",
}
# Fields of the public config.json. All are written, because its defaults differ from ours.
PUBLIC_FIELDS = (
    *("attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_range"),
    *("intermediate_size", "max_position_embeddings", "max_window_layers", "model_type", "mtp_loss_weight"),
    *("num_attention_heads", "num_hidden_layers", "num_key_value_heads", "num_nextn_predict_layers", "pad_token_id"),
    *("rms_norm_eps", "sliding_window", "tie_word_embeddings", "use_cache", "use_sliding_window", "vocab_size"),
    "audio_tokenizer",  # our own field
)
# Files of SenseVoiceSmall that the public class of Plus models reads from the folder of the checkpoint.
ENCODER_FILES = ("config.yaml", "configuration.json", CMVN_FILE, "*.bpe.model")


def export_checkpoint(folder: Path, output: Path, code: Path | None = None, *, audio_model: Path | None = None) -> None:
    """Write a folder that both the public code and ours can load.

    Args:
        folder: Checkpoint of a speech model.
        output: New or empty folder. Weights are hard links if the file system supports them, else copies.
        code: Folder with the Python files of the public model class to copy. None: the public code downloads them from
            a released repository.
        audio_model: Folder of a SenseVoiceSmall, for a Plus model whose folder lacks `ENCODER_FILES`.
    Raises: FileNotFoundError or ValueError for a folder that does not load; FileExistsError if `output` is in use.
    """
    if is_adapter(folder):
        raise ValueError(
            f"{folder} is an adapter, which the public code cannot load; add --merge, then export the result"
        )
    weights = check_weights(folder)
    config = read_config(folder, SPEECH_CONFIGS)
    tokenizer = TextTokenizer.from_pretrained(folder)
    values = public_config(config, from_hub=code is None)
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is in use; give a new folder")
    sources: list[Path] = []
    if code is not None:
        _find_all(code, [f"{name}.py" for name in CODE_FILES], "; give the folder of the public model class")
        sources += sorted(path for path in code.glob("*.py") if path.name != "__init__.py")
    if isinstance(config, Qwen2MTPSenseVoiceConfig):
        reader = ", which the public class of Plus models reads from the checkpoint's folder"
        remedy = f"{reader}; give the folder of a SenseVoiceSmall as audio model"
        sources += _find_all(audio_model or folder, ENCODER_FILES, remedy)
    output.mkdir(parents=True, exist_ok=True)
    if weights[0].name not in WEIGHT_NAMES:  # shards
        weights += [path for name in WEIGHT_NAMES if (path := folder / f"{name}.index.json").exists()]
    for path in weights:
        _link(path, output / path.name)
    for path in sources:
        shutil.copyfile(path, output / path.name)
    write_json(output / CONFIG_FILE, values)
    if (folder / GENERATION_FILE).exists():
        write_json(output / GENERATION_FILE, public_generation_config(folder))
    tokenizer.base.backend_tokenizer.save(str(output / "tokenizer.json"))
    write_json(output / "tokenizer_config.json", public_tokenizer_config(tokenizer))


def public_config(config: MTPConfig, *, from_hub: bool) -> dict[str, Any]:
    """Return the values of config.json in the public format.

    Raises: ValueError for features that the public classes lack: other text models than Qwen2, position scaling,
        another speech encoder.
    """
    if config.model_type not in REPOSITORIES:
        raise ValueError(f"the public code has models of type {' and '.join(REPOSITORIES)}, got {config.model_type}")
    config_class = type(config).__name__
    model_class = f"{config_class.removesuffix('Config')}ForCausalLM"
    rope = dict(config.rope_parameters)
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"only plain rotary positions can be exported, got rope_parameters {rope}")
    if isinstance(config, Qwen2MTPSenseVoiceConfig) and config.audio_config:
        raise ValueError(f"the public code has no speech encoder but SenseVoiceSmall, got {config.audio_config}")
    place = f"{REPOSITORIES[config.model_type]}--" if from_hub else ""
    values = {name: getattr(config, name, None) for name in PUBLIC_FIELDS}
    values |= {
        "architectures": [model_class],
        "auto_map": {
            "AutoConfig": f"{place}{CODE_FILES[0]}.{config_class}",
            "AutoModelForCausalLM": f"{place}{CODE_FILES[1]}.{model_class}",
        },
        "rope_scaling": None,
        "rope_theta": rope["rope_theta"],
        "torch_dtype": str(config.dtype or "float32").removeprefix("torch."),
    }
    optional = ("audio_tokenizer", "bos_token_id", "eos_token_id", "pad_token_id")
    return {name: value for name, value in sorted(values.items()) if value is not None or name not in optional}


def public_generation_config(folder: Path) -> dict[str, Any]:
    """Return the values of generation_config.json that mean the same in the public code, and our own `acceptance`.

    The public code ignores `acceptance` and commits all tokens of the modules.
    """
    known = GenerationConfig().to_dict().keys() | {"mtp_inference_mode", "acceptance"}
    values = read_json(folder / GENERATION_FILE)
    return {
        name: value
        for name, value in sorted(values.items())
        if name in known and value is not None and not name.startswith(("_", "transformers"))
    }


def public_tokenizer_config(tokenizer: TextTokenizer) -> dict[str, Any]:
    """Return the values of tokenizer_config.json in the public format."""
    added = json.loads(tokenizer.base.backend_tokenizer.to_str())["added_tokens"]
    special = [token["content"] for token in added if token["special"]]
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"} for token in added
        },
        "additional_special_tokens": special,
        "audio_input": tokenizer.audio_input,  # our own field
        "bos_token": None,
        "chat_template": chat_template(),
        "clean_up_tokenization_spaces": False,
        "eos_token": tokenizer.base.eos_token,
        "errors": "replace",
        "model_max_length": min(tokenizer.base.model_max_length, 10**6),
        "pad_token": tokenizer.base.pad_token,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _find_all(folder: Path, patterns: Sequence[str], remedy: str) -> list[Path]:
    files = []
    for pattern in patterns:
        if not (found := sorted(folder.glob(pattern))):
            raise FileNotFoundError(f"{folder / pattern} is missing{remedy}")
        files += found
    for path in files:
        check_whole(path)
    return files


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
