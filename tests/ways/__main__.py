"""The command line: ``python -m tests.ways`` prints the page of the documentation, and writes it with ``--page``."""

import argparse
import logging

from .page import PATH, written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ways", description="What works where.")
    parser.add_argument("--page", action="store_true", help="write the page of the documentation")
    options = parser.parse_args()
    # Of agents that fail, as they are to.
    logging.disable(logging.CRITICAL)
    text = written()
    if options.page:
        PATH.write_text(text)
        print(f"wrote {PATH.name}")
    else:
        print(text)


if __name__ == "__main__":
    main()
