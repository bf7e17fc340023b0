"""Learning from what another model says of the same images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far a student is from its teacher, both softened: ``T^2 KL(teacher || student)``.

    The factor keeps gradients about as large at every temperature.

    Args:
        logits: of the student, ``(batch, classes)``; half precision is widened to float32 first.
        teacher: logits of the teacher, of the same shape; gradients do not flow into it.
        temperature: divides both, above 0.

    Returns:
        ``(batch,)`` in nats, 0 or more. Its gradients are those of the cross entropy with the teacher's
        softened probabilities, from which it differs by their entropy.

    Source:
        Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    ours = (logits / temperature).log_softmax(dim=-1)
    theirs = (teacher.detach().to(logits.dtype) / temperature).log_softmax(dim=-1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1) * temperature**2
