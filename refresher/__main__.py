"""The command ``refresher``; ``python -m refresher`` is the same."""

import gc
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process with its exit code."""
    # OpenSSL would write the keys of each connection there, and with them every token.
    os.environ.pop("SSLKEYLOGFILE", None)
    # Imports leave no garbage: the collector would use a sixth of the time of a run that has nothing to do.
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
