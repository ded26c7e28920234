"""Muon for matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch

from .config import OptimizerConfig
from .errors import ConfigError


def check_muon() -> None:
    """Raises ConfigError where torch has none."""
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(
            f"optimizer 'muon' needs torch 2.9 or newer and this is {torch.__version__}; update torch, or"
            " choose adamw"
        )


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon, which takes matrices only, and its AdamW for vectors and kernels of convolutions.

    Updates of matrices are scaled by 0.2·√(max(rows, columns)) to the size of AdamW's (Liu et al. 2025,
    "Muon is Scalable for LLM Training"), so one learning rate suits both.
    """

    def __init__(self, groups: list[dict[str, Any]], config: OptimizerConfig) -> None:
        matrices, others = (
            [
                {**g, "params": some}
                for g in groups
                if (some := [p for p in g["params"] if (p.ndim == 2) == wanted])
            ]
            for wanted in (True, False)
        )
        decay = config.weight_decay
        self._both: list[torch.optim.Optimizer] = []
        if matrices:
            self._both.append(torch.optim.Muon(matrices, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        if others:
            self._both.append(
                torch.optim.AdamW(others, betas=config.betas, eps=config.eps, weight_decay=decay)
            )
        super().__init__([g for one in self._both for g in one.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups and state are those of the whole, which schedules change and files hold."""
        groups = iter(self.param_groups)
        for one in self._both:
            one.param_groups = [next(groups) for _ in one.param_groups]
            one.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for one in self._both:
            one.step()
