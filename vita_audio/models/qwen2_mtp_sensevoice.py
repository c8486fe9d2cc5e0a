"""The Plus models: Qwen2 with MTP modules and continuous speech input (SenseVoice encoder and projector).

A prompt holds one placeholder token for each row of an encoded audio. In the backbone the projected rows replace the
embeddings of the placeholders. MTP modules read the placeholders, so audio reaches them through the hidden states only.
As in the released class, their inputs are detached, even where the backbone trains.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from vita_audio.models.qwen2_mtp import Qwen2MTPConfig, Qwen2MTPForCausalLM, Qwen2MTPModel
from vita_audio.models.sensevoice import SenseVoiceConfig, SenseVoiceSmall

AUDIO_ENCODER = "model.audio_model"  # prefixes of parameter names
AUDIO_PROJECTION = "model.audio_projection"


class Qwen2MTPSenseVoiceConfig(Qwen2MTPConfig):
    """Qwen2MTPConfig with the sizes of a speech encoder.

    Args:
        audio_config: Arguments of `SenseVoiceConfig` that differ from the defaults; the released models have none.
    """

    model_type = "qwen2_mtp_sensevoice"

    audio_config: dict[str, int] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        try:
            SenseVoiceConfig(**self.audio_config or {})
        except TypeError as error:
            raise ValueError(f"audio_config must hold sizes of SenseVoiceConfig, got {self.audio_config}") from error

    @property
    def sensevoice(self) -> SenseVoiceConfig:
        return SenseVoiceConfig(**self.audio_config or {})


class AudioModel(nn.Module):
    """Gives the encoder the parameter names of the released weights."""

    def __init__(self, config: SenseVoiceConfig):
        super().__init__()
        self.model = SenseVoiceSmall(config)

    def forward(self, audios: Sequence[Tensor]) -> list[Tensor]:
        """Encode features, (rows, 560) each, to (queries + rows, encoder width) each."""
        return self.model(audios)


def audio_projection(input_size: int, output_size: int) -> nn.Sequential:
    """Make the projection of encoded audio to the width of the language model."""
    mlp = nn.Sequential(
        nn.Linear(input_size, output_size, bias=False), nn.GELU(), nn.Linear(output_size, output_size, bias=False)
    )
    return nn.Sequential(OrderedDict(pre_proj_layernorm=nn.LayerNorm(input_size), mlp=mlp))


class Qwen2MTPSenseVoiceModel(Qwen2MTPModel):
    """Qwen2MTPModel that replaces placeholder embeddings by encoded audio."""

    config_class = Qwen2MTPSenseVoiceConfig

    def __init__(self, config: Qwen2MTPSenseVoiceConfig):
        super().__init__(config)
        encoder = config.sensevoice
        self.audio_model = AudioModel(encoder)
        self.audio_projection = audio_projection(encoder.output_size, config.hidden_size)
        self.post_init()

    def encode_audio(self, audios: Sequence[Tensor]) -> list[Tensor]:
        """Encode features, (rows, 560) each, to rows that replace token embeddings, (queries + rows, hidden) each."""
        encoded = self.audio_model(audios)
        return list(self.audio_projection(torch.cat(encoded)).split([len(audio) for audio in encoded]))

    def insert_audio(
        self, inputs_embeds: Tensor, audios: Sequence[Tensor] | None, audio_indices: Sequence[Tensor] | None
    ) -> Tensor:
        """Replace embeddings by encoded audio; arguments as in `forward`.

        A training step without audio encodes one row of zeros and adds 0 times the result, so that all processes of a
        run call the same modules and every trainable parameter has a gradient.

        Returns: (batch, time, hidden).
        Raises: ValueError if the number of encoded rows differs from the number of places.
        """
        if not audios:
            if audio_indices:
                raise ValueError(f"{len(audio_indices)} audio_indices were given without audios")
            if not self.training:
                return inputs_embeds
            silence = inputs_embeds.new_zeros((1, self.config.sensevoice.input_size))
            return inputs_embeds + 0 * self.encode_audio([silence])[0].mean()
        places = [indices.reshape(2, -1).to(inputs_embeds.device) for indices in audio_indices or ()]  # (2, places)
        rows = self.encode_audio(audios)
        if (counts := [place.shape[1] for place in places]) != (needed := [len(audio) for audio in rows]):
            raise ValueError(f"audio_indices must have {needed} places for the rows of the audios, got {counts}")
        row, column = torch.cat(places, dim=1)
        return inputs_embeds.index_put((row, column), torch.cat(rows).to(inputs_embeds))

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        audios: Sequence[Tensor] | None = None,
        audio_indices: Sequence[Tensor] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Run the backbone; arguments as in `Qwen2MTPModel` and:

        Args:
            audios: Features of each audio, (rows, 560), without padding.
            audio_indices: Places of each audio, (2, 1, queries + rows), int64: batch rows, then positions in them.
        """
        if inputs_embeds is None and input_ids is not None:
            input_ids, inputs_embeds = None, self.embed_tokens(input_ids)
        if inputs_embeds is not None:
            inputs_embeds = self.insert_audio(inputs_embeds, audios, audio_indices)
        return super().forward(input_ids, inputs_embeds=inputs_embeds, **kwargs)


class Qwen2MTPSenseVoiceForCausalLM(Qwen2MTPForCausalLM):
    """Qwen2MTPForCausalLM whose `forward` and `generate` also take `audios` and `audio_indices`."""

    config_class = Qwen2MTPSenseVoiceConfig
    backbone_class = Qwen2MTPSenseVoiceModel
    _no_split_modules = ["Qwen2DecoderLayer", "AudioModel"]

    def mtp_chain(self, inputs_embeds: Tensor, hidden_states: Tensor, *args, **kwargs) -> Iterator[Tensor]:
        return super().mtp_chain(inputs_embeds.detach(), hidden_states.detach(), *args, **kwargs)

    def generate(
        self,
        inputs: Tensor | None = None,
        *args,
        audios: Sequence[Tensor] | None = None,
        audio_indices: Sequence[Tensor] | None = None,
        **kwargs,
    ):
        """Generate as `MTPGenerationMixin` does; `audios` and `audio_indices` of the prompt are as in `forward`.

        With a `decode_state`, audio in the part of the prompt that the state already holds may be omitted.
        """
        if audios or audio_indices:
            if kwargs.get("inputs_embeds") is not None:
                raise ValueError("audios replace embeddings of input_ids; give input_ids, not inputs_embeds")
            input_ids = kwargs.get("input_ids") if inputs is None else inputs
            with torch.no_grad():
                embeds = self.model.embed_tokens(input_ids)
                kwargs["inputs_embeds"] = self.model.insert_audio(embeds, audios, audio_indices)
        return super().generate(inputs, *args, **kwargs)
