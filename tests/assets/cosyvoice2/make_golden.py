"""Write the numbers of the public CosyVoice2 flow and vocoder on tiny random weights.

    pip install --no-deps cosyvoice2-eu diffusers==0.29.2 conformer omegaconf && python make_golden.py

What the package imports besides and does not need here is stood in for.
"""

import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

for unused in (
    "matcha.utils",
    "matcha.utils.pylogger",
    "cosyvoice.llm",
    "cosyvoice.llm.llm",
    "cosyvoice.cli",
    "cosyvoice.cli.model",
):
    sys.modules[unused] = MagicMock()

from cosyvoice.flow.decoder import CausalConditionalDecoder  # noqa: E402
from cosyvoice.flow.flow import CausalMaskedDiffWithXvec  # noqa: E402
from cosyvoice.flow.flow_matching import CausalConditionalCFM  # noqa: E402
from cosyvoice.hifigan.f0_predictor import ConvRNNF0Predictor  # noqa: E402
from cosyvoice.hifigan.generator import HiFTGenerator  # noqa: E402
from cosyvoice.transformer.upsample_encoder import (  # noqa: E402
    PreLookaheadLayer,
    Upsample1D,
    UpsampleConformerEncoder,
)
from omegaconf import DictConfig  # noqa: E402

FOLDER = Path(__file__).parent
SIZE, VOCABULARY = 32, 100


def make_flow() -> CausalMaskedDiffWithXvec:
    encoder = UpsampleConformerEncoder(
        input_size=SIZE,
        output_size=SIZE,
        attention_heads=4,
        linear_units=48,
        num_blocks=2,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn",
        static_chunk_size=25,
        use_cnn_module=False,
        macaron_style=False,
    )
    encoder.pre_lookahead_layer = PreLookaheadLayer(channels=SIZE, pre_lookahead_len=3)
    encoder.up_layer = Upsample1D(channels=SIZE, out_channels=SIZE, stride=2)
    estimator = CausalConditionalDecoder(
        in_channels=320,
        out_channels=80,
        channels=[24],
        dropout=0.0,
        attention_head_dim=6,
        n_blocks=2,
        num_mid_blocks=2,
        num_heads=4,
        act_fn="gelu",
        static_chunk_size=50,
        num_decoding_left_chunks=-1,
    )
    settings = {
        "sigma_min": 1e-6,
        "solver": "euler",
        "t_scheduler": "cosine",
        "training_cfg_rate": 0.2,
        "inference_cfg_rate": 0.7,
        "reg_loss_type": "l1",
    }
    decoder = CausalConditionalCFM(240, DictConfig(content=settings), 1, 80, estimator)
    return CausalMaskedDiffWithXvec(
        input_size=SIZE,
        vocab_size=VOCABULARY,
        input_frame_rate=25,
        encoder=encoder,
        decoder=decoder,
    ).eval()


def make_vocoder() -> HiFTGenerator:
    return HiFTGenerator(
        base_channels=32,
        sampling_rate=24000,
        upsample_rates=[8, 5, 3],
        upsample_kernel_sizes=[16, 11, 7],
        source_resblock_kernel_sizes=[7, 7, 11],
        source_resblock_dilation_sizes=[[1, 3, 5]] * 3,
        f0_predictor=ConvRNNF0Predictor(cond_channels=16),
    ).eval()


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    flow, vocoder = make_flow(), make_vocoder()
    for parameter in flow.encoder.parameters():
        if parameter.dim() > 1:
            parameter.mul_(1.5)  # so that all parts are heard
    vocoder.f0_predictor.classifier.bias.fill_(150.0)
    vocoder.f0_predictor.classifier.weight.mul_(300.0)
    save_file({key: value.contiguous() for key, value in flow.state_dict().items()}, FOLDER / "flow.safetensors")
    save_file({key: value.contiguous() for key, value in vocoder.state_dict().items()}, FOLDER / "hift.safetensors")

    tensors = {"rand_noise": flow.decoder.rand_noise[:, :, ::1500].clone()}
    codes = torch.randint(0, VOCABULARY, (1, 60))
    embedding, prompt_codes = torch.randn(1, 192), torch.randint(0, VOCABULARY, (1, 12))
    prompt_mel = torch.randn(1, 24, 80)
    tensors |= {"codes": codes, "embedding": embedding, "prompt_codes": prompt_codes, "prompt_mel": prompt_mel}
    for name, streaming, final, has_prompt, number in (
        ("whole", False, True, False, 60),
        ("chunked", True, True, False, 60),
        ("not_final", True, False, False, 53),  # 50 codes and the three that follow them
        ("prompted", False, True, True, 40),
        ("prompted_chunked", True, True, True, 40),
    ):
        prompt = prompt_codes if has_prompt else prompt_codes[:, :0]
        mel = prompt_mel if has_prompt else prompt_mel[:, :0]
        speaker = embedding if has_prompt else torch.zeros(1, 192)
        made, _ = flow.inference(
            codes[:, :number],
            torch.tensor([number], dtype=torch.int32),
            prompt,
            torch.tensor([prompt.shape[1]], dtype=torch.int32),
            mel,
            torch.tensor([mel.shape[1]], dtype=torch.int32),
            speaker,
            streaming=streaming,
            finalize=final,
        )
        tensors[f"{name}.mel"] = made

    mel = tensors["whole.mel"][:, :, :40].contiguous()
    torch.manual_seed(1)
    wave, source = vocoder.inference(mel)
    tensors |= {"hift.f0": vocoder.f0_predictor(mel), "hift.source": source, "hift.wave": wave}
    save_file({key: value.contiguous() for key, value in tensors.items()}, FOLDER / "tensors.safetensors")
    print({key: (tuple(value.shape), round(float(value.float().std()), 3)) for key, value in tensors.items()})
    print("f0", vocoder.f0_predictor(mel).min().item(), vocoder.f0_predictor(mel).max().item())


if __name__ == "__main__":
    main()
