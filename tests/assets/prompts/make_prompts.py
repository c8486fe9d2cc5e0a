"""Reduce the reference's prompts, and the Qwen2.5 tokenizer to what they need, with all ids kept.

    python make_prompts.py QWEN2_TOKENIZER_FOLDER CHAT_INPUT_IDS_JSON EVAL_PROMPTS_JSON

The reduced tokenizer holds the 256 bytes, the special tokens, and every merge that is applied in one of the texts. A
merge is applied when it is the first in rank among those possible, so leaving out the others changes nothing for them.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

TYPE = "glm4voice"
EVALUATIONS = ("asr.jsonl", "sqa.jsonl", "libritts.jsonl", "evaluate_seedtts")
HERE = Path(__file__).parent


def main() -> None:
    tokenizer_folder, chat_path, eval_path = map(Path, sys.argv[1:])
    chats = [case for case in read(chat_path)["cases"] if case["audio_tokenizer_type"] == TYPE]
    chats = [{key: case[key] for key in ("conversation", "messages", "input_ids")} for case in chats]
    evaluation = read(eval_path)
    codes = {name: evaluation["audio_table"][f"fake_dir/{name}.wav"]["tokens"] for name in ("q1", "q2", "q3")}
    ids = {
        case.get("file", case["script"]): [item["input_ids"][0] for item in case["items"]]
        for case in evaluation["cases"]
        if case["audio_tokenizer_type"] == TYPE
        and case.get("file", case["script"]) in EVALUATIONS
        and not case.get("speaker_prompt")
        and len(case["default_system_message"]) == ("sqa" in case["script"])
    }
    write(HERE / "prompts.json", {"about": __doc__.splitlines()[0], "chats": chats, "codes": codes, "evaluation": ids})
    texts = [message["content"] for case in chats for message in case["messages"]] + ["system", "user", "assistant"]
    full = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    wanted = {i for row in [*(case["input_ids"] for case in chats), *sum(ids.values(), [])] for i in row}
    texts += [full.decode([i for i in row if i < 151643]) for rows in ids.values() for row in rows]
    wanted |= {i for text in texts for i in full.encode(text).ids}
    reduce_tokenizer(tokenizer_folder, {i for i in wanted if i < full.get_vocab_size()})


def reduce_tokenizer(folder: Path, wanted: set[int]) -> None:
    tokenizer = read(folder / "tokenizer.json")
    model = tokenizer["model"]
    token_of = {i: token for token, i in model["vocab"].items()}
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    rank = {pair: number for number, pair in enumerate(pairs)}
    kept: set[tuple[str, str]] = set()
    for i in wanted & token_of.keys():
        kept |= applied_merges(token_of[i], rank)
    tokens = {token for i, token in token_of.items() if i < 256} | {left + right for left, right in kept}
    model["vocab"] = {token: model["vocab"][token] for token in sorted(tokens, key=model["vocab"].get)}
    model["vocab"] |= {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    model["merges"] = [list(pair) for pair in pairs if pair in kept]
    write(HERE / "tokenizer.json", tokenizer)
    write(HERE / "tokenizer_config.json", read(folder / "tokenizer_config.json"))


def applied_merges(token: str, rank: dict[tuple[str, str], int]) -> set[tuple[str, str]]:
    """Return the merges that byte-pair encoding applies to build `token` from its bytes."""
    parts, applied = list(token), set()
    while len(parts) > 1:
        place = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), len(rank)))
        pair = (parts[place], parts[place + 1])
        assert pair in rank, f"{token!r} cannot be built"
        applied.add(pair)
        parts[place : place + 2] = ["".join(pair)]
    return applied


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
