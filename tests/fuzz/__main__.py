"""The command line: ``python -m tests.fuzz --help``."""

import argparse
import base64
import binascii
import importlib.util
import sys
import tempfile
from pathlib import Path

from .campaign import Progress, campaign
from .targets import TARGETS


def main() -> None:
    options = _options()
    names = options.target or list(TARGETS)
    if options.replay is not None:
        if len(names) != 1:
            sys.exit("--replay needs to know for which --target")
        TARGETS[names[0]].run(_input(options.replay))
        print(f"{names[0]}: nothing to find fault with")
        return
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed. On Linux, with CPython 3.11 to 3.14: pip install -e '.[test,fuzz]'")
    with tempfile.TemporaryDirectory(prefix="asgi-agents-fuzz-") as work:
        findings = Path(work) / "findings"
        findings.mkdir()
        corpus = Path(work) / "corpus" if options.corpus is None else options.corpus
        print(f"{'target':<14} {'executions':>10} {'per second':>10} {'edges':>7} {'features':>8} {'corpus':>7}")
        progress, found = campaign(names, options.minutes, corpus, findings, _tell)
        print(f"\n{sum(each.executions for each in progress.values())} executions, {len(found)} findings")
        for finding in found:
            print(f"\n{finding.target}: {finding.report.rstrip()}")
            print(f"python -m tests.fuzz --target {finding.target} --replay {_spelt(finding.data)}")
    sys.exit(1 if found else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Looks for inputs for which something does not hold that should, guided by coverage.",
        epilog="Exit status 1: something was found; what is printed replays it.",
    )
    parser.add_argument("--minutes", type=_minutes, default=1.0, help="of fuzzing, all targets together; default 1")
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--corpus", type=Path, help="a directory to keep inputs in from run to run; default none")
    parser.add_argument("--replay", metavar="INPUT", help="run the target once, on a file or on base64")
    return parser.parse_args()


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < 1e6:
        raise argparse.ArgumentTypeError(f"{text}, expected more than 0")
    return minutes


def _input(given: str) -> bytes:
    path = Path(given)
    if len(given) < 1000 and path.is_file():
        return path.read_bytes()
    try:
        return base64.b64decode("" if given == "-" else given, validate=True)
    except binascii.Error:
        sys.exit(f"--replay {given:.60}: neither a file nor base64")


def _spelt(data: bytes) -> str:
    return base64.b64encode(data).decode() or "-"


def _tell(name: str, progress: Progress) -> None:
    rate = progress.executions / progress.seconds if progress.seconds else 0.0
    print(
        f"{name:<14} {progress.executions:>10} {rate:>10.0f} {progress.edges:>7} {progress.features:>8} "
        f"{progress.corpus:>7}",
        flush=True,
    )


if __name__ == "__main__":
    main()
