"""Answering conversations: tasks and their prompts, `SpeechLM` for whole, batched and streamed answers, harnesses."""
