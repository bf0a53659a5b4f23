"""Record what a decoder's attention reads of a text, for `thinformer.data.load_decoder`.

    python tests/data/record_decoder.py MODEL TEXT [TEXT ...]

MODEL is a folder or a name that `from_pretrained` takes. The texts are joined by a newline, and the
first 2,176 tokens are read. Queries, keys and values of two layers are stored as they enter softmax
attention, behind the rotation: those of some heads of keys, and of the query heads that share them.
They are rounded to float16 and coded (``activation_codes.py``). The file also holds the tokens.

The packaged file was made with SmolLM2-135M, in float32, and the documentation of this project:

    python tests/data/record_decoder.py SmolLM2-135M docs/faq.md docs/explanation.md
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from activation_codes import coded
from numpy.typing import NDArray
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

OUTPUT = Path(__file__).resolve().parents[2] / "thinformer" / "data" / "activations" / "decoder.npz"
TOKENS = 2176  # 2,048 of a prompt, and 128 that follow
QUERIES = 384  # latest tokens whose queries are stored
LAYERS = (4, 14)
HEADS = (0, 1)  # of keys


def recorded(
    model: torch.nn.Module, ids: torch.Tensor, layers: tuple[int, ...], heads: tuple[int, ...]
) -> dict[str, NDArray]:
    """Return the arrays layerL_query, layerL_key and layerL_value, (1, tokens, heads, head dim).

    ids : (1, tokens)
    """
    arrays: dict[str, NDArray] = {}

    def take(module, query, key, value, mask, **options):
        group = query.shape[1] // key.shape[1]
        of_heads = [group * h + g for h in heads for g in range(group)]
        if module.layer_idx in layers:
            for role, tensor, some in (("query", query, of_heads), ("key", key, list(heads)),
                                       ("value", value, list(heads))):  # fmt: skip
                array = tensor[:, some].transpose(1, 2).float().numpy()
                arrays[f"layer{module.layer_idx}_{role}"] = array
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    AttentionInterface.register("record_decoder", take)
    model.set_attn_implementation("record_decoder")
    with torch.inference_mode():
        model(ids)
    return arrays


def main() -> None:
    """Record the decoder and the texts that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    text = "\n".join(path.read_text(encoding="utf-8") for path in arguments.text)
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :TOKENS]
    assert ids.shape[1] == TOKENS, f"the texts have only {ids.shape[1]} tokens"
    tokens = [tokenizer.decode(number) for number in ids[0]]
    assert text.startswith("".join(tokens)), "a character is split between tokens"

    stored = {}
    for name, array in recorded(model, ids, LAYERS, HEADS).items():
        part = array[:, -QUERIES:] if name.endswith("query") else array
        stored[name] = part.astype(np.float16)
        print(f"{name}: {part.shape}, largest entry {np.abs(part).max():.1f}")
    stored = coded(stored) | {"tokens": np.array(tokens)}
    for layer in LAYERS:
        stored[f"layer{layer}_heads"] = np.array(HEADS)
    np.savez_compressed(arguments.output, **stored)
    print(f"{arguments.output}: {arguments.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
