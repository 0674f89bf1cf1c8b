"""Train the model: a Llama of 4.7 million parameters, from scratch, on documents of the corpus.

    python models/recipe/train.py FOLDER --steps 8500

FOLDER holds the tokenizer (see vocabulary.py) and becomes a transformers folder. Runs on a CUDA GPU where there is
one, else on the CPU. A checkpoint is written every few minutes; the same command goes on from it. The learning rate is
constant and falls over the last 30 percent, so that a run which turns out slow may be ended with fewer steps.
"""

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from corpus import documents
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from vocabulary import END, PAD, answered, asked, judged

SEED = 6
BATCH = 30
"""Questions per step, each with responses to learn and one to judge."""
CAREFUL_BATCH = 45
"""Questions per step where there is one response to learn: about as many tokens."""
CAREFUL_STEPS = 3136
"""Training begins with careful solvers alone: half and half of two ways would teach neither of them."""
HELD, HELD_STEPS = 0.6, 4200
"""Then this share of the responses is by the solvers of the problem, until the model knows one by its first steps."""
MIXING_STEPS = 400
"""Then the share rises evenly to all."""
VERDICT_WEIGHT = 10.0
"""What a verdict counts in the loss, in tokens: it is one token of many."""
POOL = 16
"""Steps whose documents are sorted by length together, so that little is padded."""
LEARNING_RATE = 4e-3
WARMUP = 60
FALL = 0.3
"""Share of the steps over which the learning rate falls to nothing."""
CHECKPOINT_S = 120


