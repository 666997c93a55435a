"""summary.py FOLDER STATUS: the counts that the suites of `make contract` left there, as one line of JSON.

Exits with 1 and says `"passed":false` where a suite left none, or one counts a failure, or STATUS, with which the suites ended,
is not 0.
"""

import json
import pathlib
import sys

# Each count, the files that have it, and how those of several databases are taken together.
COUNTS = {
    "routes": (("contract-embedded", "contract-services"), min),
    "schemathesis_failures": (("contract-embedded", "contract-services"), sum),
    "unauthorised_passed": (("reach-embedded", "reach-services"), sum),
    "events": (("webhooks",), sum),
    "events_lost": (("webhooks",), sum),
    "ssrf_tried": (("ssrf",), sum),
    "ssrf_dialled": (("ssrf",), sum),
}
# What must be none of, and what must be something of.
NONE = ("schemathesis_failures", "unauthorised_passed", "events_lost", "ssrf_dialled")


def left(folder, name, count):
    """The count that a suite left; none where it did not end."""
    try:
        return json.loads((folder / f"{name}.json").read_text())[count]
    except (OSError, ValueError, KeyError):
        print(f"contract: {name}.json has no {count}: the suite did not run to its end", file=sys.stderr)
        return None


def main():
    folder, line, passed = pathlib.Path(sys.argv[1]), {}, sys.argv[2] == "0"
    for count, (names, together) in COUNTS.items():
        values = [left(folder, name, count) for name in names]
        line[count] = None if None in values else together(values)
        passed &= line[count] is not None and (line[count] == 0) == (count in NONE)
    if not passed:
        line["passed"] = False
    print(json.dumps(line, separators=(",", ":")))
    return 0 if passed else 1


sys.exit(main())
