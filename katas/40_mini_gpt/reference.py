"""A small GPT: the model, its optimiser, batches, training and sampling."""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARAGRAPH = (
    "Overfit one batch first. If the loss will not fall, there is a bug; "
    "if it falls at once, a leak."
)
PROMPT = 8  # letters of it that a sample is given


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a token sees itself and the tokens before it."""

    def __init__(self, n_head: int, n_embd: int, dropout: float) -> None:
        """Make the projections and the dropouts."""
        super().__init__()
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)  # queries, keys and values, side by side
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.attn_dropout = nn.Dropout(dropout)
        self.resid_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the tokens `x` take from each other, like `x`, (B, T, C)."""
        B, T, C = x.shape
        head_size = C // self.n_head
        q, k, v = (
            part.view(B, T, self.n_head, head_size).transpose(1, 2)  # (B, n_head, T, head_size)
            for part in self.c_attn(x).split(C, dim=2)
        )
        scores = q @ k.mT / math.sqrt(head_size)
        visible = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        out = self.attn_dropout(weights) @ v
        return self.resid_dropout(self.c_proj(out.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    """Two layers that work on each token by itself."""

    def __init__(self, n_embd: int, dropout: float) -> None:
        """Make the two layers, four times as wide in between."""
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for the tokens `x`, like `x`, (B, T, C)."""
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    """Attention and MLP; each reads the residual stream through a norm and adds to it."""

    def __init__(self, n_head: int, n_embd: int, dropout: float) -> None:
        """Make both halves, each with a norm of its own."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_head, n_embd, dropout)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = MLP(n_embd, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream after the block, like `x`, (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 of any size, by the names of nanoGPT (https://github.com/karpathy/nanoGPT).

    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float = 0.0,
    ) -> None:
        """Make a model with fresh weights. `n_head` divides `n_embd`."""
        super().__init__()
        self.block_size = block_size
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "drop": nn.Dropout(dropout),
                "h": nn.ModuleList(Block(n_head, n_embd, dropout) for _ in range(n_layer)),
                "ln_f": nn.LayerNorm(n_embd),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight
        self._init_weights(n_layer)

    @torch.no_grad()
    def _init_weights(self, n_layer: int) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                # 2 n_layer of these add to the residual stream; its variance should not grow.
                parameter.normal_(std=0.02 / math.sqrt(2 * n_layer))

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the logits, (B, T, vocab_size), and the loss, (), or None without targets.

        `ids` and `targets` are int64, (B, T). A target is the token that follows, or -1 where none
        counts; the loss is the mean cross-entropy of those that count. ValueError for more than
        `block_size` tokens.
        """
        T = ids.shape[1]
        if self.block_size < T:
            raise ValueError(f"{T} tokens are more than the {self.block_size} of a block")
        places = torch.arange(T, device=ids.device)
        x = self.transformer["wte"](ids) + self.transformer["wpe"](places)
        x = self.transformer["drop"](x)
        for block in self.transformer["h"]:
            x = block(x)
        logits = self.lm_head(self.transformer["ln_f"](x))
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss


def configure_optimizer(model: GPT, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over each parameter once; matrices and embeddings decay, all others do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))


def get_batch(
    ids: Tensor, block_size: int, batch_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return random windows of `ids`, (N,), and the targets of each, (batch_size, block_size).

    A window has a target for each of its tokens, so N > block_size; all are equally likely.
    """
    starts = torch.randint(len(ids) - block_size, (batch_size,), generator=generator)
    places = starts[:, None] + torch.arange(block_size)
    return ids[places], ids[places + 1]


def train(
    model: GPT, ids: Tensor, steps: int, lr: float, batch_size: int, seed: int
) -> Iterator[dict[str, float]]:
    """Train on random windows of `ids`, (N,), and yield the numbers of each step once it is taken.

    They are the loss, the learning rate and the norm of the gradients before they are clipped.
    """
    optimizer = configure_optimizer(model, lr, weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        lr_now = lr * _schedule(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr_now
        _, loss = model(*get_batch(ids, model.block_size, batch_size, generator))
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        yield {"loss": loss.item(), "lr": lr_now, "grad_norm": grad_norm.item()}


def _schedule(step: int, steps: int) -> float:
    """Return a step's share of the learning rate: a line up to 1, half a cosine down to 0.1."""
    warmup = steps // 10
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def generate(
    model: GPT,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return `ids`, (B, T), and behind each row `max_new_tokens` that are drawn one by one.

    The model sees the last `block_size` tokens. With `top_k` only that many of the most likely
    tokens are drawn, and the most likely one with `top_k=1`. There is no dropout.
    """
    with _evaluating(model):
        for _ in range(max_new_tokens):
            logits, _ = model(ids[:, -model.block_size :])
            logits = logits[:, -1] / temperature
            if top_k is not None:
                least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                logits = logits.masked_fill(logits < least, -torch.inf)
            new = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
            ids = torch.cat([ids, new], dim=1)
    return ids


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Overfit one paragraph, letter by letter, in 200 steps unless told; yield a log of it.

    `recited`, each 100 steps and at the end: the share that a greedy sample repeats from the start.
    """
    letters = sorted(set(PARAGRAPH))
    ids = torch.tensor([letters.index(letter) for letter in PARAGRAPH])
    steps = 200 if steps is None else steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT(len(letters), block_size=40, n_layer=2, n_head=4, n_embd=32)
    for done, numbers in enumerate(train(model, ids, steps, 0.02, batch_size=12, seed=seed), 1):
        if done % 100 == 0 or done == steps:
            rest = len(ids) - PROMPT
            sample = generate(model, ids[None, :PROMPT], rest, top_k=1, generator=torch.Generator())
            right = (sample[0] == ids).cumprod(0).sum() / len(ids)
            numbers["recited"] = right.item()
        yield numbers
