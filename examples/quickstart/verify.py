#!/usr/bin/env python3
"""Compares what was written with what was delivered, line by line. Knows nothing of Flumen.

usage: verify.py INPUT_DIR OUTPUT_DIR

Input: every line of every file of INPUT_DIR. Output: the JSON lines below OUTPUT_DIR, each with the
line as `body` and what the plugins found as `headers`. Exits with 0 only if each input line is there
exactly once, byte for byte, in the bucket of its status code.
"""

import collections
import json
import pathlib
import sys


def main(input_dir, output_dir):
    written = collections.Counter()
    for path in sorted(pathlib.Path(input_dir).iterdir()):
        with path.open(encoding="utf-8") as file:
            written.update(line.rstrip("\n") for line in file)

    delivered = collections.Counter()
    versions = collections.Counter()
    misplaced = 0
    files = sorted(path for path in pathlib.Path(output_dir).rglob("*") if path.is_file())
    for path in files:
        with path.open(encoding="utf-8") as file:
            for line in file:
                event = json.loads(line)
                delivered[event["body"]] += 1
                headers = event["headers"]
                versions[headers.get("version", "none")] += 1
                status = event["body"].split('" ', 1)[1].split(" ", 1)[0]
                if headers.get("status") != status or not path.name.startswith(status):
                    misplaced += 1

    lost = sum((written - delivered).values())
    doubled = sum(count - 1 for line, count in delivered.items() if line in written and count > 1)
    foreign = sum(count for line, count in delivered.items() if line not in written)
    print(f"  lines written      {sum(written.values()):>9}   (each different: {len(written) == sum(written.values())})")
    print(f"  lines delivered    {sum(delivered.values()):>9}   in {len(files)} files")
    print(f"  lost               {lost:>9}")
    print(f"  doubled            {doubled:>9}")
    print(f"  never written      {foreign:>9}")
    print(f"  in a wrong bucket  {misplaced:>9}")
    print("  by plugin version  " + ", ".join(f"{name}: {count}" for name, count in sorted(versions.items())))
    holds = sum(written.values()) > 0 and lost + doubled + foreign + misplaced == 0
    print("each line is there exactly once" if holds else "NOT each line is there exactly once")
    return 0 if holds else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
