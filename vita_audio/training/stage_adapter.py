"""The adapter of a training stage: which layers get one, and what else trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from vita_audio.models import MTPForCausalLM
from vita_audio.models.adapters import ADAPTER_NAME, require_peft
from vita_audio.models.qwen2_mtp_sensevoice import AUDIO_ENCODER, AUDIO_PROJECTION
from vita_audio.models.surgery import gathered, match_any, module_parts, mtp_parameter_patterns
from vita_audio.optional import require
from vita_audio.training.lora import LoraSettings

HEAD, EMBEDDINGS = "lm_head", "embed_tokens"
ADAPTED = ("model.layers.", "mtp_projs.", f"{AUDIO_PROJECTION}.")  # where linear layers can get an adapter


def add_adapter(
    model: MTPForCausalLM, lora: LoraSettings, *, token_ids: Sequence[int], new: Iterable[str], frozen: bool
) -> None:
    """Put a new adapter into a model; from then on nothing else trains, and saving writes the adapter only.

    What the base lacks and is not a copy of its weights must be in the adapter: rows of new tokens, and the projections
    and norms of new MTP modules, train whole.

    Args:
        token_ids: Tokens whose rows in the embeddings and the head train.
        new: Names of the parameters that the base lacks.
        frozen: Only MTP modules get an adapter.
    Raises: ValueError for a target or a module to save that does not exist; MissingPackageError.
    """
    peft = require_peft()
    parts = tuple(f"{part}." for part in module_parts(model.config))
    saved = {name.rpartition(".")[0] for name in new if name.startswith(parts)}
    saved |= set(_select(lora.save, _savable(model), "save")) if lora.save else set()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if lora.qlora and any(not model.get_submodule(name).weight.is_floating_point() for name in saved & set(linear)):
        raise ValueError(
            "--lora: save cannot name linear layers with qlora, which keeps them in 4 bits; leave them out"
        )
    linear = [name for name in linear if name.startswith(ADAPTED)]
    if frozen:
        patterns = mtp_parameter_patterns(model.config)
        linear = [name for name in linear if match_any([f"{name}.weight"], patterns)]
    targets = set(_select(lora.targets, linear, "targets")) - saved
    tokens = {EMBEDDINGS: list(token_ids)} if token_ids else None
    if tokens and not model.config.tie_word_embeddings and HEAD not in saved:
        tokens[HEAD] = list(token_ids)  # peft adds those of a tied head itself
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        target_modules=sorted(targets),
        modules_to_save=sorted(saved) or None,
        trainable_token_indices=tokens,
        task_type="CAUSAL_LM",
    )
    with _gathered_tables(model):
        model.add_adapter(config, ADAPTER_NAME)
    # With the name of the base, peft would compare its vocabulary and save both tables whole.
    model.peft_config[ADAPTER_NAME].base_model_name_or_path = None


def four_bit_options() -> dict[str, Any]:
    """Return arguments of `from_pretrained` that keep a base in 4 bits. Raises: MissingPackageError."""
    require("bitsandbytes", purpose="a base in 4 bits (--lora qlora)", install="'vita-audio[qlora]'")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[HEAD, AUDIO_ENCODER, AUDIO_PROJECTION],
    )
    return {"quantization_config": config}


def leave_out_base(model: MTPForCausalLM) -> None:
    """Let the state dict of a model hold only what trains, and let one without the rest be loaded."""

    def drop_base(model: MTPForCausalLM, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
        named = model.named_parameters(remove_duplicate=False)  # a tied table has two names
        trained = {prefix + name for name, parameter in named if parameter.requires_grad}
        for name in [name for name in state if name.startswith(prefix) and name not in trained]:
            del state[name]

    def keep_trained(model: MTPForCausalLM, missing: list[str]) -> None:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        missing[:] = [name for name in missing if name in trained]

    model.register_state_dict_post_hook(drop_base)
    model.register_load_state_dict_post_hook(lambda model, keys: keep_trained(model, keys.missing_keys))


@contextmanager
def _gathered_tables(model: MTPForCausalLM) -> Iterator[None]:
    """Let peft 0.21 read the rows of tokens in tables that ZeRO-3 has partitioned; its own way needs CUDA."""
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    def rows_of(layer: TrainableTokensLayer, weight: Tensor, rows: list[int], size: int) -> Tensor:
        return weight[rows].clone()

    original = TrainableTokensLayer._collect_token_weights
    TrainableTokensLayer._collect_token_weights = rows_of
    try:
        with gathered([model.get_input_embeddings().weight, model.lm_head.weight]):
            yield
    finally:
        TrainableTokensLayer._collect_token_weights = original


def _savable(model: MTPForCausalLM) -> list[str]:
    """List the modules that can be trained whole: norms, projections and a head of its own."""
    names = [name for name, _ in model.named_parameters() if name.startswith(("mtp_", "model.norm.", "model.layers."))]
    modules = {name.rpartition(".")[0] for name in names}
    return sorted(modules if model.config.tie_word_embeddings else modules | {HEAD})


def _select(chosen: Sequence[str], names: Sequence[str], setting: str) -> list[str]:
    """List the names that have one of the chosen parts between their dots; all if none is chosen.

    Raises: ValueError for a part that no name has, with those that exist.
    """
    for part in chosen:
        if not any(part in name.split(".") for name in names):
            known = sorted({part for name in names for part in name.split(".") if not part.isdigit()} - {"model"})
            raise ValueError(f"--lora: {setting} {part!r} names no module; those that can be named: {', '.join(known)}")
    return [name for name in names if not chosen or set(chosen) & set(name.split("."))]
