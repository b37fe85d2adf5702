"""ALFWorld inside TRL's GRPO, with credit per step: one class name and one keyword differ from plain TRL.

    python examples/trl_alfworld.py                                   # the small bundled model, CPU, minutes
    python examples/trl_alfworld.py --model Qwen/Qwen3-1.7B --group 8 --steps 150 --max-turns 30 --turn-tokens 512

Needs `pip install 'stepopsd[trl,train]'` and the text engine (`constraints-alfworld.txt`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from stepopsd.envs.alfworld import AlfworldEnv
from stepopsd.envs.games.bundle import bundled_tasks
from stepopsd.envs.prompts import dialogue_followup, dialogue_opening, parse_action
from stepopsd.experiments.warmstart import BUNDLED_MODEL
from stepopsd.integrations.trl import StepOPSDGRPOTrainer, TextEpisodes, TextStep


class House:
    """One household; the dataset's prompt is the name of its game."""

    def __init__(self, tasks, style: str) -> None:
        self.tasks, self.style, self.env = {task.task_id: task for task in tasks}, style, AlfworldEnv()

    def reset(self, prompt: str) -> str:
        first = self.env.reset(self.tasks[prompt], seed=0)
        return dialogue_opening(self.env.goal, first, think=False, style=self.style)

    def step(self, response: str) -> TextStep:
        action = parse_action(response, think=False)
        result = self.env.step(action.action)
        seen = dialogue_followup(result.observation, think=False, style=self.style)
        return TextStep(seen, result.reward, result.done, result.success, action.action if action.is_valid else "")


def won(episode_reward, **columns) -> list[float]:
    """TRL hands what the rollout returned to reward functions by name."""
    return list(episode_reward)


def kept_the_format(actions, turn_rewards, **columns) -> list[float]:
    """Share of responses with an action in them."""
    return [len(done) / max(1, len(turns)) for done, turns in zip(actions, turn_rewards, strict=True)]


def main(argv: Sequence[str] | None = None) -> StepOPSDGRPOTrainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED_MODEL), help="folder or name on the hub")
    parser.add_argument("--credit", default="stepopsd", help="grpo, stepopsd, rlsd, gigpo, ... or several joined by +")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--games", type=int, default=8, help="different games, of the bundled training set")
    parser.add_argument("--group", type=int, default=8, help="episodes per game in a step")
    parser.add_argument("--batch", type=int, default=16, help="episodes per step")
    parser.add_argument("--max-turns", type=int, default=12)
    parser.add_argument("--turn-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512, help="of a whole episode after its opening")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--out", default="runs/trl_alfworld")
    args = parser.parse_args(argv)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tasks = bundled_tasks("train")[: args.games]
    style = "compact" if args.model == str(BUNDLED_MODEL) else "full"
    trainer = StepOPSDGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(args.model),
        reward_funcs=[won, kept_the_format],
        args=GRPOConfig(
            output_dir=args.out, max_steps=args.steps, per_device_train_batch_size=args.batch,
            num_generations=args.group, max_completion_length=args.max_tokens, learning_rate=args.lr,
            reward_weights=[1.0, 0.1], logging_steps=1, save_strategy="no", report_to="none", bf16=False,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [task.task_id for task in tasks]}),
        rollout_func=TextEpisodes(
            lambda: House(tasks, style), max_turns=args.max_turns, max_turn_tokens=args.turn_tokens
        ),
        credit=args.credit,
        credit_options={"alpha_clip": 0.2, "lambda_mix": 0.2, "teacher": "stale", "teacher_refresh_every": 10},
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
