"""The CUDA kernels on an emulated GPU: one OS thread for each CUDA thread, watched by the sanitizers of the compiler.

The kernels' own sources are compiled by g++ against tests/cuda_emulation. Its driver holds the cases and compares with
sums in double, on heap buffers of exactly the right size. The tests after the first two break the kernels, one line at
a time, and expect the emulation to notice.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "cuda"
EMULATION = ROOT / "tests" / "cuda_emulation"
FLAGS = ["-std=c++20", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off", "-pthread"]
SANITIZERS = {
    # Without optimisation, which would take longer than it saves.
    "memory": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "threads": ["-O0", "-fsanitize=thread"],
}
SETTINGS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def compile_sources(sources: Iterable[Path], csrc: Path, sanitizer: str, folder: Path) -> None:
    """Compile each source to an object in `folder`, with the kernels' headers from `csrc`."""

    def compile_one(source: Path) -> None:
        include = [f"-I{EMULATION}", f"-I{csrc / 'cuda'}", "-DSTEPOPSD_CUDA_EMULATION"]
        command = ["g++", *FLAGS, *SANITIZERS[sanitizer], *include, "-x", "c++", "-c", str(source)]
        done = subprocess.run([*command, "-o", str(folder / f"{source.name}.o")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(compile_one, sources))


def link(objects: Iterable[Path], sanitizer: str, driver: Path) -> None:
    subprocess.run(["g++", *SANITIZERS[sanitizer], "-pthread", *map(str, objects), "-o", str(driver)], check=True)


def run(driver: Path, cases: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(driver), *cases], env=os.environ | SETTINGS, capture_output=True, text=True, timeout=300, check=False
    )


class Build:
    """A driver with the kernels as they are, and its objects for those with broken kernels."""

    def __init__(self, sanitizer: str, folder: Path) -> None:
        self.sanitizer, self.folder = sanitizer, folder
        compile_sources([*KERNELS.glob("*.cu"), *EMULATION.glob("*.cpp")], ROOT / "csrc", sanitizer, folder)
        self.driver = folder / "driver"
        link(folder.glob("*.o"), sanitizer, self.driver)


@pytest.fixture(scope="session")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Built with AddressSanitizer and UndefinedBehaviorSanitizer."""
    return Build("memory", tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="session")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Built with ThreadSanitizer."""
    build = Build("threads", tmp_path_factory.mktemp("threads"))
    probe = run(build.driver, ["no_rows_and_bad_sizes"])
    if "unexpected memory mapping" in probe.stderr:
        pytest.skip(f"ThreadSanitizer does not run on this kernel: {probe.stderr.strip()}")
    return build


def test_kernels_agree_with_double_and_stay_within_their_buffers(memory: Build) -> None:
    done = run(memory.driver)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": 0 failures") == 23


def test_threads_blocks_and_clusters_race_nowhere(threads: Build) -> None:
    done = run(threads.driver)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Mutation:
    """One line of a kernel, and what it is replaced by."""

    file: str
    before: str
    after: str
    source: str  # what is compiled anew
    case: str
    sign: str  # how the driver says that it noticed
    place: int = 1  # which of the line's occurrences


