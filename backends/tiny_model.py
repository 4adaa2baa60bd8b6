"""Makes a tiny chat model with random weights, so that a real engine runs on any machine.

Run as `python tiny_model.py FOLDER`; takes a few seconds and writes 7 MB. Standard library only,
so that any Python can run it. What it says is meaningless; everything around the words is real:
prefill, batching, tools, grammars, log probabilities.
"""

import json
import pydoc_data.topics
import random
import re
import struct
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import NormalDist

VOCABULARY = 4096
HIDDEN = 256
INNER = 512
LAYERS = 2
HEADS = 4
POSITIONS = 131_072
# Clients that set no limit would otherwise run to the end of the context.
DEFAULT_MAX_TOKENS = 96
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOOL_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

# Ids: the marks, then the 256 bytes in their order, then what was merged from them.
MARKS = (*SPECIAL, *TOOL_MARKS)
# What sampling must never hit: marks that open a turn or a tool call by chance, and control
# characters, which some grammars let into a JSON string. The end of a turn and line feeds stay.
UNSAID = {
    *(MARKS.index(mark) for mark in MARKS if mark != "<|im_end|>"),
    *(len(MARKS) + byte for byte in range(32) if byte != 10),
}

# The Hermes layout, which `--tool-call-parser hermes` reads back.
CHAT_TEMPLATE = """\
{%- if tools %}
{{- "<|im_start|>system\\nYou may call these functions:\\n<tools>" }}
{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "\\n</tools>\\nTo call one, answer with" }}
{{- " <tool_call>{\\"name\\": NAME, \\"arguments\\": {...}}</tool_call>" }}
{{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
{{- "<|im_start|>" + message.role + "\\n" }}
{%- if message.role == "tool" %}
{{- "<tool_response>\\n" }}{{- message.content }}{{- "\\n</tool_response>" }}
{%- elif message.content %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function or call %}
{{- "\\n<tool_call>\\n{\\"name\\": " }}{{- function.name | tojson }}{{- ", \\"arguments\\": " }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- "}\\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|im_start|>assistant\\n" }}{%- endif %}
"""


def make(folder: Path) -> None:
    """Writes the model into `folder`, made when absent. The weights are the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in (
        ("config.json", model_config()),
        ("tokenizer.json", tokenizer(corpus())),
        ("tokenizer_config.json", tokenizer_config()),
        ("generation_config.json", generation_config()),
    ):
        (folder / name).write_text(json.dumps(document, ensure_ascii=False))
    # Last, so that a folder with weights is a whole model.
    (folder / "model.safetensors").write_bytes(safetensors(weights(random.Random(0))))


def model_config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": POSITIONS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index("<|im_end|>"),
        "pad_token_id": SPECIAL.index("<|endoftext|>"),
        "dtype": "bfloat16",
    }


def generation_config() -> dict[str, object]:
    return {
        "eos_token_id": SPECIAL.index("<|im_end|>"),
        "pad_token_id": SPECIAL.index("<|endoftext|>"),
        "max_new_tokens": DEFAULT_MAX_TOKENS,
    }


def tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def corpus() -> Counter[str]:
    """Words of English and code with their counts, from the reference that Python carries along."""
    text = "\n".join(pydoc_data.topics.topics.values())
    # Nearly the split of the ByteLevel pre-tokenizer: merges never cross a word's edge.
    words = Counter(re.findall(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+", text))
    for n in range(1000):
        words[str(n)] += 3
        words[f" w{n}"] += 3
    return words


def tokenizer(words: Counter[str]) -> dict[str, object]:
    """A byte-level BPE in the `tokenizer.json` format, its vocabulary full to the last id."""
    letters = byte_letters()
    merges = learn_merges(
        {tuple(letters[byte] for byte in word.encode()): n for word, n in words.items()},
        VOCABULARY - len(MARKS) - len(letters),
    )
    pieces = [*MARKS, *letters, *(left + right for left, right in merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": mark,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": mark in SPECIAL,
            }
            for number, mark in enumerate(MARKS)
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in merges],
        },
    }


def byte_letters() -> list[str]:
    """The letter for each byte, as in GPT-2: itself where it prints, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def learn_merges(words: dict[tuple[str, ...], int], wanted: int) -> list[tuple[str, str]]:
    """Joins the most frequent neighbours, again and again (Sennrich et al., 2016)."""
    spelled = [(list(word), n) for word, n in words.items()]
    counts: Counter[tuple[str, str]] = Counter()
    homes: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for home, (word, n) in enumerate(spelled):
        for pair in zip(word, word[1:], strict=False):
            counts[pair] += n
            homes[pair].add(home)
    merges: list[tuple[str, str]] = []
    known = set[str]()
    while len(merges) < wanted:
        best = max(counts, key=counts.__getitem__)
        # Two ways to one piece would leave an id that no piece has.
        if best[0] + best[1] not in known:
            known.add(best[0] + best[1])
            merges.append(best)
        for home in homes.pop(best):
            word, n = spelled[home]
            for pair in zip(word, word[1:], strict=False):
                counts[pair] -= n
            word[:] = joined(word, best)
            for pair in zip(word, word[1:], strict=False):
                counts[pair] += n
                homes[pair].add(home)
        del counts[best]
    return merges


def joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for letter in word:
        if out and (out[-1], letter) == pair:
            out[-1] += letter
        else:
            out.append(letter)
    return out


def shapes() -> dict[str, tuple[int, ...]]:
    """The weights by name, as the Llama architecture calls them."""
    layer = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (HIDDEN, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    return {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        **{
            f"model.layers.{n}.{name}.weight": shape
            for n in range(LAYERS)
            for name, shape in layer.items()
        },
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }


def weights(rng: random.Random) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Every tensor's name, shape and numbers: matrices from a normal distribution, vectors of ones.

    Place 0 of the hidden state is the same for every token and no layer adds to it, so that a
    row of the output matrix with a low number there is a token that is never drawn.
    """
    # 256 quantiles stand for the distribution, so that a byte of noise makes a weight.
    spread = NormalDist(0.0, HIDDEN**-0.5)
    low, high = column([spread.inv_cdf((n + 0.5) / 256) for n in range(256)])
    for name, shape in shapes().items():
        if len(shape) == 1:
            yield name, shape, bfloat16(1.0) * shape[0]
            continue
        noise = rng.randbytes(shape[0] * shape[1])
        matrix = bytearray(2 * len(noise))
        matrix[0::2], matrix[1::2] = noise.translate(low), noise.translate(high)
        if name.startswith("model.embed"):
            matrix[0 :: 2 * HIDDEN], matrix[1 :: 2 * HIDDEN] = column([0.25] * VOCABULARY)
        elif name.startswith("lm_head"):
            matrix[0 :: 2 * HIDDEN], matrix[1 :: 2 * HIDDEN] = column(
                [-100.0 if row in UNSAID else 0.0 for row in range(VOCABULARY)]
            )
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            matrix[: 2 * shape[1]] = bytes(2 * shape[1])
        yield name, shape, bytes(matrix)


def column(numbers: list[float]) -> tuple[bytes, bytes]:
    """The low and the high bytes of each."""
    pairs = [bfloat16(number) for number in numbers]
    return bytes(pair[0] for pair in pairs), bytes(pair[1] for pair in pairs)


def safetensors(tensors: Iterable[tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """8 bytes little-endian length, a JSON header, then the tensors one after another."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, shape, numbers in tensors:
        span = [len(data), len(data) + len(numbers)]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": span}
        data += numbers
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def bfloat16(number: float) -> bytes:
    """The upper half of the 32-bit float."""
    return struct.pack("<f", number)[2:]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
