"""Everything a developer runs: `python dev.py demo | test | server | lint | bench | bundle | gpu`.

Needs nothing but Python's standard library. This file keeps to syntax that old Pythons can parse, so that
they can say what is wrong instead of showing a SyntaxError; the work is in workbench/dev/.
"""

import sys


def main():
    if sys.version_info < (3, 10):  # noqa: UP036
        print("In-Graph LoRA needs Python 3.10 or newer; this is Python %d.%d." % sys.version_info[:2])  # noqa: UP031
        return 1
    from workbench.dev.commands import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
