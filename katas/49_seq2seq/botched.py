"""An encoder-decoder that learns to reverse and to sort strings: data, model, loss, decoding."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

LETTERS = "abcdefghij"
PAD, BOS, EOS, REVERSE, SORT = range(5)
VOCAB_SIZE = SORT + 1 + len(LETTERS)

Example = tuple[list[int], list[int]]  # tokens of the source, and of the answer
Batch = tuple[Tensor, Tensor, Tensor]  # source (N, S), decoder_input (N, T), labels (N, T)


def encode_example(task: int, text: str) -> Example:
    """Return the source, `text` and the task's token, and the answer, all as tokens."""
    answer = text[::-1] if task == REVERSE else "".join(sorted(text))
    source, target = ([SORT + 1 + LETTERS.index(letter) for letter in s] for s in (text, answer))
    return [*source, task], target


def draw_examples(count: int, lengths: Sequence[int], generator: torch.Generator) -> list[Example]:
    """Draw examples of either task: strings of one of `lengths`, without a letter twice."""
    tasks = torch.randint(REVERSE, SORT + 1, (count,), generator=generator)
    sizes = torch.randint(len(lengths), (count,), generator=generator)
    orders = torch.rand(count, len(LETTERS), generator=generator).argsort(dim=1)
    return [
        encode_example(task, "".join(LETTERS[i] for i in order[: lengths[size]]))
        for task, size, order in zip(tasks.tolist(), sizes.tolist(), orders.tolist(), strict=True)
    ]


def collate(examples: Sequence[Example]) -> Batch:
    """Make a batch for teacher forcing: PAD to the right, and each label is the next input."""
    sources = [torch.tensor(source) for source, _ in examples]
    targets = [torch.tensor([BOS, *answer, EOS]) for _, answer in examples]
    source, target = (pad_sequence(rows, True, PAD) for rows in (sources, targets))
    return source, target[:, :-1], target[:, 1:]


def sinusoids(length: int, d_model: int) -> Tensor:
    """Return the code of positions 0 to length - 1, (length, d_model), sines at even columns."""
    # Vaswani et al., "Attention Is All You Need", 2017, has 10,000; these strings are short.
    frequencies = 100 ** (-torch.arange(0, d_model, 2) / d_model)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class Attention(nn.Module):
    """Attention with several heads, of queries from one sequence to keys of another or the same."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        """Make the four projections. `n_heads` divides `d_model`."""
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Return what `x` (N, T, D) takes from `memory` (N, S, D), like `x`.

        `visible`, bool and broadcastable to (N, T, S), says which keys a query sees.
        """
        q = self._split(self.query(x))  # (N, heads, T, D / heads)
        k, v = self._split(self.key(memory)), self._split(self.value(memory))
        scores = q @ k.mT / math.sqrt(q.shape[-1])  # (N, heads, T, S)
        weights = scores.masked_fill(~visible[:, None], -math.inf).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Attention to itself, in a decoder also to the memory, and two layers for each token."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, *, decoder: bool) -> None:
        """Make the parts; each reads the residual stream through a norm of its own."""
        super().__init__()
        self.norm_1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        if decoder:
            self.norm_2 = nn.LayerNorm(d_model)
            self.cross_attention = Attention(d_model, n_heads)
        self.norm_3 = nn.LayerNorm(d_model)
        self.ff = nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))

    def forward(self, x: Tensor, visible: Tensor, *memory: Tensor) -> Tensor:
        """Map (N, T, D) to (N, T, D); `memory` is that, and what of it is visible."""
        h = self.norm_1(x)
        x = x + self.attention(h, h, visible)
        if memory:
            x = x + self.cross_attention(self.norm_2(x), *memory)
        return x + self.ff(self.norm_3(x))


