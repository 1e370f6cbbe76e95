"""The other side of ``benchmarks.against_llama_cpp``: runs under an interpreter that has llama-cpp-python and gguf, and
nothing of ours.

    python benchmarks/llama_side.py convert CONFIG.json WEIGHTS.npz OUT.gguf    # a Llama model, float32
    python benchmarks/llama_side.py quantize IN.gguf OUT.gguf                   # llama.cpp's own Q4_0
    python benchmarks/llama_side.py serve MODEL.gguf f16|f32                    # type of the KV cache

``serve`` answers lines of JSON as ``benchmarks.onnx_side`` does. One call of ``llama_decode`` a token.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

CONTEXT: Final = 512
NAMES: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def convert(config_file: str, weights_file: str, out: str) -> None:
    import gguf  # type: ignore[import-not-found]

    config = json.loads(Path(config_file).read_text())
    heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(0)  # float32
    writer.add_tokenizer_model("no_vocab")  # ids go in and logits come out
    with np.load(weights_file) as weights:
        for name in weights.files:
            matrix = weights[name]
            if name.endswith("q_proj.weight"):
                matrix = pairs_together(matrix, heads)
            elif name.endswith("k_proj.weight"):
                matrix = pairs_together(matrix, kv_heads)
            writer.add_tensor(gguf_name(name), matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Of a tensor of a Hugging Face folder."""
    plain = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in plain:
        return plain[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def pairs_together(matrix: Any, heads: int) -> Any:
    """Rows of each head reordered: llama.cpp rotates neighbours of a Llama, transformers row i and row i + half."""
    rows, columns = matrix.shape
    halves = matrix.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def quantize(source: str, out: str) -> None:
    import llama_cpp  # type: ignore[import-not-found]

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, 1
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), params):
        raise SystemExit("llama.cpp cannot quantize it")


class Model:
    """One context, one thread."""

    def __init__(self, file: str, kv: str) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(file.encode(), model)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = {"f16": 1, "f32": 0}[kv]
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.width = int(llama_cpp.llama_vocab_n_tokens(vocabulary))
        self._one = (llama_cpp.llama_token * 1)()
        self._one_batch = llama_cpp.llama_batch_get_one(self._one, 1)

    def clear(self) -> None:
        self.api.llama_memory_clear(self._memory, True)

    def rewind(self, length: int) -> None:
        if not self.api.llama_memory_seq_rm(self._memory, 0, length, -1):
            raise SystemExit("llama.cpp cannot roll back")

    def take(self, tokens: list[int]) -> Any:
        """Logits after the last of them, a view."""
        if len(tokens) == 1:
            self._one[0] = tokens[0]
            batch = self._one_batch
        else:
            array = (self.api.llama_token * len(tokens))(*tokens)
            batch = self.api.llama_batch_get_one(array, len(tokens))
        if self.api.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp cannot decode")
        row = self.api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(ctypes.cast(row, ctypes.POINTER(ctypes.c_float)), (self.width,))


def logits(model: Any, tokens: list[int], out: str) -> dict[str, Any]:
    """After each of the tokens, taken in one by one."""
    model.clear()
    np.save(out, np.stack([model.take([token]).copy() for token in tokens]))
    return {}


def decode(model: Any, prompt: list[int], count: int) -> dict[str, Any]:
    """Greedily, token by token; the prompt is not timed."""
    model.clear()
    token, tokens = int(np.argmax(model.take(prompt))), []
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(count):
        token = int(np.argmax(model.take([token])))
        tokens.append(token)
    return {"tokens": tokens, "seconds": time.perf_counter() - began, "cpu_s": time.process_time() - busy}


def rollback(model: Any, prompt: list[int], other: list[int]) -> dict[str, Any]:
    """Draft 8, roll back 5, go on with ``other``; against never having drafted those 5. Whether all bits are equal."""

    def drafted(count: int) -> None:
        model.clear()
        token = int(np.argmax(model.take(prompt)))
        for _ in range(count):
            token = int(np.argmax(model.take([token])))

    drafted(8)
    model.rewind(len(prompt) + 3)
    after = [model.take([token]).copy() for token in other]
    drafted(3)
    never = [model.take([token]).copy() for token in other]
    return {"equal": bool(np.array_equal(np.stack(after).view(np.uint32), np.stack(never).view(np.uint32)))}


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def serve(model: Any, before: int) -> None:
    """Answers until standard input ends. ``before``: resident bytes before the model was loaded."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        match asked.pop("do"):
            case "logits":
                answer = logits(model, **asked)
            case "decode":
                answer = decode(model, **asked)
            case "rollback":
                answer = rollback(model, **asked)
            case _:
                answer = {"before": before, "now": resident()}
        print(json.dumps(answer), flush=True)


def main() -> None:
    match sys.argv[1:]:
        case ["convert", config, weights, out]:
            convert(config, weights, out)
        case ["quantize", source, out]:
            quantize(source, out)
        case ["serve", file, kv]:
            import llama_cpp

            _ = llama_cpp
            before = resident()
            serve(Model(file, kv), before)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
