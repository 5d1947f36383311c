"""Losses of 8 answers of 512 tokens over a vocabulary of 8,000, and a rollout of 128 steps.

There is no operator of PyTorch but for the first: beside the others stands what is written down
where nothing can go wrong, without masks, flags or small differences.
"""

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from dojo.benchmarks.references import Case


def cases(reference):
    """Return the workloads, all float32."""
    logits, labels = torch.randn(8, 512, 8_000), torch.randint(8_000, (8, 512))
    targets = labels[:, 1:].flatten()
    answers = [-100 * torch.rand(4096) for _ in range(4)]
    rewards, values, next_values = (torch.randn(128, 64) for _ in range(3))
    terminated, truncated = (torch.rand(128, 64) < 0.02 for _ in range(2))
    new, old, advantages = (torch.rand(8, 4096) for _ in range(3))
    mask = torch.rand(8, 4096) < 0.9

    def dpo():
        chosen, rejected, ref_chosen, ref_rejected = answers
        margin = (chosen - rejected) - (ref_chosen - ref_rejected)
        return -logsigmoid(0.1 * margin).mean()

    def returns():
        trace, out = torch.zeros(64), []
        for step in range(127, -1, -1):
            delta = rewards[step] + 0.99 * next_values[step] - values[step]
            trace = delta + 0.99 * 0.95 * trace
            out.append(trace)
        return torch.stack(out[::-1])

    def ppo():
        ratio = (new - old).exp()
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        return -surrogate[mask].mean()

    def k3():
        diff = old - new
        return (diff.exp() - diff - 1)[mask].mean()

    def groups():
        table = new[0].view(-1, 8)
        return (table - table.mean(1, keepdim=True)) / (table.std(1, keepdim=True) + 1e-6)

    return [
        Case(
            "sequence_logprobs",
            lambda: reference.sequence_logprobs(logits, labels),
            lambda: cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="none"),
        ),
        Case("dpo_loss", lambda: reference.dpo_loss(*answers, 0.1), dpo),
        Case(
            "gae",
            lambda: reference.gae(rewards, values, next_values, terminated, truncated, 0.99, 0.95),
            returns,
        ),
        Case("ppo_loss", lambda: reference.ppo_loss(new, old, advantages, mask), ppo),
        Case("grpo_advantages", lambda: reference.grpo_advantages(new[0], 8), groups),
        Case("kl_k3", lambda: reference.kl_k3(new, old, mask), k3),
    ]
