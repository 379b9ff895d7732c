"""The command ``refresher``; ``python -m refresher`` is the same."""

import gc
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # What is loaded is no garbage: looked through at each thousand objects, and once more at the end, it would cost a
    # run that has nothing to do a sixth of its time.
    gc.disable()
    try:
        from refresher.cli.main import run
    except ModuleNotFoundError as error:
        missing = f"refresher: the service is not installed (no {error.name})"
        sys.stderr.write(f"{missing}: in the checkout, pip install '.[service]'\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    gc.freeze()
    gc.enable()
    code = run()
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
