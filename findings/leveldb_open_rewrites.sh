#!/usr/bin/env bash
# plyvel 1.5.1: opening a database only to read it rewrites its files.
#
# LevelDB has no read-only mode. Each opening replays the log, writes a new MANIFEST and a new CURRENT, renames LOG, and,
# the first time, turns the log into a table (.ldb) and deletes it. After one `get`, no file but LOCK is what it was. A
# data set of Caffe's (backend LEVELDB, Caffe's default) therefore has other checksums after every use, cannot be opened on
# a read-only disk, and can be opened by one process at a time.
#
# What a porter should do: work on a copy; take checksums of the records, not of the files; or convert to LMDB once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "plyvel==1.5.1"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import sys

import plyvel

path = os.path.join(sys.argv[1], "data")


def files() -> dict[str, bytes]:
    return {name: open(os.path.join(path, name), "rb").read() for name in sorted(os.listdir(path))}


with plyvel.DB(path, create_if_missing=True) as db:
    db.put(b"00000000", b"a Datum")
print("plyvel", plyvel.__version__)
for time in ("first", "second"):
    before = files()
    with plyvel.DB(path) as db:
        assert db.get(b"00000000") == b"a Datum"
    after = files()
    same = [name for name in before if after.get(name) == before[name]]
    gone = [name for name in before if name not in after]
    print(f"{time} reading: unchanged {same}, gone {gone}, now {list(after)}")
    assert after["CURRENT"] != before["CURRENT"], "a new MANIFEST is in use"
    assert [name for name in gone if name.startswith("MANIFEST")], "the old one is deleted"
    assert "LOG.old" in after
    with open(os.path.join(path, "LOG.old"), "rb") as file:
        assert file.read() == before["LOG"]
PYTHON
