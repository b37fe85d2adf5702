"""The op, in ten lines: python examples/op_in_ten_lines.py"""

import torch

import stepopsd

student, teacher = torch.randn(2, 6, 100), torch.randn(2, 6, 100)  # (B, T, V) logits of the sampled tokens
ids, advantages = torch.randint(100, (2, 6)), torch.tensor([[1.0], [-1.0]]).expand(2, 6).contiguous()  # (B, T)
steps = torch.tensor([[0, 0, -1, 1, 1, 1], [0, -1, 1, 1, -1, -1]], dtype=torch.int32)  # -1: in no step
shaped = stepopsd.shape_advantages(
    student, teacher, ids, advantages, steps, trajectory_ids=torch.arange(2), lambda_mix=0.5
)
print(shaped.advantages)  # tokens that the teacher likes more weigh more where A > 0, less where A < 0