RACE, MISUSE, OVERFLOW, WRONG = "data race", "emulation: ", "heap-buffer-overflow", "FAIL"
MUTATIONS = {
    # Order between threads, blocks and clusters.
    "score_without_block_barrier": Mutation(
        "score.cuh", "__syncthreads();", "", "score_bf16.cu", "lengths_and_alignments", RACE),
    "score_without_the_first_meeting": Mutation(
        "score.cuh", "if (in_cluster) cluster_arrive_relaxed();", "", "score_bf16.cu", "splits", MISUSE),
    "score_without_the_second_meeting": Mutation(
        "score.cuh", "cluster_arrive();\n    cluster_wait();", "", "score_bf16.cu", "splits", RACE),
    "score_with_a_relaxed_second_arrival": Mutation(
        "score.cuh", "cluster_arrive();", "cluster_arrive_relaxed();", "score_bf16.cu", "splits", RACE),
    "score_touching_a_block_that_may_not_have_begun": Mutation(
        "score.cuh", "cluster_wait();  // the first", "// the first", "score_bf16.cu", "splits", MISUSE),
    **{
        f"shape_without_barrier_{place}": Mutation(
            "shape.cuh", "__syncthreads();", "", "shape.cu", "sizes", RACE, place)
        for place in range(1, 7)
    },
    "shape_without_the_first_fence": Mutation("shape.cuh", "__threadfence();", "", "shape.cu", "sizes", RACE),
    "shape_without_the_second_fence": Mutation("shape.cuh", "__threadfence();", "", "shape.cu", "sizes", RACE, 2),
    # Reads beyond the end of a row.
    "edge_block_one_further": Mutation(
        "scan.cuh", "(row_shift == 0 ? 1 : 2)", "1", "score_bf16.cu", "lengths_and_alignments", OVERFLOW),
    "edge_element_one_further": Mutation(
        "scan.cuh", "here < end", "here <= end", "score_bf16.cu", "lengths_and_alignments", OVERFLOW),
    "whole_trips_up_to_the_last_group": Mutation(
        "scan.cuh", "vocab - begin - kPerGroup<T>;", "vocab - begin;", "score_bf16.cu", "lengths_and_alignments",
        OVERFLOW),
    # Arithmetic.
    "odd_shift_takes_the_wrong_half": Mutation(
        "group.cuh", "0x7610", "0x5410", "score_bf16.cu", "lengths_and_alignments", WRONG),
    "one_element_short": Mutation("scan.cuh", "here < end", "here + 1 < end", "score_bf16.cu", "lengths_and_alignments",
                                  WRONG),
    "sums_left_around_the_old_reference": Mutation(
        "online.cuh", "reference = to;", "", "score_bf16.cu", "extreme_values", WRONG),
    "no_floor_under_the_entropy": Mutation(
        "online.cuh", "group.word[i] = max_nan_bf16x2(group.word[i], scale.floor);", ";", "score_bf16.cu",
        "extreme_values", WRONG),
    "splits_merged_in_another_order": Mutation(
        "score.cuh", "->partials[place] = mine", "->partials[(place + 1) % (splits * kScoreWarps)] = mine",
        "score_bf16.cu", "splits", WRONG),
    # Gradients: who writes what, where from, and the arithmetic.
    "token_written_by_another_thread": Mutation(
        "gradient.cuh", "share.owner(row.token) == static_cast<int>(threadIdx.x)", "threadIdx.x == 0", "gradient.cu",
        "gradients_at_every_alignment", WRONG),
    "rows_taken_for_aligned": Mutation(
        "gradient.cuh", "lead_of<T>(logits, 0) == lead_of<T>(out, 0);", "lead_of<T>(logits, 0) >= 0;", "gradient.cu",
        "gradients_at_every_alignment", MISUSE),
    "one_group_too_many_is_read": Mutation(
        "rewrite.cuh", "if (kWhole || at + g * kApart < last)", "if (kWhole || at + g * kApart <= last)", "gradient.cu",
        "gradients_at_every_alignment", OVERFLOW),
    "one_group_too_many_is_written": Mutation(
        "rewrite.cuh", "at + g * kApart >= last", "at + g * kApart > last", "gradient.cu",
        "gradients_at_every_alignment", OVERFLOW),
    "one_group_too_few": Mutation(
        "rewrite.cuh", "at + g * kApart >= last", "at + (g + 1) * kApart >= last", "gradient.cu",
        "gradients_at_every_alignment", WRONG),
    "no_chunk_for_the_end_of_a_shifted_row": Mutation(
        "gradient.cuh", "vocab + kPerGroup<T> - 1 + kChunk<T> - 1", "vocab + kChunk<T> - 1", "gradient.cu",
        "gradient_bits_follow_from_values", WRONG),
    "no_floor_under_the_entropy_slope": Mutation(
        "gradient.cuh", "fmaxf(log_p.x, kNegligible)", "log_p.x", "gradient.cu", "gradients_of_extreme_rows", WRONG),
    "log_mass_left_out": Mutation(
        "gradient.cuh", "make_float2(-log_mass, -log_mass)", "make_float2(0, 0)", "gradient.cu",
        "gradients_of_extreme_rows", WRONG),
    "scaled_where_the_factor_is_one_and_not_elsewhere": Mutation(
        "gradient.cuh", "map.factor == 1", "map.factor != 1", "gradient.cu", "scaling", WRONG),
    # Losses: what a cluster has to wait for before it overwrites a row.
    "loss_without_the_second_meeting": Mutation(
        "loss.cuh", "cluster_arrive();\n    cluster_wait();", "", "loss.cu", "losses_of_long_rows", RACE),
    "loss_with_a_relaxed_second_arrival": Mutation(
        "loss.cuh", "cluster_arrive();", "cluster_arrive_relaxed();", "loss.cu", "losses_of_long_rows", RACE),
    "loss_touching_a_block_that_may_not_have_begun": Mutation(
        "loss.cuh", "cluster_wait();  // all blocks", "// all blocks", "loss.cu", "losses_of_long_rows", MISUSE),
    "loss_without_the_barrier_behind_the_copy": Mutation(
        "loss.cuh", "__syncthreads();", "", "loss.cu", "losses_at_every_alignment", RACE),
    "loss_without_the_barrier_before_the_gradient": Mutation(
        "loss.cuh", "__syncthreads();", "", "loss.cu", "losses_at_every_alignment", RACE, 3),
    "loss_that_does_not_wait_for_its_copies": Mutation(
        "loss.cuh", "wait_for_copies();", "", "loss.cu", "losses_at_every_alignment", WRONG),
    "loss_with_too_little_shared_memory": Mutation(
        "loss.cuh", "/ kPerGroup<T> + 1;", "/ kPerGroup<T>;", "loss.cu", "losses_at_every_alignment", OVERFLOW),
    "means_over_all_steps": Mutation("shape.cuh", "live.count >= 2", "live.count >= 1", "shape.cu",
                                     "special_token_values", WRONG),
}  # fmt: skip


