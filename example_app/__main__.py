"""``python -m example_app``: start the shop, play a script against it, show what came of it, and go on serving."""

import os
import sys

# What `pip install '.[example]'` brings, by the names that are imported.
_EXTRA = {"fastapi", "opentelemetry", "prometheus_client", "python_multipart", "uvicorn", "websockets"}


def main() -> int:
    """Returns the exit code."""
    try:
        # Within: an interrupt while these are imported is no traceback either.
        from .demo.command import run

        return run(sys.argv[1:])
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(f"There is no {exc.name} here. The example needs: pip install '.[example]'", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who reads what is printed has had enough, such as `head`. Nor is there anybody for what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
