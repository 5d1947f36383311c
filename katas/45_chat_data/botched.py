"""Chat fine-tuning, from conversations to answers: template, labels, packing, batches, training."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Chat = list[dict[str, str]]  # messages, each with a "role" and a "content"
Row = list["Example"]  # conversations that are packed together

SPECIALS = {"<|bos|>": 256, "<|start|>": 257, "<|header|>": 258, "<|end|>": 259, "<|eot|>": 260}
BOS = SPECIALS["<|bos|>"]
PAD = SPECIALS["<|end|>"]  # there is no token for padding alone
VOCAB_SIZE = 261  # the 256 bytes and the special tokens
IGNORE = -100  # the label of what is not learned
SPECIAL_NAMES = re.compile(f"({'|'.join(map(re.escape, SPECIALS))})")


class Template(NamedTuple):
    """How a turn is written: opening, role, closing, content, end, after."""

    opening: str
    closing: str
    end: str  # the name of one special token
    after: str
    writes_bos: bool  # in front of the conversation
    trims: bool  # takes white space off both ends of a content


CHATML = Template("<|start|>", "\n", "<|end|>", "\n", writes_bos=False, trims=False)
LLAMA = Template("<|start|>", "<|header|>\n\n", "<|eot|>", "", writes_bos=True, trims=True)


class Example(NamedTuple):
    """A conversation in tokens; a label is the token of its own place, or IGNORE."""

    ids: list[int]
    labels: list[int]


class Batch(NamedTuple):
    """Rows of packed examples, all int64 (B, T)."""

    ids: Tensor
    labels: Tensor
    positions: Tensor  # from 0 in each example
    segments: Tensor  # the examples of a row from 1, and 0 for padding


def encode(text: str, specials: bool = False) -> list[int]:
    """Return the UTF-8 bytes of a text; with `specials`, names of special tokens become these."""
    pieces = SPECIAL_NAMES.split(text) if specials else [text]
    tokens = ([SPECIALS[p]] if specials and p in SPECIALS else p.encode() for p in pieces)
    return [token for piece in tokens for token in piece]


def decode(ids: list[int]) -> str:
    """Return the text of bytes and the names of special tokens; invalid bytes become U+FFFD."""
    names = {token: name.encode() for name, token in SPECIALS.items()}
    return b"".join(names.get(i) or bytes([i]) for i in ids).decode(errors="replace")


def pieces_of(chat: Chat, template: Template, prompt: bool) -> Iterator[tuple[str, bool, bool]]:
    """Yield texts, each with whether special tokens count in it and whether it is learned."""
    if template.writes_bos:
        yield "<|bos|>", True, False
    for message in chat:
        content = message["content"].strip() if template.trims else message["content"]
        learned = message["role"] == "assistant"
        yield template.opening + message["role"] + template.closing, True, False
        yield content, False, learned
        yield template.end, True, learned
        yield template.after, True, False
    if prompt:
        yield template.opening + "assistant" + template.closing, True, False


def render(chat: Chat, template: Template, add_generation_prompt: bool = False) -> str:
    """Return a conversation as the template writes it."""
    return "".join(text for text, *_ in pieces_of(chat, template, add_generation_prompt))


def tokenize(chat: Chat, template: Template, add_generation_prompt: bool = False) -> Example:
    """Return a conversation's tokens and labels, with one BOS in front whichever the template."""
    ids, labels = [BOS], [IGNORE]
    for text, specials, learned in pieces_of(chat, template, add_generation_prompt):
        tokens = encode(text, specials)
        ids += tokens
        labels += tokens if learned else [IGNORE] * len(tokens)
    return Example(ids, labels)


def truncate(example: Example, max_length: int) -> Example | None:
    """Return the first `max_length` tokens, or None if nothing of these is learned."""
    ids, labels = example.ids[:max_length], example.labels[:max_length]
    return Example(ids, labels) if any(label != IGNORE for label in labels) else None


def pack(examples: list[Example], capacity: int) -> list[Row]:
    """Return rows of whole examples: each goes into the first row that has room for it."""
    rows: list[Row] = []
    for example in examples:
        room = capacity - len(example.ids)
        row = next((row for row in rows if sum(len(e.ids) for e in row) <= room), None)
        if row is None:
            rows.append(row := [])
        row.append(example)
    return rows


def collate(rows: list[Row], pad_id: int = PAD, side: str = "right") -> Batch:
    """Return a batch of rows, filled up on one side to the longest of them."""
    sizes = [sum(len(example.ids) for example in row) for row in rows]
    batch = torch.tensor([pad_id, IGNORE, 0, 0])[:, None, None].repeat(1, len(rows), max(sizes))
    for values, row, size in zip(batch.unbind(1), rows, sizes, strict=True):
        end = 0 if side == "right" else max(sizes) - size
        for number, (ids, labels) in enumerate(row, 1):
            start, end = end, end + len(ids)
            flat = [ids, labels, list(range(len(ids))), [number] * len(ids)]
            values[:, start:end] = torch.tensor(flat)
    batch[3][batch[0] == pad_id] = 0
    return Batch(*batch)


