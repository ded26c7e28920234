"""What one process of several can tell without the others."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch.distributed as dist

from in_graph_lora.trainer import processes
from in_graph_lora.trainer.errors import TrainingError


def test_a_torch_without_distributed_trains_alone_and_says_why_not_with_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dist, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torch.distributed.rendezvous", None)
    spec = importlib.util.find_spec(processes.__name__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.Processes.current() is module.ALONE
    with pytest.raises(TrainingError, match=r"built without torch\.distributed"):
        module.join()
