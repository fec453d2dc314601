"""The learning rate of a step. It is a pure function of the step, so a resumed run needs no scheduler state."""

import math

from ftdist.config.schema import OptimConfig, Schedule


def learning_rate(optim: OptimConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of optimizer step ``step`` (0 is the first) of ``max_steps``.

    The warm-up is linear: step s of it has (s + 1) / warmup_steps of the peak. What follows depends on the schedule:

    - constant: the peak.
    - linear: falls linearly to min_lr_ratio of the peak at the end.
    - cosine: falls to the same value along a cosine (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983).
    - wsd: the peak, then a linear fall over the last decay_steps (Hu et al. 2024, https://arxiv.org/abs/2404.06395).
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule is Schedule.constant:
        return optim.lr
    start = max_steps - optim.decay_steps if optim.schedule is Schedule.wsd else optim.warmup_steps
    progress = min(max(step - start, 0) / max(max_steps - start, 1), 1.0)
    fall = 0.5 * (1 - math.cos(math.pi * progress)) if optim.schedule is Schedule.cosine else progress
    return optim.lr * (1 - fall * (1 - optim.min_lr_ratio))
