"""Credit in a training loop of your own: python examples/custom_loop.py [--steps 30]

A tiny GRU writes five-letter words; the reward counts letters that are right, in order, until the first mistake. The
teacher is the policy with a hint, the word, which the student never sees. The loop is plain PyTorch: what is ours are
`HostCredit` and `grpo_loss`, and any other loss that takes (B, T) advantages would do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import stepopsd
from stepopsd.integrations.credit import HostCredit

LETTERS, START, LENGTH, GROUP = 6, 6, 5, 32
WORD = torch.tensor([3, 1, 4, 1, 5])


class Writer(nn.Module):
    """Next letter from the letters so far and a hint, which is zeros for the student."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.hint = nn.Embedding(LETTERS + 1, 32), nn.Linear(LENGTH * LETTERS, 32)
        self.body, self.head = nn.GRU(32, 32, batch_first=True), nn.Linear(32, LETTERS)

    def forward(self, letters: Tensor, hint: Tensor) -> Tensor:
        return self.head(self.body(self.letters(letters) + self.hint(hint)[:, None])[0])


def shifted(letters: Tensor) -> Tensor:
    return torch.cat([torch.full((len(letters), 1), START), letters[:, :-1]], 1)


@torch.no_grad()
def sample(model: Writer) -> Tensor:
    letters = torch.zeros(GROUP, LENGTH, dtype=torch.long)
    for t in range(LENGTH):
        logits = model(shifted(letters), torch.zeros(GROUP, LENGTH * LETTERS))[:, t]
        letters[:, t] = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    return letters


def main(argv: Sequence[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--credit", default="stepopsd", help="any method of HostCredit")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model, credit = Writer(), HostCredit(args.credit, {"step_norm": "none"})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    nothing, hint = torch.zeros(GROUP, LENGTH * LETTERS), nn.functional.one_hot(WORD, LETTERS).flatten().float()
    curve = []
    for update in range(1, args.steps + 1):
        letters = sample(model)
        rewards = (letters == WORD).long().cumprod(1).sum(1) / LENGTH
        with torch.no_grad():
            told = model(shifted(letters), hint.expand(GROUP, -1)) if credit.wants_teacher(update) else None
            old = stepopsd.token_logprobs(model(shifted(letters), nothing), letters).logprobs
        out = credit.advantages(
            response_mask=torch.ones_like(letters), step_ids=torch.arange(LENGTH).expand(GROUP, -1),
            rewards=rewards, group_ids=torch.zeros(GROUP, dtype=torch.long), student_logprobs=old,
            teacher_logprobs=None if told is None else stepopsd.token_logprobs(told, letters).logprobs, update=update,
        )  # fmt: skip
        logits = model(shifted(letters), nothing)
        loss = stepopsd.grpo_loss(logits, letters, out.advantages, old)
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
        curve.append(float(rewards.mean()))
        if update % 10 == 0:
            print(f"update {update:3d}  reward {curve[-1]:.2f}")
    return curve


if __name__ == "__main__":
    main()
