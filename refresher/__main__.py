"""The command ``refresher``; ``python -m refresher`` is the same."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        from refresher.cli import run
    except ModuleNotFoundError as error:
        sys.exit(f"refresher: the service is not installed (no {error.name}): pip install 'refresher[service]'")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run())


if __name__ == "__main__":
    main()
