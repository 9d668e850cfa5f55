"""Training throughput of a ViT: images a second of qkv and of transformers, with the same weights, taking turns.

    python benchmarks/vision.py [--threads 1] [--rounds 5] [--shapes nano,tiny]

A step is the forward pass, the backward pass, clipping and AdamW (torch's, fused, for both), on random images. The losses of the first step are compared.
"""

import argparse
import tempfile

import torch
from peers import need, race, ratio

import qkv
from qkv import runtime

need("transformers")
SHAPES = {
    "nano": dict(hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=4, batch=64),
    "mini": dict(
        hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024, image_size=64, patch_size=8, batch=32
    ),
    "tiny": dict(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=224, patch_size=16, batch=8
    ),
}


def stepper(model, pixels, labels, **more):
    """A function that makes one step and returns how many images it saw; and the loss before it. more: what the training loop of qkv asks
    for: the last block for the class token alone, which is all that the head reads."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def loss():
        return torch.nn.functional.cross_entropy(model(pixel_values=pixels, **more)["logits"], labels)

    def step():
        for _ in range(3):
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
        return 3 * len(pixels)

    return step, loss().item()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--shapes", default=",".join(SHAPES))
    a = p.parse_args()
    runtime.keep_memory()
    torch.set_num_threads(a.threads)
    from transformers import ViTConfig, ViTForImageClassification

    for name in a.shapes.split(","):
        shape = dict(SHAPES[name])
        batch = shape.pop("batch")
        torch.manual_seed(0)
        config = ViTConfig(**shape, num_labels=10, attn_implementation="sdpa")
        theirs = ViTForImageClassification(config)
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(folder)
            ours = qkv.load(folder)
        pixels, labels = torch.randn(batch, 3, shape["image_size"], shape["image_size"]), torch.randint(0, 10, (batch,))
        (mine, first), (other, second) = stepper(ours, pixels, labels, whole=False), stepper(theirs, pixels, labels)
        print(f"{name}: {sum(p.numel() for p in ours.parameters()):,} parameters, {batch} images of {shape['image_size']} pixels; "
              f"first losses {first:.5f} and {second:.5f}")  # fmt: skip
        medians = race({"qkv": mine, "transformers": other}, a.rounds, "images/s")
        ratio(medians, "qkv", "transformers")


if __name__ == "__main__":
    main()
