"""Plain loops over rows, steps and tokens, with torch for numbers alone."""

import math

import torch


def sequence_logprobs(logits, labels, ignore_index=-100):
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = []
    for row, ids in zip(logits.to(dtype), labels.tolist(), strict=True):
        terms = [
            scores[label] - scores.logsumexp(0)
            for scores, label in zip(row, ids[1:], strict=False)
            if label != ignore_index
        ]
        out.append(torch.stack(terms).sum() if terms else row.new_zeros(()))
    return torch.stack(out)


def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0):
    losses, chosen_rewards, rejected_rewards = [], [], []
    for chosen, rejected, old_chosen, old_rejected in zip(
        policy_chosen, policy_rejected, ref_chosen.tolist(), ref_rejected.tolist(), strict=True
    ):
        good, bad = beta * (chosen - old_chosen), beta * (rejected - old_rejected)
        margin = good - bad
        if margin > 0:
            right = (-margin).exp().log1p()
            wrong = margin + right
        else:
            wrong = margin.exp().log1p()
            right = wrong - margin
        losses.append((1 - label_smoothing) * right + label_smoothing * wrong)
        chosen_rewards.append(good.detach())
        rejected_rewards.append(bad.detach())
    return sum(losses) / len(losses), torch.stack(chosen_rewards), torch.stack(rejected_rewards)


def gae(rewards, values, next_values, terminated, truncated, gamma, lam):
    advantages = [[0.0] * rewards.shape[1] for _ in rewards]
    for n in range(rewards.shape[1]):
        later = 0.0
        for t in reversed(range(len(rewards))):
            after = 0.0 if terminated[t, n] else next_values[t, n].item()
            if terminated[t, n] or truncated[t, n]:
                later = 0.0
            delta = rewards[t, n].item() + gamma * after - values[t, n].item()
            later = advantages[t][n] = delta + gamma * lam * later
    out = torch.tensor(advantages, dtype=rewards.dtype)
    return out, out + values.detach()


def ppo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    terms = []
    for new, old, advantage, real in zip(
        logprobs.reshape(-1),
        old_logprobs.reshape(-1).tolist(),
        advantages.reshape(-1).tolist(),
        mask.reshape(-1).tolist(),
        strict=True,
    ):
        if real:
            ratio = torch.exp(new - old)
            too_far = ratio > 1 + clip if advantage > 0 else ratio < 1 - clip
            if too_far:
                ratio = ratio.new_tensor(1 + clip if advantage > 0 else 1 - clip)
            terms.append(-ratio * advantage)
    if not terms:
        return logprobs.new_zeros(())
    return torch.stack(terms).mean()


def grpo_advantages(rewards, group_size):
    if rewards.shape[0] % group_size:
        raise ValueError("there is a group that is not whole")
    out = []
    for start in range(0, rewards.shape[0], group_size):
        group = rewards[start : start + group_size].tolist()
        if min(group) == max(group):
            out += [0.0] * group_size
            continue
        mean = math.fsum(group) / group_size
        variance = math.fsum((x - mean) ** 2 for x in group) / (group_size - 1)
        out += [(x - mean) / (math.sqrt(variance) + 1e-6) for x in group]
    return torch.tensor(out, dtype=rewards.dtype)


def kl_k3(logprobs, ref_logprobs, mask):
    total, count = 0.0, 0
    for new, ref, real in zip(
        logprobs.reshape(-1), ref_logprobs.reshape(-1).tolist(), mask.reshape(-1), strict=True
    ):
        if real:
            diff = ref - new.double()
            total = total + torch.expm1(diff) - diff
            count += 1
    if not count:
        return logprobs.new_zeros(())
    return (total / count).to(logprobs.dtype)
