"""The learning rate of a step. It is a pure function of the step, so a resumed run needs no scheduler state."""

import math

from ftdist.config.optim import OptimConfig, Schedule


def learning_rate(optim: OptimConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of optimizer step ``step`` (0 is the first) of ``max_steps``.

    During the warm-up the learning rate increases linearly: in step ``s`` it is ``lr * (s + 1) / warmup_steps``. After
    the warm-up it depends on the schedule:

    - constant: It stays at ``lr``.
    - linear: It decreases linearly toward ``lr * min_lr_ratio``, which step ``max_steps`` would have.
    - cosine: It decreases to the same value along half a cosine (Loshchilov & Hutter 2017,
      https://arxiv.org/abs/1608.03983).
    - wsd (warmup-stable-decay): It stays at ``lr`` until the last ``decay_steps`` steps. Over these steps it decreases
      linearly to the same value (Hu et al. 2024, https://arxiv.org/abs/2404.06395).
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule is Schedule.constant:
        return optim.lr
    start = max_steps - optim.decay_steps if optim.schedule is Schedule.wsd else optim.warmup_steps
    progress = min(max(step - start, 0) / max(max_steps - start, 1), 1.0)
    fall = 0.5 * (1 - math.cos(math.pi * progress)) if optim.schedule is Schedule.cosine else progress
    return optim.lr * (1 - fall * (1 - optim.min_lr_ratio))
