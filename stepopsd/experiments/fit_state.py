"""What ``fit`` needs to go on after it was cut short."""

from __future__ import annotations

from pathlib import Path

import torch

from stepopsd.train.durable import flush


class FitState:
    """Parameters, optimiser, losses and random numbers in one file that is replaced as a whole.

    Args:
        path: The file.
        every: Optimiser steps between two of them; 0 writes none.

    Example:
        >>> fit(model, rows, config, pad_id=0, state=FitState(Path("fit.pt"), every=200))  # doctest: +SKIP
    """

    def __init__(self, path: Path, *, every: int) -> None:
        self.path, self.every = path, every

    def load(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
        """Restore in place what was saved, if anything was; returns the losses of the steps that are done."""
        if not self.path.exists():
            return []
        saved = torch.load(self.path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        return list(saved["losses"])

    def step(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> None:
        """Save when it is time to, after the step that gave the last of ``losses``."""
        if not self.every or len(losses) % self.every:
            return
        temporary = self.path.with_suffix(".tmp")
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
        torch.save({**saved, "rng": torch.get_rng_state()}, temporary)
        flush(temporary)
        temporary.replace(self.path)

    def remove(self) -> None:
        """Nothing is left to go on with."""
        self.path.unlink(missing_ok=True)