def make_model(vocabulary: int, end: int, pad: int) -> LlamaForCausalLM:
    """The model with random weights."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True, slots=True)
class Batch:
    """Questions, each with its responses one after the other, which do not see each other."""

    token_ids: torch.Tensor  # [b, s]
    """Question, then the responses; filled up on the right."""
    positions: torch.Tensor  # [b, s]
    """Every response goes on where the question ends."""
    seen: torch.Tensor  # [b, 1, s, s]
    """Which earlier tokens each token sees: those of the question, and those of its own response."""
    targets: torch.Tensor  # [b, s]
    """The next token of the response, or the verdict; -100 where nothing is to be learned."""
    weights: torch.Tensor  # [b, s]
    """What each target counts."""

    @classmethod
    def of(cls, documents: list[list[list[int]]], fill: int) -> "Batch":
        """Lay out documents, each the token ids of the question, of responses, and of one that ends in a verdict."""
        length = max(sum(map(len, document)) for document in documents)
        length = -(-length // 32) * 32  # few lengths, so that freed memory fits again
        shape = (len(documents), length)
        token_ids, positions = torch.full(shape, fill), torch.zeros(shape, dtype=torch.long)
        targets, weights, parts = torch.full(shape, -100), torch.ones(shape), torch.full(shape, -1)
        for row, document in enumerate(documents):
            question, *learned, judged = document
            begin = 0
            for part, ids in enumerate(document):
                place = slice(begin, begin + len(ids))
                token_ids[row, place], parts[row, place] = torch.tensor(ids), part
                first = len(question) if part else 0
                positions[row, place] = torch.arange(first, first + len(ids))
                if 0 < part <= len(learned):
                    targets[row, begin : place.stop - 1] = torch.tensor(ids[1:])
                begin = place.stop
            targets[row, begin - 2] = judged[-1]
            weights[row, begin - 2] = VERDICT_WEIGHT
        own = parts[:, :, None] == parts[:, None, :]
        earlier = torch.ones(length, length, dtype=torch.bool).tril()
        seen = (own | (parts[:, None, :] == 0)) & earlier
        return cls(token_ids, positions, seen[:, None], targets, weights)


class Batches(IterableDataset[Batch]):
    """What is learned from step number `step` on."""

    def __init__(self, tokenizer: Tokenizer, step: int) -> None:
        """Begin with step number `step`."""
        self.tokenizer = tokenizer
        self.step = step

    def __iter__(self) -> Iterator[Batch]:
        """Yield batch after batch, without an end."""
        pool, skipped = divmod(self.step, POOL)
        while True:
            for group in self.draw(pool)[skipped:]:
                yield Batch.of(group, self.tokenizer.token_to_id(PAD))
            pool, skipped = pool + 1, 0

    def draw(self, pool: int) -> list[list[list[list[int]]]]:
        """Token ids of the documents of `POOL` steps: question, responses, judged response."""
        risen = min(1.0, max(0.0, (pool * POOL - CAREFUL_STEPS - HELD_STEPS) / MIXING_STEPS))
        mixed = HELD + risen * (1 - HELD) if pool * POOL >= CAREFUL_STEPS else 0.0
        size = BATCH if mixed else CAREFUL_BATCH
        drawn = documents(SEED, pool * POOL * size, POOL * size, mixed=mixed)
        texts = [
            text
            for each in drawn
            for text in (
                asked(each.problem.question),
                *map(answered, each.responses),
                judged(each.judged, each.verdict),
            )
        ]
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        parts = len(ids) // (POOL * size)
        every = [ids[start : start + parts] for start in range(0, len(ids), parts)]
        every.sort(key=lambda document: sum(map(len, document)))
        groups = [every[start : start + size] for start in range(0, len(every), size)]
        random.Random(f"{SEED} {pool}").shuffle(groups)
        return groups


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def factor(step: int, steps: int) -> float:
    """Share of the learning rate at a step."""
    return min(1.0, (step + 1) / WARMUP, (steps - step) / (steps * FALL))


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--steps", type=int, default=8500, show_default=True)
@click.option("--stop-at", type=int, help="End at this step without finishing, to go on later.")
def main(folder: Path, steps: int, stop_at: int | None) -> None:
    """Train from the last checkpoint, or from the start, to the end."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(tokenizer.get_vocab_size(), tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)).to(device)
    optimizing = optimizers(model)
    checkpoint, step = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizing, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step = state["step"]
    parameters = sum(weight.numel() for weight in model.parameters())
    click.echo(f"{parameters:,} parameters, step {step}, on {device}", err=True)

    def save(done: int) -> None:
        temporary = checkpoint.with_suffix(".tmp")
        saved = [optimizer.state_dict() for optimizer in optimizing]
        torch.save({"model": model.state_dict(), "optimizers": saved, "step": done}, temporary)
        temporary.replace(checkpoint)

    begun = saved_at = time.monotonic()
    tokens, losses, verdict_losses = 0, [], []
    # Written beside the training, when a core has nothing better to do.
    drawing = {"num_workers": 1, "prefetch_factor": 2 * POOL, "worker_init_fn": lambda _: os.nice(10)}
    for batch in DataLoader(Batches(tokenizer, step), batch_size=None, **drawing):
        if step >= min(steps, stop_at or steps):
            break
        for optimizer in optimizing:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * factor(step, steps)
        token_ids, targets = batch.token_ids.to(device), batch.targets.to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            states = model.model(
                input_ids=token_ids,
                position_ids=batch.positions.to(device),
                attention_mask=batch.seen.to(device),
                use_cache=False,
            ).last_hidden_state
            learned = targets != -100
            logits = model.lm_head(states[learned])
        weights = batch.weights.to(device)[learned]
        losses_of_targets = cross_entropy(logits.float(), targets[learned], reduction="none")
        loss = (losses_of_targets * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizing:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        tokens += token_ids.numel()
        verdicts = weights > 1
        losses.append(losses_of_targets[~verdicts].mean().item())
        verdict_losses.append(losses_of_targets[verdicts].mean().item())
        if step % 20 == 0:
            elapsed = time.monotonic() - begun
            mean, verdict = (sum(each[-20:]) / len(each[-20:]) for each in (losses, verdict_losses))
            speed = f"{tokens / elapsed:.0f} tokens/s, {elapsed:.0f} s"
            click.echo(f"step {step} of {steps}: loss {mean:.4f}, of verdicts {verdict:.4f}; {speed}", err=True)
        if time.monotonic() - saved_at > CHECKPOINT_S:
            save(step)
            saved_at = time.monotonic()
    save(step)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.token_to_id(END), do_sample=True, temperature=1.0)
    model.save_pretrained(folder)
    click.echo(f"step {step}: written to {folder}", err=True)


if __name__ == "__main__":
    main()
