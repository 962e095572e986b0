"""`python -m morphogen`, and the `morphogen` command."""

import os
import sys


def run() -> int:
    """Run the command line, or say how to install what it needs beyond the core."""
    sys.path.append(os.getcwd())  # a model of one's own may lie in the folder one starts from
    try:
        from .cli import main
    except ModuleNotFoundError as error:
        print(
            f"morphogen: the command line needs '{error.name}'. Install it with: pip install 'morphogen[train]'",
            file=sys.stderr,
        )
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(run())
