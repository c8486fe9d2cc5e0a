"""Fine-tune a speech decoder to a new voice from minutes of recordings; the speech tokenizer stays.

    python tools/prepare_speech.py --from recordings --output data/my_voice
    python -m tools.codec.finetune_voice --voice data/my_voice --output runs/my_voice

The language model keeps speaking the same codes, so nothing else has to be trained: give RUN/decoder as
--audio-decoder-path to any program. Every --save-every steps a recogniser and a speaker encoder judge held-out
recordings, and the best step is kept; training ends when --patience attempts bring nothing better. voice.json has
the verdicts. The same command resumes an interrupted run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tools.common.loop_options import add_loop_options
from vita_audio.command_line import OneLineParser, in_range
from vita_audio.errors import one_line_errors


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("finetune_voice", __doc__)
    count, number = in_range(int, minimum=1), in_range(int, minimum=0)
    add = parser.add_argument
    add("--voice", type=Path, required=True, metavar="DIR", help="folder with manifest.jsonl of the new voice")
    add("--speaker", metavar="NAME", help="speaker to learn, if the folder has several")
    add("--tokenizer", help="folder of the speech tokenizer (default: the embedded one)")
    add("--decoder", help="folder of the decoder to start from (default: the embedded one)")
    add("--judge", default="whisper_tiny_en", help="recogniser, as in evaluation.run")
    add("--language", default="en", help="language of the recordings")
    add("--threads", type=count, help="clips judged at a time (default: threads of torch)")
    add("--held-out", type=count, default=10, help="recordings to judge by, at most a third of all")
    add("--patience", type=count, default=3, help="attempts without a better one that end the training")
    add("--disguises", type=number, default=2, help="versions of each recording in a changed voice")
    add("--frames-per-batch", type=count, default=2600, help="mel frames per step of the flow")
    add("--old-share", type=in_range(float, above=0), default=0.25, help="frames of old speech per new one")
    add("--vocoder-steps", type=count, default=200, help="steps of the vocoder, which trains first")
    add("--vocoder-lr", type=in_range(float, above=0), default=5e-4, help="its peak learning rate")
    add("--frames", type=count, default=40, help="mel frames per segment of the vocoder")
    add("--batch-size", type=count, default=12, help="segments per step of the vocoder")
    add_loop_options(parser, steps=800, lr=5e-4, warmup=50)
    parser.set_defaults(save_every=200)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    with one_line_errors("finetune_voice"):
        from tools.codec.voice_training import RESULT, prepare_voice

        if (args.output / RESULT).is_file():
            print(f"{args.output} is finished, see {args.output / RESULT}; choose another --output to train again")
            return
        train = prepare_voice(args)
    train()


if __name__ == "__main__":
    main()
