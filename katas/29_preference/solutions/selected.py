"""Real tokens are picked out by index first; losses by torch's own loss functions, in float64."""

import torch
import torch.nn.functional as F


def sequence_logprobs(logits, labels, ignore_index=-100):
    wide = logits if logits.dtype == torch.float64 else logits.float()
    targets = labels.clone()[:, 1:]
    row, place = torch.where(targets != ignore_index)
    losses = F.cross_entropy(
        wide[row, place], targets[row, place], reduction="none", ignore_index=-1
    )
    return wide.new_zeros(len(labels)).index_add(0, row, -losses)


def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0):
    policy = torch.stack([policy_chosen, policy_rejected])
    with torch.no_grad():
        ref = torch.stack([ref_chosen, ref_rejected])
    rewards = beta * (policy - ref)
    margins = rewards[0] - rewards[1]
    loss = F.binary_cross_entropy_with_logits(
        margins, torch.full_like(margins, 1 - label_smoothing, requires_grad=False)
    )
    chosen, rejected = rewards.detach()
    return loss, chosen.clone(), rejected.clone()


def gae(rewards, values, next_values, terminated, truncated, gamma, lam):
    """Sum the deltas of each step's future, by the product of what is carried on."""
    steps = rewards.shape[0]
    with torch.no_grad():
        after = torch.where(terminated, torch.zeros_like(next_values), next_values)
        delta = (rewards + gamma * after - values).double()
        carried = gamma * lam * (~(terminated | truncated)).double()
        total, weight = delta.clone(), torch.ones_like(delta)
        for ahead in range(1, steps):
            weight = weight[:-1] * carried[ahead - 1 :][: steps - ahead]
            # weight[t] is now the product of carried[t] to carried[t + ahead - 1].
            if not weight.any():
                break
            total[: steps - ahead] += weight * delta[ahead:]
        advantages = total.to(rewards.dtype)
        return advantages, values + advantages


def ppo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    new = logprobs[mask]
    with torch.no_grad():
        old, gain = old_logprobs[mask], advantages[mask]
    if new.numel() == 0:
        return new.sum()
    ratio = torch.exp(new - old)
    losses = torch.max(-gain * ratio, -gain * torch.clamp(ratio, 1.0 - clip, 1.0 + clip))
    return losses.mean()


def grpo_advantages(rewards, group_size):
    groups, rest = divmod(rewards.numel(), group_size)
    if rest:
        raise ValueError(f"{rest} rewards are left over")
    table = rewards.detach().double().reshape(groups, group_size)
    variance, mean = torch.var_mean(table, dim=-1, keepdim=True, correction=min(1, group_size - 1))
    out = (table - mean) / (variance.sqrt() + 1e-6)
    alike = table.amax(-1, keepdim=True) == table.amin(-1, keepdim=True)
    return torch.where(alike, 0.0, out).to(rewards.dtype).reshape(-1)


def kl_k3(logprobs, ref_logprobs, mask):
    new = logprobs[mask].double()
    ref = ref_logprobs.detach()[mask].double()
    if not len(new):
        return new.sum().to(logprobs.dtype)
    diff = ref - new
    return ((diff.exp() - 1 - diff).sum() / len(new)).to(logprobs.dtype)
