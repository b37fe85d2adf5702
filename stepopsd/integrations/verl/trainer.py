"""Trainer modes for ``trainer.v1.trainer_mode``: verl's own, with the advantages shaped before the update."""

from __future__ import annotations

from typing import Any

from stepopsd.integrations.credit import HostCredit
from stepopsd.integrations.hosts import check_host
from stepopsd.integrations.verl.batch import TEACHER, shape_batch
from stepopsd.integrations.verl.expected import TESTED, TRAINER
from stepopsd.integrations.verl.settings import Settings, read_settings

#: Our mode -> verl's.
MODES = {
    "stepopsd": "sync",
    "stepopsd_colocate_async": "colocate_async",
    "stepopsd_separate_async": "separate_async",
}


def register() -> dict[str, type]:
    """Register the modes with the installed verl and return their classes; a second call changes nothing.

    Raises:
        HostMoved: This verl is another one than the adapter was written for.
        ImportError: verl, or what its trainers import, is not there.
    """
    check_host("verl", TRAINER, tested=TESTED)
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, get_trainer_cls, register_trainer

    return {
        mode: TRAINER_REGISTRY[mode]
        if mode in TRAINER_REGISTRY
        else register_trainer(mode)(with_credit(get_trainer_cls(base), base))
        for mode, base in MODES.items()
    }


def with_credit(trainer: type, mode: str) -> type:
    """A subclass of one of verl's trainers that shapes advantages.

    Args:
        trainer: A ``PPOTrainer`` class.
        mode: The mode that it is registered under.
    """

    class CreditTrainer(trainer):
        """verl's trainer with the credit method of the ``stepopsd`` section."""

        def __init__(self, config: Any) -> None:
            self.stepopsd, self.credit = read_credit(config)
            # verl compares the mode with names of its own in a dozen places; once the class is chosen, it is theirs.
            config.trainer.v1.trainer_mode = mode
            super().__init__(config)

        def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
            batch = super()._compute_advantage(batch, metrics)
            return shape_stored(batch, metrics, self.credit, self.stepopsd, update=max(1, self.global_steps))

    CreditTrainer.__name__ = CreditTrainer.__qualname__ = f"StepOpsd{trainer.__name__}"
    return CreditTrainer


def read_credit(config: Any) -> tuple[Settings, HostCredit]:
    """The ``stepopsd`` section and the method it names.

    Raises:
        ValueError: See ``read_settings`` and ``HostCredit``; also a method that needs what verl does not give.
    """
    settings = read_settings(config)
    credit = HostCredit(settings.method, settings.options)
    lacking = ", ".join(sorted(credit.needs()))
    if lacking:
        raise ValueError(f"stepopsd.method {settings.method} needs {lacking}, which verl's batch does not hold")
    if credit.wants_teacher(1) and settings.teacher.source == "none":
        raise ValueError(f"stepopsd.method {settings.method} needs a teacher, but stepopsd.teacher.source is none")
    return settings, credit


def shape_stored(
    batch: Any, metrics: dict[str, Any], credit: HostCredit, settings: Settings, *, update: int
) -> Any:
    """Read the rows' fields from TransferQueue, shape their advantages and write them back.

    Args:
        batch: verl's ``KVBatchMeta``; ``advantages`` must be there already.
        metrics: Taken over by verl; ours begin with ``stepopsd/``.
        credit, settings: From ``read_credit``.
        update: Counted from 1.

    Returns:
        The ``KVBatchMeta`` that TransferQueue answers with.
    """
    import transfer_queue
    from tensordict import TensorDict

    fields = ["uid", "advantages", "response_mask", "loss_mask", "rm_scores", settings.student]
    if credit.wants_teacher(update):
        fields.append(TEACHER)
    data = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    advantages, found = shape_batch(data, batch.keys, credit, update=update, student=settings.student)
    metrics.update(found)
    return transfer_queue.kv_batch_put(
        keys=batch.keys,
        partition_id=batch.partition_id,
        fields=TensorDict({"advantages": advantages}, batch_size=len(batch.keys)),
    )
