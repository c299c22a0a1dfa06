"""nanoGCG's side of `benchmarks.gcg`: runs in an environment of its own, without robench.

Reads a job (JSON) from standard input; the last line that it prints is its result (JSON).
"""

import json
import logging
import sys
import time

import memory
import torch
from nanogcg.gcg import GCG, GCGConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

job = json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(job["model"])
dtype = getattr(torch, job["dtype"])
model = AutoModelForCausalLM.from_pretrained(job["model"], torch_dtype=dtype)
model.to(job["device"]).eval().requires_grad_(False)
logging.disable(logging.WARNING)


def search(steps: int, message: str, target: str, seed: int) -> float:
    config = GCGConfig(
        num_steps=steps,
        optim_str_init=job["init"],
        search_width=job["width"],
        topk=job["topk"],
        verbosity="ERROR",
    )
    torch.manual_seed(seed)
    gcg = GCG(model, tokenizer, config)
    # Special tokens and embedding rows beyond the tokenizer, which robench does not swap in
    beyond = range(len(tokenizer), model.config.vocab_size)
    banned = torch.tensor([*tokenizer.all_special_ids, *beyond], device=model.device)
    gcg.not_allowed_ids = torch.cat([gcg.not_allowed_ids, banned])
    start = time.perf_counter(), time.process_time()
    best = gcg.run(message, target).best_loss
    times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    starts.append(float(gcg.init_buffer().get_lowest_loss()))
    return best


times: list[tuple[float, float]] = []  # wall clock and processor time
starts: list[float] = []
search(1, *job["behaviors"][0], job["seed"])  # warm up
times.clear()
starts.clear()
memory.reset_peak(job["device"])
best = [search(job["steps"], *behavior, job["seed"]) for behavior in job["behaviors"]]
print(
    json.dumps(
        {
            "seconds": sum(wall for wall, _ in times),
            "cpu": sum(cpu for _, cpu in times),
            "best": best,
            "start": starts,
            "peak": memory.peak(job["device"]),
        }
    )
)
