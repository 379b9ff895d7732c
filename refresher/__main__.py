"""The command ``refresher``; ``python -m refresher`` is the same."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        from refresher.cli import run
    except ModuleNotFoundError as error:
        missing = f"refresher: the service is not installed (no {error.name})"
        sys.stderr.write(f"{missing}: in the checkout, pip install '.[service]'\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run())


if __name__ == "__main__":
    main()
