"""Compare two reports of Evaluate LoRA: is a figure worse, by more than the pictures' scatter?

    python scripts/compare_reports.py yesterday/report.json today/report.json

Prints a table. The exit code is 1 when a figure is worse (the whole 95 % interval of its change is on the bad
side), 2 when the reports cannot be compared, 0 otherwise. Needs the Python of ComfyUI, not ComfyUI.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _pack import import_pack


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare two reports of Evaluate LoRA.")
    parser.add_argument("before", type=Path, help="report.json that was good")
    parser.add_argument("after", type=Path, help="report.json to hold against it")
    args = parser.parse_args()
    import_pack()
    from in_graph_lora.trainer.errors import TrainerError
    from in_graph_lora.trainer.evidence import regression

    try:
        before, after = regression.read_report(args.before), regression.read_report(args.after)
        differences = regression.compare(before, after)
    except TrainerError as error:
        print(error, file=sys.stderr)
        return 2
    print(regression.markdown(differences))
    return 1 if any(difference.worse for difference in differences) else 0


if __name__ == "__main__":
    sys.exit(main())
