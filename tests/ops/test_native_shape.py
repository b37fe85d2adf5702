"""The native shape kernel against the float64 reference, the segments against a sort, the sources under sanitizers."""

from __future__ import annotations

import dataclasses
import math
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stepopsd.ops import native
from stepopsd.ops.reference import shape_reference
from stepopsd.ops.results import STATISTICS
from stepopsd.ops.segments import StepSegments, sort_steps

if native.availability("cpu") is not None:
    pytest.skip("the native module is not built; test_native.py says why", allow_module_level=True)

ROOT = Path(__file__).parents[2]
KNOBS = {"alpha_clip": 0.2, "lambda_mix": 0.5, "weight_fn": "sigmoid", "step_norm": "equal_step_mean_abs"}


@dataclasses.dataclass
class Tokens:
    student: torch.Tensor
    teacher: torch.Tensor
    advantages: torch.Tensor
    steps: torch.Tensor
    trajectories: torch.Tensor

    def __len__(self):
        return len(self.steps)

    @property
    def active(self):
        return self.steps >= 0

    @property
    def segments(self):
        return native.step_segments(self.steps, self.trajectories)


def tokens(count=200, seed=0):
    """Log-probs with every kind of trouble, a third of the tokens masked, steps scattered over the positions."""
    g = torch.Generator().manual_seed(seed)
    t = Tokens(
        torch.randn(count, generator=g) - 3,
        torch.randn(count, generator=g) - 3,
        torch.randn(count, generator=g) * torch.rand(count, generator=g).pow(4),
        torch.randint(5, (count,), generator=g),
        torch.randint(4, (count,), generator=g) * 7 - 9,
    )
    t.steps[torch.rand(count, generator=g) < 0.3] = -1
    t.student[~t.active], t.teacher[~t.active] = math.nan, math.inf
    return t


def run(t, segments="own", **knobs):
    chosen = t.segments if segments == "own" else segments
    return native.shape_rows(t.student, t.teacher, t.advantages, t.active, chosen, **{**KNOBS, **knobs})


def reference(t, **knobs):
    shaped = shape_reference(
        None,
        None,
        None,
        t.advantages,
        t.steps,
        trajectory_ids=t.trajectories,
        student_logprobs=t.student.where(t.active, 0),
        teacher_logprobs=t.teacher.where(t.active, 0),
        **{**KNOBS, **knobs},
    )
    return torch.stack((shaped.advantages, shaped.weights, shaped.delta, shaped.step_scale)), shaped.stats.packed


