"""Export a trained model to a folder that the public VITA-Audio code loads with transformers 4.48.

    python tools/export_checkpoint.py outputs/7b/stage4 exported

The public code reads its model classes from the folder or from the hub. Without --code, the folder refers to a released
repository on the hub; with it, the Python files are copied from a download of that repository, or from
vita_audio/models/qwen2_mtp_v4_48_3 of the public code. A Plus model also needs the settings of SenseVoiceSmall:

    python tools/export_checkpoint.py outputs/7b_plus/stage4 exported --audio-model SenseVoiceSmall

With --merge it writes something else: the whole model that an adapter and its base make, for our programs. That folder
can be exported like any other.

    python tools/export_checkpoint.py outputs/7b_lora/stage4 merged --merge
"""

import argparse
from pathlib import Path

from vita_audio.command_line import OneLineParser, quieten_transformers
from vita_audio.errors import one_line_errors
from vita_audio.files.checkpoint import find_checkpoint


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("export_checkpoint", __doc__)
    parser.add_argument("model", help="folder of a speech model")
    parser.add_argument("output", type=Path, help="new folder")
    parser.add_argument("--code", type=Path, help="folder with the Python files of the public model class")
    parser.add_argument("--audio-model", help="SenseVoiceSmall folder, required for a Plus model")
    parser.add_argument("--merge", action="store_true", help="write an adapter and its base as one whole model")
    parser.add_argument("--base", help="with --merge, the adapter's base if it is no longer where it was")
    options = parser.parse_args(arguments)
    if options.merge and (options.code or options.audio_model):
        parser.error("--merge writes no folder for the public code; leave out --code and --audio-model")
    if options.base and not options.merge:
        parser.error("--base is used with --merge only")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("export_checkpoint"):
        folder = find_checkpoint(options.model, offline=True)
        audio_model = options.audio_model and find_checkpoint(options.audio_model, offline=True)
        from vita_audio.checkpoints.export import export_checkpoint
        from vita_audio.checkpoints.merge import save_merged

        quieten_transformers()
        if options.merge:
            save_merged(folder, options.output, options.base)
            print(f"{options.output}: a whole model")
            return
        export_checkpoint(folder, options.output, options.code, audio_model=audio_model)
    print(
        f"{options.output}: AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True) loads it with the public "
        "code, which it fetches from the hub"
    )


if __name__ == "__main__":
    main()