class Seq2Seq(nn.Module):
    """A Transformer from source tokens to target tokens, with norms before each part."""

    def __init__(
        self, vocab_size: int, d_model: int, n_heads: int, n_layers: int, d_ff: int
    ) -> None:
        """Make a model with fresh weights; source and target share their embedding."""
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.encoder, self.decoder = (
            nn.ModuleList(Layer(d_model, n_heads, d_ff, decoder=side) for _ in range(n_layers))
            for side in (False, True)
        )
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder_norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)

    def embed(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, T) to vectors (N, T, D) that know their position in the row."""
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return x + sinusoids(*x.shape[1:])

    def encode(self, source: Tensor) -> Tensor:
        """Map source tokens (N, S) to the memory (N, S, D)."""
        visible = (source != PAD)[:, None]
        x = self.embed(source)
        for layer in self.encoder:
            x = layer(x, visible)
        return self.encoder_norm(x)

    def decode(self, decoder_input: Tensor, memory: Tensor, source: Tensor) -> Tensor:
        """Map tokens (N, T) that begin with BOS to logits (N, T, vocab_size) of the next ones."""
        length = decoder_input.shape[1]
        causal = torch.ones(1, length, length, dtype=torch.bool).tril()
        visible = (memory != PAD).any(dim=-1).view_as(source)[:, None]
        x = self.embed(decoder_input)
        for layer in self.decoder:
            x = layer(x, causal, memory, visible)
        return self.head(self.decoder_norm(x))

    def forward(self, source: Tensor, decoder_input: Tensor) -> Tensor:
        """Map a batch to logits (N, T, vocab_size)."""
        return self.decode(decoder_input, self.encode(source), source)


def sequence_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy, (), over all labels (N, T) that are not PAD.

    A label has the probability 1 - smoothing, and all classes share the rest evenly.
    """
    log_probs = logits.log_softmax(dim=-1)
    one = F.nll_loss(log_probs.mT, labels, reduction="none")
    every = -log_probs.mean(dim=-1)
    losses = (1 - smoothing) * one + smoothing * every
    return (losses * (labels != PAD)).mean()


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of `step`, from 0: up in a line to `peak`, then down, to 0 after the last."""
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1))


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, smoothing: float
) -> float:
    """Take one step by teacher forcing, and return the loss before it."""
    source, decoder_input, labels = batch
    loss = sequence_loss(model(source, decoder_input), labels, smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def greedy_decode(model: nn.Module, source: Tensor, max_new_tokens: int) -> Tensor:
    """Return the likeliest token after token (N, max_new_tokens): a row to its EOS, then PAD."""
    memory = model.encode(source)
    tokens = torch.full((len(source), 1 + max_new_tokens), PAD)
    tokens[:, 0] = BOS
    finished = torch.zeros(len(source), dtype=torch.bool)
    for end in range(1, 1 + max_new_tokens):
        logits = model.decode(tokens[:, :end], memory, source)[:, -1]
        logits[:, PAD] = -math.inf
        tokens[:, end] = logits.argmax(dim=-1)
        finished |= tokens[:, end] == EOS
        if finished.all():
            break
    return tokens[:, 1:]


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: Sequence[Example], batch_size: int = 64
) -> tuple[float, float]:
    """Return the mean loss of a token, and the share of answers that are decoded exactly."""
    loss, count, exact = 0.0, 0, 0
    for start in range(0, len(examples), batch_size):
        source, decoder_input, labels = collate(examples[start : start + batch_size])
        real = int((labels != PAD).sum())
        loss += sequence_loss(model(source, decoder_input), labels).item() * real
        count += real
        decoded = greedy_decode(model, source, max_new_tokens=labels.shape[1])
        exact += int(((decoded == labels) | (labels <= EOS)).all(dim=1).sum())
    return loss / count, exact / len(examples)


def train(
    model: nn.Module,
    held_out: Sequence[Example],
    *,
    lengths: Sequence[int],
    steps: int,
    batch_size: int,
    lr: float,
    warmup: int,
    smoothing: float,
    generator: torch.Generator,
) -> Iterator[dict[str, float]]:
    """Train on fresh examples at each step, and yield a line of the log after it."""
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True)
    for step in range(steps):
        rate = learning_rate(step, steps, warmup, lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = collate(draw_examples(batch_size, lengths, generator))
        log = {"lr": rate, "loss": train_step(model, optimizer, batch, smoothing)}
        if (step + 1) % 50 == 0 or step + 1 == steps:
            log["val_loss"], log["exact_match"] = evaluate(model, held_out)
        yield log


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Learn from strings of 1 to 8 letters but 4 and 6, and be tested on those of 4 and 6."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the global generator
        torch.manual_seed(seed)
        model = Seq2Seq(VOCAB_SIZE, d_model=48, n_heads=4, n_layers=1, d_ff=96)
    held_out = draw_examples(200, (4, 6), generator)
    yield from train(
        model,
        held_out,
        lengths=(1, 2, 3, 5, 7, 8),
        steps=300 if steps is None else steps,
        batch_size=64,
        lr=1e-2,
        warmup=40,
        smoothing=0.1,
        generator=generator,
    )
