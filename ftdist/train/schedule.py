"""The learning rate of a step: a pure function, so that a resumed run needs no state for it."""

import math

from ftdist.config.schema import OptimConfig, Schedule


def learning_rate(optim: OptimConfig, step: int, max_steps: int) -> float:
    """For optimizer step ``step`` (0 is the first) of ``max_steps``.

    Warm-up is linear: step s of it has (s + 1) / warmup_steps of the peak. Then the rate is constant, or falls
    (linear, cosine: Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983) to min_lr_ratio at the end, or
    stays and falls linearly over the last decay_steps (wsd: Hu et al. 2024, https://arxiv.org/abs/2404.06395).
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule is Schedule.constant:
        return optim.lr
    start = max_steps - optim.decay_steps if optim.schedule is Schedule.wsd else optim.warmup_steps
    done = min(max(step - start, 0) / max(max_steps - start, 1), 1.0)
    fall = 0.5 * (1 - math.cos(math.pi * done)) if optim.schedule is Schedule.cosine else done
    return optim.lr * (1 - fall * (1 - optim.min_lr_ratio))
