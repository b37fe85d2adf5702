"""The tables of a results file."""

from __future__ import annotations

from typing import Any


def render(results: dict[str, Any]) -> str:
    """Markdown: what was measured on, cost per query, agreement with exact BM25, HTTP, builds."""
    about = results["about"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        "# Retrieval",
        "",
        f"`{about['command']}`, {about['date']}, {about['chip']}, {about['cores']} cores; {versions}.",
        "",
        f"The machine was shared with other programs and this run had nice {about['nice']}, so **CPU time is the",
        "figure to compare**; wall clock is what was left over (the load average stands with each size). Raw queries",
        "have about nine words, four of them among the sixty commonest; stopped ones lack these. Agreement is with",
        "BM25 by its formula, for the first 200 raw queries; tantivy rounds passage lengths to a byte, which reorders",
        "near ties.",
    ]
    for passages, size in results["sizes"].items():
        lines += [
            "",
            f"## {int(passages):,} passages ({size['corpus_mb']:.0f} MB, load {size['load']:.1f} afterwards)",
            "",
            *_engines(size),
        ]
        if "http" in size:
            lines += ["", *_http(size["http"])]
    return "\n".join(lines) + "\n"


def _engines(size: dict[str, Any]) -> list[str]:
    lines = [
        "| engine | CPU-ms, raw query | in batches of 256 | stopped | in batches | target in top 3 | top 3 as exact "
        "| build CPU-s | build peak MB | disk MB | memory MB (anonymous) |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in size["engines"].items():
        cost = [f"{found[key]['cpu_ms']:.2f}" for key in ("raw_single", "raw_batch", "stopped_single", "stopped_batch")]
        dense = name.startswith("FAISS")
        quality = ["–", "–"] if dense else [f"{found['target_in_top3']:.3f}", f"{size['same_as_exact'][name]:.3f}"]
        build = found["build"]
        sizes = [f"{build['cpu_s']:.0f}", f"{build['peak_mb']:.0f}", f"{build['disk_mb']:.0f}"]
        memory = f"{found['rss_mb']:.0f} ({found['anonymous_mb']:.0f})"
        lines.append("| " + " | ".join([name, *cost, *quality, *sizes, memory]) + " |")
    return lines


def _http(found: dict[str, Any]) -> list[str]:
    lines = [
        "| over HTTP, raw queries | server CPU-ms a query | client CPU-ms a query | queries/s, wall clock "
        "| queries/s of two cores by CPU time |",
        "|:--|--:|--:|--:|--:|",
    ]
    for kind, name in (("batch", "128 queries a request"), ("single", "one query a request, 32 at a time")):
        cost = found[kind]
        both = cost["server_cpu_ms"] + cost["client_cpu_ms"]
        lines.append(
            f"| {name} | {cost['server_cpu_ms']:.2f} | {cost['client_cpu_ms']:.2f} | {cost['queries_per_s']:,.0f} "
            f"| {2000 / both:,.0f} |"
        )
    return [*lines, "", f"Server memory {found['rss_mb']:.0f} MB, {found['anonymous_mb']:.0f} of it anonymous."]
