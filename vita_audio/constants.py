"""Constants shared by data, models, inference and command lines: special tokens, label mask, audio tokenizers."""

IGNORE_INDEX = -100  # label of a token without loss, as in torch.nn.functional.cross_entropy
INPUT_RATE = 16_000  # Hz, of the input of the speech encoders
EMBEDDING_MULTIPLE = 8  # embedding rows are padded to a multiple of this

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

BEGIN_OF_AUDIO = "<|begin_of_audio|>"
END_OF_AUDIO = "<|end_of_audio|>"
CONTEXT_OF_AUDIO = "<|context_of_audio|>"  # placeholder of one frame of continuous speech input
AUDIO_TAG = "<|audio|>"  # stands for one audio file in the text of a sample
AUDIO_CODE_FORMAT = "<|audio_{}|>"  # one discrete code

_VISION_TOKENS = tuple(
    f"<|{part}_of_{kind}|>" for kind in ("image", "video", "patch") for part in ("begin", "end", "context")
)
_REGION_TOKENS = tuple(f"<|{part}_of_{kind}|>" for kind in ("quad", "ref", "box") for part in ("begin", "end"))
_MEDIA_TAGS = ("<|image|>", "<|video|>")

AUDIO_TOKENIZERS = {  # name -> module:class in vita_audio.audio_tokenizers, imported on demand
    "glm4voice": "glm4voice:GLM4VoiceTokenizer",
    "cosyvoice2": "cosyvoice2:CosyVoice2Tokenizer",
    "snac24khz": "snac24khz:SNAC24kHzTokenizer",
    "sparktts": "sparktts:SparkTTSTokenizer",
}
CONTINUOUS_PREFIX = "sensevoice_"  # before the name of an audio tokenizer: SenseVoice features in, codes out
AUDIO_TOKENIZER_TYPES = (*AUDIO_TOKENIZERS, *(CONTINUOUS_PREFIX + name for name in AUDIO_TOKENIZERS))


def structural_tokens(*, audio: bool = True, continuous_input: bool = False) -> tuple[str, ...]:
    """Return the special tokens added to the text vocabulary, in the order that gives the released ids.

    Args:
        audio: Include the audio markers and the audio tag.
        continuous_input: With `audio`, include the placeholder for continuous speech features.
    """
    if not audio:
        return (*_VISION_TOKENS, *_REGION_TOKENS, *_MEDIA_TAGS)
    context = (CONTEXT_OF_AUDIO,) if continuous_input else ()
    markers = (BEGIN_OF_AUDIO, END_OF_AUDIO, *context)
    return (*_VISION_TOKENS, *markers, *_REGION_TOKENS, *_MEDIA_TAGS, AUDIO_TAG)
