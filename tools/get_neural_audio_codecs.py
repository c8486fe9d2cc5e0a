"""Compare audio tokenizers on a folder of speech; `--help` shows the options of `evaluation.compare_codecs`.

python tools/get_neural_audio_codecs.py --audio DIR --output outputs/codecs --codec glm4voice
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "evaluation.compare_codecs", *sys.argv[1:]]
    sys.exit(subprocess.call(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}))


if __name__ == "__main__":
    main()