def attention_mask(segments: Tensor) -> Tensor:
    """Return for (B, T) a bool (B, T, T): a query sees the keys of its segment, up to itself."""
    return ((segments[:, :, None] > 0) == (segments[:, None, :] > 0)).tril()


class TinyLM(nn.Module):
    """Tokens and positions, one layer of attention, one hidden layer, and logits."""

    def __init__(self, dim: int = 64, heads: int = 4, max_positions: int = 128) -> None:
        """Take the width, the number of heads, and the tokens of the longest example."""
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(VOCAB_SIZE, dim)
        self.places = nn.Embedding(max_positions, dim)
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.head = nn.Linear(dim, VOCAB_SIZE)

    def forward(self, ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Map int64 (B, T) to logits (B, T, VOCAB_SIZE)."""
        x = self.tokens(ids) + self.places(positions)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attention_mask(segments)[:, None])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return self.head(x + self.mlp(x))


def target_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of labels (B, T) by logits (B, T, V) of the place before."""
    logits, targets = logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten()
    total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return total / (targets != IGNORE).sum().clamp(min=1)


def train(
    model: nn.Module, rows: list[Row], steps: int, batch_size: int, lr: float, generator: Generator
) -> Iterator[dict[str, float]]:
    """Train by Adam, each epoch with the rows in a new order; yield a line of the log a step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    order: list[int] = []
    for _ in range(steps):
        order = order or torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = order[:batch_size], order[batch_size:]
        batch = collate([rows[i] for i in chosen])
        model.train()
        optimizer.zero_grad()
        loss = target_loss(model(batch.ids, batch.positions, batch.segments), batch.labels)
        loss.backward()
        optimizer.step()
        targets = (batch.labels != IGNORE).sum().item()
        fill = (batch.segments != 0).float().mean().item()
        yield {"loss": loss.item(), "targets": float(targets), "fill": fill}


@torch.no_grad()
def answers(
    model: nn.Module, prompts: list[Chat], template: Template, max_tokens: int, batch_size: int = 64
) -> list[str]:
    """Return the model's next turn to each conversation, the likeliest token each time."""
    model.eval()
    end, texts = SPECIALS[template.end], []
    for start in range(0, len(prompts), batch_size):
        rows = [[tokenize(chat, template, True)] for chat in prompts[start : start + batch_size]]
        ids, _, positions, segments = collate(rows, side="left")
        width = ids.shape[1]
        for _ in range(max_tokens):
            token = model(ids, positions, segments)[:, -1:].argmax(dim=-1)
            ids = torch.cat([ids, token], dim=1)
            positions = torch.cat([positions, torch.full_like(token, positions.shape[1])], dim=1)
            segments = torch.cat([segments, segments[:, -1:]], dim=1)
        for said in ids[:, width:].tolist():
            texts.append(decode(said[: said.index(end)] if end in said else said))
    return texts


PAIRS = [letter + digit for letter in "abcdefghijkl" for digit in "0123456789"]
HELD_OUT = PAIRS[::7]


def chat_of(system: str, *turns: str) -> Chat:
    """Return turns of user and assistant, after the system's message unless that is empty."""
    roles = ["system"] + ["user", "assistant"] * len(turns)
    said = [{"role": r, "content": c} for r, c in zip(roles, (system, *turns), strict=False)]
    return said if system else said[1:]


def draw_chats(days: int, generator: Generator) -> list[Chat]:
    """Return six chats a day: pairs to repeat in capitals, or the day's ticket to know."""

    def draw(choices: Sequence[str]) -> str:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    known = [pair for pair in PAIRS if pair not in HELD_OUT]
    chats = []
    for _ in range(days):
        ticket = draw("0123456789") + draw("0123456789")
        for _ in range(6):
            turns: list[str] = []
            for _ in draw(["", "", "1", "12"]):
                pair = draw(known)
                turns += [draw([""] * 7 + ["?" * 120]) + pair, pair.upper()]
            chats.append(chat_of(draw(["", "", "Be brief."]), *turns or ["ticket", ticket]))
    return chats


def run(seed: int = 0, steps: int | None = None) -> Iterator[dict[str, float]]:
    """Train on 60 days, by default for 200 steps; each twentieth line and the last have `exact`."""
    steps = 200 if steps is None else steps
    generator = Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # initial weights draw from the global generator
        torch.manual_seed(seed)
        model = TinyLM()
    cut = (truncate(tokenize(chat, CHATML), 128) for chat in draw_chats(60, generator))
    rows = pack([example for example in cut if example], 128)
    exam = [chat_of(sys, pair, pair.upper()) for sys in ("", "Be brief.") for pair in HELD_OUT]
    log = train(model, rows, steps=steps, batch_size=8, lr=8e-3, generator=generator)
    for step, line in enumerate(log, 1):
        if step % 20 == 0 or step == steps:
            said = answers(model, [chat[:-1] for chat in exam], CHATML, max_tokens=4)
            right = [a == chat[-1]["content"] for a, chat in zip(said, exam, strict=True)]
            line["exact"] = sum(right) / len(right)
        yield line
