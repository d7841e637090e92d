"""`make zoo`: run the programs, judge the rules by their labels, print the table. `python -m tests.zoo --help`."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from gpuwatch.detectors.registry import RULES
from tests.zoo import score
from tests.zoo.keeper import Keeper, Outcome
from tests.zoo.programs import PROGRAMS
from tests.zoo.replay import replay
from tests.zoo.table import document, replace_table, report


def main() -> int:
    options = _options()
    programs = [p for p in PROGRAMS.values() if p.half in options.half and (not options.only or p.name in options.only)]
    if options.replay:
        recorded = json.loads((options.replay / "outcomes.json").read_text())
        programs = [program for program in programs if program.name in recorded]
        outcomes = {p.name: Outcome(replay(options.replay / "runs" / p.name), **recorded[p.name]) for p in programs}
    else:
        outcomes = _run(programs, options.keep)
    rules = {rule.name for rule in RULES}
    verdicts = [score.judge(program, outcomes[program.name], rules) for program in programs]
    print(report(verdicts, rules))
    if options.json:
        options.json.write_text(json.dumps(document(verdicts, rules), indent=2) + "\n")
    if options.markdown and len(programs) == len(PROGRAMS):
        replace_table(options.markdown, report(verdicts, rules))
    short = score.shortfalls(verdicts)
    for sentence in short:
        print(sentence)
    return 1 if short and options.check else 0


def _run(programs, keep):
    with tempfile.TemporaryDirectory(prefix="zoo-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        keeper = Keeper(folder)
        try:
            keeper.run(programs, lambda over: print(f"{over.program.name}  {over.seconds:.1f} s", file=sys.stderr, flush=True))
            outcomes = keeper.outcomes(programs)
        finally:
            keeper.close()
        facts = {name: {"steps": outcome.steps, "seconds": outcome.seconds} for name, outcome in outcomes.items()}
        (folder / "outcomes.json").write_text(json.dumps(facts))
        return outcomes


def _options():
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--half", choices=["A", "B", "AB"], default="AB", help="programs from before or after the tuning")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these programs")
    parser.add_argument("--json", type=Path, metavar="F", help="also write everything to this file")
    parser.add_argument("--markdown", type=Path, metavar="F", help="when all programs ran: put the tables into this file")
    parser.add_argument("--check", action="store_true", help="exit 1 when a number is missed")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the recorded runs here")
    parser.add_argument("--replay", type=Path, metavar="DIR", help="judge runs kept there again, without training")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
