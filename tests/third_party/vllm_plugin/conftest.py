"""Tests of the vLLM plug-in, in its own environment; without vLLM they are skipped."""

import os
from importlib.util import find_spec

if find_spec("vllm") is not None:  # before vLLM is imported, which reads them
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process, so that tests reach its model
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
