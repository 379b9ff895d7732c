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
        mend = "in the checkout, pip install '.[service]'"
        if (error.name or "").startswith("shim"):
            missing = f"refresher: an unrelated package named shim takes the place of its own (no {error.name})"
            mend = "pip uninstall shim, then install refresher again"
        sys.stderr.write(f"{missing}: {mend}\n")
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
