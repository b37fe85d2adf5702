"""A search tool inside TRL's GRPO, with credit per tool call: TRL plays the tools, the steps are found in its masks.

    python examples/trl_search.py --model Qwen/Qwen3-0.6B

Needs `pip install 'stepopsd[trl]'` and a model whose chat template knows tools.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from stepopsd.integrations.trl import StepOPSDGRPOTrainer
from stepopsd.retrieval import Passage
from stepopsd.retrieval.opening import open_retriever

PASSAGES = [
    Passage("0", "mercury", "mercury is the planet closest to the sun"),
    Passage("1", "venus", "venus is the hottest planet"),
    Passage("2", "jupiter", "jupiter is the largest planet and has a red spot"),
]
QUESTIONS = [("which planet is closest to the sun", "mercury"), ("which planet has a red spot", "jupiter")]


class Encyclopedia:
    """One question: public methods are tools, TRL calls ``reset`` with the dataset's row."""

    def __init__(self) -> None:
        self.retriever = open_retriever(PASSAGES)

    def reset(self, **row) -> None:
        """Nothing is left over from the question before."""

    def search(self, query: str) -> str:
        """Look something up in the encyclopedia.

        Args:
            query: A few words to look for.

        Returns:
            The best passage.
        """
        found = self.retriever.search([query], k=1)[0]
        return found[0].text if found else "nothing was found"


def answered(completions, answer, **columns) -> list[float]:
    """1 where the last message holds the answer."""
    last = [str(messages[-1].get("content") or "") for messages in completions]
    return [float(right in text.lower()) for text, right in zip(last, answer, strict=True)]


def main(argv: Sequence[str] | None = None) -> StepOPSDGRPOTrainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name on the hub")
    parser.add_argument("--credit", default="stepopsd")
    parser.add_argument("--span", default="action_only", help="or clean_step_no_observation: all of a turn")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--out", default="runs/trl_search")
    args = parser.parse_args(argv)

    rows = {
        "prompt": [[{"role": "user", "content": question}] for question, _ in QUESTIONS],
        "answer": [right for _, right in QUESTIONS],
    }
    trainer = StepOPSDGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(args.model),
        reward_funcs=answered,
        args=GRPOConfig(
            output_dir=args.out, max_steps=args.steps, per_device_train_batch_size=args.group,
            num_generations=args.group, max_completion_length=args.max_tokens, max_tool_calling_iterations=2,
            learning_rate=args.lr, logging_steps=1, save_strategy="no", report_to="none", bf16=False,
        ),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        train_dataset=Dataset.from_dict(rows),
        environment_factory=Encyclopedia,
        credit=args.credit,
        credit_options={"span": args.span},
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
