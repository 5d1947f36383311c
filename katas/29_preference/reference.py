"""Preference and policy losses: from DPO on whole answers to PPO and GRPO on their tokens."""

import torch
from torch import Tensor


def sequence_logprobs(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Return the log-probability of each row's labels, (B,), float32 or wider.

    `logits` (B, T, V) at one place predict the label at the next; `labels` (B, T) are int64, and
    those equal to `ignore_index` are left out. A row without any other target gives 0.
    """
    targets = labels[:, 1:]
    logits = logits[:, :-1]
    ignored = targets == ignore_index
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    chosen = logprobs.gather(-1, targets.masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1)
    return chosen.masked_fill(ignored, 0.0).sum(dim=1)


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean DPO loss of a batch, and the rewards of both answers, (B,), detached.

    The four arguments are log-probabilities of whole answers, (B,). `label_smoothing` is the
    share of pairs that are taken to be labelled the wrong way round. Rafailov et al., "Direct
    Preference Optimization", https://arxiv.org/abs/2305.18290, equation 7; Mitchell, "A note on
    DPO with noisy preferences", https://ericmitchell.ai/cdpo.pdf, equation 3.
    """
    chosen_rewards = beta * (policy_chosen - ref_chosen.detach())
    rejected_rewards = beta * (policy_rejected - ref_rejected.detach())
    margin = chosen_rewards - rejected_rewards
    right = torch.nn.functional.logsigmoid(margin)
    wrong = torch.nn.functional.logsigmoid(-margin)
    loss = -(1 - label_smoothing) * right - label_smoothing * wrong
    return loss.mean(), chosen_rewards.detach(), rejected_rewards.detach()


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, both (T, N), without a gradient.

    All tensors are (T, N), steps of environments side by side. `next_values` are those of the
    observations that the steps led to, before any reset. A `terminated` step has no future; after
    a `truncated` one the future is worth its next value, but is no part of the rollout.

    Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    https://arxiv.org/abs/1506.02438, equation 16; Pardo et al., "Time Limits in Reinforcement
    Learning", https://arxiv.org/abs/1712.00378.
    """
    delta = rewards + gamma * next_values.masked_fill(terminated, 0.0) - values
    ended = terminated | truncated
    advantages = torch.empty_like(delta)
    trace = torch.zeros_like(delta[0])
    for step in reversed(range(len(delta))):
        trace = delta[step] + gamma * lam * trace.masked_fill(ended[step], 0.0)
        advantages[step] = trace
    return advantages, advantages + values


def ppo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> Tensor:
    """Return the clipped surrogate loss, the mean over all tokens where `mask` is True.

    All tensors have one shape; the gradient goes to `logprobs` alone. Schulman et al., "Proximal
    Policy Optimization Algorithms", https://arxiv.org/abs/1707.06347, equation 7.
    """
    # Before exp, for a token that is no part of it may hold anything, and 0 * NaN is NaN.
    ratio = (logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0).exp()
    advantages = advantages.detach().masked_fill(~mask, 0.0)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    return -_mean_of_real(surrogate, mask)


@torch.no_grad()
def grpo_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Return each reward's distance from its group's mean in standard deviations, (B,).

    A group is `group_size` neighbours, the answers to one prompt; ValueError if `rewards`, (B,),
    does not consist of whole groups. Groups of equals, or of one, give 0. Shao et al.,
    "DeepSeekMath", https://arxiv.org/abs/2402.03300, section 4.1.2.
    """
    if len(rewards) % group_size != 0:
        raise ValueError(f"{len(rewards)} rewards are not a whole number of groups of {group_size}")
    if group_size == 1:
        return torch.zeros_like(rewards)
    groups = rewards.reshape(-1, group_size)
    # Seen from its first reward, a group of equals is all zeros: a mean of them may be rounded.
    groups = groups - groups[:, :1]
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + 1e-6)).flatten()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return an estimate of KL(policy || reference), the mean over tokens where `mask` is True.

    The tokens are drawn from the policy, whose log-probabilities alone get a gradient. All tensors
    have one shape. It is k3 of Schulman, "Approximating KL Divergence",
    http://joschu.net/blog/kl-approx.html: unbiased and never negative.
    """
    diff = (ref_logprobs.detach() - logprobs).masked_fill(~mask, 0.0)
    return _mean_of_real(torch.expm1(diff) - diff, mask)


def _mean_of_real(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `x`, which is 0 where `mask` is False, over all other tokens, or 0."""
    return x.sum() / mask.sum().clamp(min=1)