def assert_matches(t, **knobs):
    budget = None if knobs.get("lambda_mix") == 0 or knobs.get("step_norm") == "none" else "own"
    planes, statistics = run(t, budget, **knobs)
    want_planes, want_statistics = reference(t, **knobs)
    torch.testing.assert_close(planes.double(), want_planes, rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(statistics, want_statistics, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("step_norm", ["equal_step_mean_abs", "equal_step_ratio", "none"])
@pytest.mark.parametrize("weight_fn", ["sigmoid", "exp"])
@pytest.mark.parametrize("lambda_mix", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("alpha_clip", [0.05, 0.6, 1.0])
def test_planes_and_statistics_follow_the_reference(step_norm, weight_fn, lambda_mix, alpha_clip):
    for seed in range(3):
        assert_matches(
            tokens(seed=seed),
            step_norm=step_norm,
            weight_fn=weight_fn,
            lambda_mix=lambda_mix,
            alpha_clip=alpha_clip,
        )


@pytest.mark.parametrize("lambda_mix", [0.0, 0.5])
@pytest.mark.parametrize("step_norm", ["equal_step_mean_abs", "equal_step_ratio"])
def test_nan_and_infinities_reach_their_own_token_and_no_mean(step_norm, lambda_mix):
    t = tokens()
    places = t.active.nonzero()[:8, 0].tolist()
    t.student[places[0]] = -math.inf
    t.teacher[places[1]] = -math.inf
    t.student[places[2]] = t.teacher[places[2]] = -math.inf
    t.teacher[places[3]] = math.nan
    t.advantages[places[4]] = math.nan
    t.advantages[places[5]] = math.inf
    t.student[places[6]], t.advantages[places[6]] = -math.inf, 0.0
    t.student[places[7]], t.teacher[places[7]] = -1e4, 0.0
    assert_matches(t, step_norm=step_norm, lambda_mix=lambda_mix)
    planes, statistics = run(t, step_norm=step_norm, lambda_mix=lambda_mix)
    assert planes[1, places[6]] == 1
    assert statistics[STATISTICS.index("nonfinite")] == 6
    if lambda_mix == 0:
        planes, _ = run(t, None, lambda_mix=0.0)
        assert torch.equal(planes[0].view(torch.int32), t.advantages.view(torch.int32))


def test_masked_tokens_keep_their_advantage_bit_for_bit():
    t = tokens()
    t.advantages[~t.active] = torch.linspace(-1e-30, 1e30, int((~t.active).sum()))
    planes, _ = run(t)
    masked = planes[:, ~t.active]
    assert torch.equal(masked[0], t.advantages[~t.active])
    assert torch.equal(masked[1:], torch.tensor([[1.0], [0.0], [1.0]]).expand_as(masked[1:]))


@pytest.mark.parametrize(
    "kind", ["one step", "no advantage", "nothing finite", "no active token", "no token", "one token"]
)
def test_trajectories_that_cannot_have_a_budget_are_left_alone(kind):
    t = tokens(count=0 if kind == "no token" else 1 if kind == "one token" else 50)
    if kind == "one step":
        t.steps[t.active] = 3
    elif kind == "no advantage":
        t.advantages.zero_()
    elif kind == "nothing finite":
        t.advantages[t.active] = math.nan
    elif kind == "no active token":
        t.steps.fill_(-1)
    planes, statistics = run(t)
    assert torch.equal(planes[3], torch.ones(len(t)))
    assert_matches(t)
    assert statistics.isfinite().all()


def test_a_step_without_a_finite_token_is_not_live():
    t = tokens()
    broken = (t.steps == 2) & (t.trajectories == t.trajectories[t.steps == 2][0])
    t.teacher[broken] = math.nan
    assert_matches(t)
    planes, _ = run(t)
    assert torch.equal(planes[3, broken], torch.ones(int(broken.sum())))


def test_factors_reach_their_limits():
    t = tokens(count=6)
    t.student[:], t.teacher[:], t.trajectories[:] = -1.0, -1.0, 0
    t.steps[:] = torch.tensor([0, 0, 1, 1, 2, 2])
    t.advantages[:] = torch.tensor([100.0, 100.0, 0.0, 0.0, 30.0, 40.0])
    planes, statistics = run(t)
    assert planes[3].tolist() == [0.5, 0.5, 2.0, 2.0, pytest.approx(135 / 3 / 35), pytest.approx(135 / 3 / 35)]
    assert dict(zip(STATISTICS, statistics.tolist(), strict=True))["scale_clamped"] == pytest.approx(2 / 3)
    assert_matches(t)


def test_a_trajectory_does_not_depend_on_the_others():
    t = tokens()
    planes, _ = run(t)
    mine = (t.trajectories == t.trajectories[0]).nonzero()[:, 0]
    alone = Tokens(*(getattr(t, field.name)[mine] for field in dataclasses.fields(t)))
    assert torch.equal(run(alone)[0].view(torch.int32), planes[:, mine].view(torch.int32))


def sorted_in_python(steps, trajectories):
    inside = sorted((i for i, step in enumerate(steps) if step >= 0), key=lambda i: (trajectories[i], steps[i]))
    outside = [i for i, step in enumerate(steps) if step < 0]
    keys = [(trajectories[i], steps[i]) for i in inside]
    begins = [place for place, key in enumerate(keys) if place == 0 or key != keys[place - 1]]
    firsts = [k for k, place in enumerate(begins) if k == 0 or keys[place][0] != keys[begins[k - 1]][0]]
    size = len(steps) + 1
    return StepSegments(
        torch.tensor(inside + outside, dtype=torch.int64),
        torch.tensor(begins + [len(inside)] * (size - len(begins))),
        torch.tensor(firsts + [len(begins)] * (size - len(firsts))),
        torch.tensor([len(begins), len(firsts)]),
    )


def assert_segments_equal(got, want):
    for field in dataclasses.fields(StepSegments):
        assert torch.equal(getattr(got, field.name), getattr(want, field.name)), field.name


ids = st.one_of(st.integers(-2, 3), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ids, ids), max_size=30), st.booleans())
def test_segments_equal_a_sort_in_python(keys, in_order):
    keys = sorted(keys, key=lambda key: (key[1], key[0])) if in_order else keys
    steps, trajectories = [key[0] for key in keys], [key[1] for key in keys]
    args = [torch.tensor(x, dtype=torch.int64) for x in (steps, trajectories)]
    got = native.step_segments(*args)
    assert_segments_equal(got, sorted_in_python(steps, trajectories))
    assert_segments_equal(got, sort_steps(*args))


def test_segments_of_long_runs_and_of_strided_ids():
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (300,), generator=g)
    steps = torch.randint(-1, 9, (300,), generator=g).repeat_interleave(lengths)
    trajectories = torch.randint(20, (300,), generator=g).repeat_interleave(lengths)
    steps[torch.rand(len(steps), generator=g) < 0.2] = -1
    got = native.step_segments(steps, trajectories)
    assert_segments_equal(got, sort_steps(steps, trajectories))
    both = torch.stack((steps, trajectories), 1)
    assert_segments_equal(native.step_segments(both[:, 0], both[:, 1]), got)


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_find_nothing_in_the_cpu_sources(sanitizers, tmp_path, monkeypatch):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    flags = ["-std=c++17", "-O0", "-g", "-pthread", "-ffp-contract=off", "-w", f"-fsanitize={sanitizers}"]
    flags.append("-fno-sanitize-recover=all")
    avx512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl"
    sets = {"rows_avx2.cpp": "-mavx2 -mfma -mf16c", "rows_avx512.cpp": avx512}
    sets["rows_avx512bf16.cpp"] = f"{avx512} -mavx512bf16"
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not x86 or sanitizers == "thread":  # what threads share is the same for every instruction set
        sets = dict.fromkeys(sets)
    elif x86:
        flags.append("-DSTEPOPSD_X86")
    sources = [f for f in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")) if not f.name.endswith("bindings.cpp")]
    jobs = []
    for source in (*sources, ROOT / "tests" / "ops" / "native_sanitize.cpp"):
        if source.name in sets and sets[source.name] is None:
            continue
        own = (sets.get(source.name) or "").split()
        command = [compiler, *flags, *own, "-c", str(source), "-o", str(tmp_path / f"{source.stem}.o")]
        jobs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    assert all(job.wait() == 0 for job in jobs), [job.stderr.read() for job in jobs]
    program = tmp_path / "driver"
    subprocess.run([compiler, *flags, *map(str, tmp_path.glob("*.o")), "-o", str(program)], check=True)
    for isa in ["portable"] if sanitizers == "thread" else native.isas():
        monkeypatch.setenv("STEPOPSD_CPU_ISA", isa)
        run = subprocess.run([str(program)], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
