"""What a stranger does with a model folder: nothing but torch and transformers. Run as a script by test_export.py.

stranger.py FOLDER REQUEST TARGET writes TARGET.json and TARGET.npy. With TRUST=yes in the environment it runs the code
that lies beside the weights.
"""

import importlib.util
import json
import os
import sys

import numpy as np
import torch
from transformers import pipeline


NEW_TOKENS = 32
SAMPLES = 64


def main(folder: str, request: str, target: str) -> None:
    write = pipeline("text-generation", model=folder, trust_remote_code=os.environ.get("TRUST") == "yes")
    model, tokenizer = write.model, write.tokenizer
    messages = [{"role": "user", "content": request}]
    greedy = write(messages, do_sample=False, max_new_tokens=NEW_TOKENS)[0]["generated_text"][-1]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW_TOKENS, "num_return_sequences": SAMPLES}
    torch.manual_seed(0)
    sampled = model.generate(**prompt, **options)[:, prompt["input_ids"].shape[1] :]
    ids = torch.randint(model.config.vocab_size, (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        np.save(f"{target}.npy", model(ids).logits.numpy())
    found = {
        "fledge_installed": importlib.util.find_spec("fledge") is not None,
        "model": type(model).__name__,
        "greedy": greedy,
        "sampled": sampled.tolist(),
        "rendered": tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False),
        "special_ids": {
            name: [getattr(part, f"{name}_token_id") for part in (tokenizer, model.config, model.generation_config)]
            for name in ("pad", "bos", "eos")
        },
    }
    with open(f"{target}.json", "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