def replace_occurrence(text: str, before: str, after: str, place: int) -> str:
    parts = text.split(before)
    assert len(parts) > place, f"{before!r} occurs {len(parts) - 1} times"
    return before.join(parts[:place]) + after + before.join(parts[place:])


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_kernel_is_noticed(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    mutation = MUTATIONS[name]
    by_threads = mutation.sign not in (OVERFLOW, WRONG)
    build: Build = request.getfixturevalue("threads" if by_threads else "memory")
    csrc = shutil.copytree(ROOT / "csrc", tmp_path / "csrc", ignore=shutil.ignore_patterns("cpu"))
    broken = csrc / "cuda" / mutation.file
    broken.write_text(replace_occurrence(broken.read_text(), mutation.before, mutation.after, mutation.place))
    compile_sources([csrc / "cuda" / mutation.source], csrc, build.sanitizer, tmp_path)
    others = [path for path in build.folder.glob("*.o") if path.name != f"{mutation.source}.o"]
    # The broken one first: the linker keeps the first copy of a function that is in several objects.
    link([*tmp_path.glob("*.o"), *others], build.sanitizer, tmp_path / "driver")
    done = run(tmp_path / "driver", [mutation.case])
    assert done.returncode != 0
    output = done.stdout + done.stderr
    # A write past the end is noticed as the one or the other, as the end of the memory lies.
    assert mutation.sign in output or (mutation.sign == OVERFLOW and "a misaligned 16-byte" in output)
