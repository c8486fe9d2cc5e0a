"""The configuration that MTP modules add to a language model; the fields of released checkpoints keep their names."""

from __future__ import annotations

from transformers import PretrainedConfig

from vita_audio.models.mtp_loss import LOGGED


class MTPConfig(PretrainedConfig):
    """Precedes the configuration of a base, whose `num_hidden_layers` then counts backbone layers and MTP modules.

    Args:
        num_nextn_predict_layers: Number of MTP modules; they are the last layers.
        mtp_loss_weight: Factor of the mean module loss in the training loss.
        mtp_kl_weight: Factor of the modules' mean divergence from the backbone in the training loss.
        mtp_depth_weights: Factor of each module's loss in the mean over the modules; None means 1.
        mtp_coordinator_weight: Factor of the loss of the modules' mixed predictions; only a model with a factor above
            0 has a `Coordinator`.
        alignment_weight: Factor of the contrastive loss between audio and text embeddings, see `alignment_loss`.
        audio_tokenizer: Type and fingerprint of the audio tokenizer that made the training codes; None if unknown.
    """

    keys_to_ignore_at_inference = ["past_key_values", *LOGGED]

    num_nextn_predict_layers: int = 0
    mtp_loss_weight: float = 1.0
    mtp_kl_weight: float = 0.0
    mtp_depth_weights: list[float] | None = None
    mtp_coordinator_weight: float = 0.0
    alignment_weight: float = 0.0
    audio_tokenizer: dict[str, str] | None = None

    def __post_init__(self, **kwargs):
        if not 0 <= self.num_nextn_predict_layers < self.num_hidden_layers:
            raise ValueError(
                "num_hidden_layers counts backbone layers and MTP modules, so num_nextn_predict_layers must be between "
                f"0 and {self.num_hidden_layers - 1}, got {self.num_nextn_predict_layers}"
            )
        if self.mtp_depth_weights is not None and len(self.mtp_depth_weights) != self.num_nextn_predict_layers:
            raise ValueError(
                f"mtp_depth_weights must be {self.num_nextn_predict_layers} numbers, one for each MTP module, got "
                f"{self.mtp_depth_weights}"
            )
        super().__post_init__(**kwargs)

    @property
    def num_backbone_layers(self) -> int:
        return self.num_hidden_layers - self.num_nextn_predict_layers
