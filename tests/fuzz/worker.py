"""One target under atheris, in a process of its own: ``python -m tests.fuzz.worker TARGET SECONDS CORPUS FINDINGS``."""

import hashlib
import logging
import sys
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["asgi_agents"]):
    from .targets import TARGETS

_MAX_FINDINGS = 20


def main() -> None:
    _, name, seconds, corpus, findings = sys.argv
    logging.disable()
    run = TARGETS[name].run
    place = Path(findings)
    known: set[str] = set()

    def once(data: bytes) -> None:
        try:
            run(data)
        except Exception as exc:
            # Not raised on: that would end the run at the first.
            where = "".join(traceback.format_tb(exc.__traceback__)[-3:])
            kind = hashlib.sha256(f"{type(exc).__name__}{where}".encode()).hexdigest()[:12]
            if kind not in known and len(known) < _MAX_FINDINGS:
                known.add(kind)
                (place / f"{name}-{kind}").write_bytes(data)
                (place / f"{name}-{kind}.txt").write_text("".join(traceback.format_exception(exc)), errors="replace")

    atheris.Setup(
        [
            *(sys.argv[0], corpus, f"-max_total_time={seconds}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=2048"),
            *(f"-artifact_prefix={findings}/{name}-", "-print_final_stats=1", "-len_control=20"),
        ],
        once,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
