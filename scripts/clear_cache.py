"""Show or clear what Train LoRA keeps of encoded pictures and captions.

    python scripts/clear_cache.py ~/ComfyUI/output            how much there is
    python scripts/clear_cache.py ~/ComfyUI/output --clear    delete it

Start it with ComfyUI's Python. Runs that still need something encode it again. docs/cache.md says more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from _pack import import_pack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="ComfyUI's output folder")
    parser.add_argument("--clear", action="store_true", help="delete all of it")
    args = parser.parse_args()
    folder = args.output / "in-graph-lora" / "cache"
    if not args.output.is_dir():
        parser.error(f"{args.output} is no folder; name ComfyUI's output folder")
    import_pack()
    from in_graph_lora.trainer.data.store import clear, usage

    count, size = clear(folder) if args.clear else usage(folder)
    print(f"{'deleted' if args.clear else 'there are'} {count} entries, {size / 1e6:.1f} MB, in {folder}")
    left, _ = usage(folder)
    if args.clear and left:
        print(f"{left} entries could not be deleted; check who may write in {folder}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
