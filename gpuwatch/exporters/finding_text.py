"""A finding as Markdown, for TensorBoard's text page."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuwatch.state.findings import Finding


def tag(finding: Finding) -> str:
    """Its own tag for each rule and layer, so that two findings of one step do not fall on one point."""
    return f"finding/{finding.rule}/{finding.layer}" if finding.layer else f"finding/{finding.rule}"


def markdown(finding: Finding) -> str:
    """The finding as people read it: what is wrong, with which numbers, and what to do."""
    rows = [
        ("state", finding.state if finding.state == "active" else f"closed after step {finding.last_step}"),
        ("step", f"{finding.step} (began at {finding.first_step})"),
        ("rank", str(finding.rank)),
        ("layer", f"`{_cell(finding.layer)}`" if finding.layer else ""),
        (_cell(finding.statistic), f"{finding.value:.6g} (threshold {finding.threshold:.6g})"),
    ]
    head, *lines = [f"| {name} | {value} |" for name, value in rows if value]
    table = "\n".join((head, "|---|---|", *lines))
    return (
        f"**{finding.rule}** ({finding.severity}): {finding.summary}\n\n{table}\n\n"
        f"**What to do:** {finding.action}\n\n`gpuwatch explain {finding.rule}` has more.\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'").replace("\n", " ")
