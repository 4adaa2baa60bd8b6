"""The random model: whole, the same every time, and readable by the engine's own libraries."""

import json
import os
import random
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from backends import install, tiny_model

# What the engine's own libraries say of the folder.
READ_BACK = """
import json, sys
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer
folder = sys.argv[1]
text = 'Hello, what is 12 + 34? {"name": "x"} \\u00e9\\u6f22\\U0001f600 <tool_call>\\n'
tokenizer = Tokenizer.from_file(folder + "/tokenizer.json")
with safe_open(folder + "/model.safetensors", "pt") as tensors:
    spread = float(tensors.get_tensor("model.layers.0.mlp.up_proj.weight").float().std())
    names = len(tensors.keys())
tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
chat = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}]},
    {"role": "tool", "content": "sunny"},
]
print(json.dumps({
    "size": tokenizer.get_vocab_size(), "names": names, "spread": spread,
    "same": tokenizer.decode(tokenizer.encode(text).ids) == text,
    "prompt": AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, tools=tools, add_generation_prompt=True, tokenize=False),
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    tiny_model.make(made)
    return made


def test_a_made_folder_is_a_whole_model_that_limits_its_answers(folder: Path) -> None:
    documents = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert documents["generation_config.json"]["max_new_tokens"] == 96
    assert documents["config.json"]["vocab_size"] == 4096
    assert documents["config.json"]["max_position_embeddings"] == 131072
    vocabulary = documents["tokenizer.json"]["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(4096))
    assert [mark["id"] for mark in documents["tokenizer.json"]["added_tokens"]] == list(range(7))
    assert "tool_call" in documents["tokenizer_config.json"]["chat_template"]


def test_the_tensors_fill_the_file_without_a_gap(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    del header["__metadata__"]
    spans = sorted(tensor["data_offsets"] for tensor in header.values())
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    assert spans[0][0] == 0
    assert spans[-1][1] == len(data) - 8 - length
    assert {name: tuple(t["shape"]) for name, t in header.items()} == tiny_model.shapes()


def test_the_weights_are_the_same_every_time(folder: Path) -> None:
    again = tiny_model.safetensors(tiny_model.weights(random.Random(0)))
    assert again == (folder / "model.safetensors").read_bytes()


def test_marks_and_control_characters_are_never_drawn_and_the_end_of_a_turn_is() -> None:
    numbers = next(
        n for name, _, n in tiny_model.weights(random.Random(0)) if name == "lm_head.weight"
    )
    row = 2 * tiny_model.HIDDEN
    first = [numbers[row * n : row * n + 2] for n in range(tiny_model.VOCABULARY)]
    low = {n for n, number in enumerate(first) if number == tiny_model.bfloat16(-100.0)}
    assert low == tiny_model.UNSAID
    assert all(number == bytes(2) for n, number in enumerate(first) if n not in low)
    assert tiny_model.MARKS.index("<|im_end|>") not in low
    assert tiny_model.MARKS.index("<tool_call>") in low
    letters = tiny_model.byte_letters()
    assert letters[0x1B] == "\u011b"
    assert len(tiny_model.MARKS) + 0x1B in low
    assert len(tiny_model.MARKS) + ord("\n") not in low


def test_the_most_frequent_neighbours_are_joined_first() -> None:
    words = {("a", "b", "a", "b"): 3, ("b", "c"): 4, ("a", "b", "c"): 1}
    assert tiny_model.learn_merges(words, 3) == [("a", "b"), ("b", "c"), ("ab", "ab")]


@pytest.mark.e2e
def test_the_engines_libraries_read_the_model_it_made(tmp_path: Path) -> None:
    python = install.found(os.environ)
    if python is None:
        pytest.skip("no engine is installed to read it: `fairgate up` installs one")
    subprocess.run([python, tiny_model.__file__, tmp_path / "m"], check=True)
    read = subprocess.run(
        [python, "-c", READ_BACK, tmp_path / "m"], check=True, capture_output=True, text=True
    )
    seen = json.loads(read.stdout.splitlines()[-1])
    assert seen["size"] == 4096
    assert seen["names"] == len(tiny_model.shapes())
    assert seen["spread"] == pytest.approx(1 / 16, rel=0.02)
    assert seen["same"]
    assert seen["prompt"].startswith("<|im_start|>system\nYou may call these functions:\n<tools>")
    assert (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
        in (seen["prompt"])
    )
    assert "<tool_response>\nsunny\n</tool_response>" in seen["prompt"]
    assert seen["prompt"].endswith("<|im_start|>assistant\n")
