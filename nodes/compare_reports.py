"""CompareReports: is a figure of one evaluation worse than of another, by more than the pictures' scatter?"""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer.errors import ConfigError
from ..trainer.host import paths
from .sockets import CATEGORY


class CompareReports(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        there = paths.reports()
        return io.Schema(
            node_id="CompareReports",
            display_name="Compare Reports",
            category=CATEGORY,
            description="Holds each figure of one report of Evaluate LoRA against another's.",
            search_aliases=["regression", "evaluation", "quality", "worse", "compare reports", "对比报告"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("before", options=there, tooltip="The report that was good; newest first."),
                io.Combo.Input("after", options=there, tooltip="The report to hold against it."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Each change with its interval (Markdown)."),
                io.Boolean.Output(
                    display_name="worse", tooltip="Whether a figure is worse by more than its interval."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, before: str | None = None, after: str | None = None) -> bool | str:
        """In place of ComfyUI's check of the list, which does not say what to do."""
        known = paths.reports()
        for name in (before, after):
            if name is not None and name not in known:
                return f"there is no report {name[:80]!r}; choose one of the list, or run Evaluate LoRA"
        return True

    @classmethod
    def fingerprint_inputs(cls, before: str, after: str) -> str:
        """A report that was written anew is another input."""
        try:
            found = [paths.report_path(name).stat().st_mtime_ns for name in (before, after)]
        except (ConfigError, OSError):
            return f"{before} {after}"
        return f"{before} {after} {found}"

    @classmethod
    def execute(cls, before: str, after: str) -> io.NodeOutput:
        from ..trainer.evidence import regression

        reports = [regression.read_report(paths.report_path(name)) for name in (before, after)]
        differences = regression.compare(*reports)
        text = f"{regression.summary(differences)}\n\n{regression.markdown(differences)}"
        return io.NodeOutput(text, any(d.worse for d in differences), ui={"text": [text]})
