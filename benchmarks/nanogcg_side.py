"""nanoGCG's side of `benchmarks.gcg`: runs in an environment of its own, without robench.

Reads a job (JSON) from standard input; the last line that it prints is what it found (JSON).
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
    # Special tokens and rows of the embedding beyond the tokenizer: robench does not swap them in
    beyond = range(len(tokenizer), model.config.vocab_size)
    banned = torch.tensor([*tokenizer.all_special_ids, *beyond], device=model.device)
    gcg.not_allowed_ids = torch.cat([gcg.not_allowed_ids, banned])
    begin = time.perf_counter(), time.process_time()
    best = gcg.run(message, target).best_loss
    spent.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    starts.append(float(gcg.init_buffer().get_lowest_loss()))
    return best


spent: list[tuple[float, float]] = []
starts: list[float] = []
search(1, *job["behaviors"][0], job["seed"])
spent.clear()
starts.clear()
memory.begin(job["device"])
best = [search(job["steps"], *behavior, job["seed"]) for behavior in job["behaviors"]]
print(
    json.dumps(
        {
            "seconds": sum(wall for wall, _ in spent),
            "cpu": sum(cpu for _, cpu in spent),
            "best": best,
            "start": starts,
            "peak": memory.peak(job["device"]),
        }
    )
)
