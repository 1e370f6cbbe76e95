"""The other side of ``benchmarks.against_vllm``: runs under an interpreter that has vLLM, and nothing of ours.

    python benchmarks/vllm_side.py MODEL MAX_NUM_SEQS

Reads a line of JSON for each turn ({"prompts": [[ids]], "max_tokens": n}) and prints {"tokens": n, "seconds": s}.
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    model, seats = sys.argv[1], int(sys.argv[2])
    llm = LLM(model=model, dtype="bfloat16", max_model_len=1024, max_num_seqs=seats, enable_prefix_caching=False)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        turn = json.loads(line)
        sampling = SamplingParams(temperature=0.8, max_tokens=turn["max_tokens"], ignore_eos=True)
        inputs = [{"prompt_token_ids": ids} for ids in turn["prompts"]]
        began = time.perf_counter()
        outputs = llm.generate(inputs, sampling, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
