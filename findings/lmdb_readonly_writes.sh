#!/usr/bin/env bash
# lmdb 1.6.2 (py-lmdb): `readonly=True` writes. Reading a data set of Caffe's creates lock.mdb beside its data.mdb.
#
# The flag is about the data; the reader's table of locks is made all the same. So the folder of a data set that was
# downloaded, checked and shared is no longer the one whose files were listed, and where the folder or the disk is
# read-only, opening fails with a permission error, although nothing was to be written.
#
# What a porter should do: open with `lock=False` as well, if no other process writes to the database. Then nothing is
# created (checked below).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "lmdb==1.6.2"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import sys

import lmdb

path = os.path.join(sys.argv[1], "data")
with lmdb.open(path) as env, env.begin(write=True) as txn:
    txn.put(b"00000000", b"a Datum")
os.remove(os.path.join(path, "lock.mdb"))  # as data sets are often published: data.mdb alone
print("lmdb", lmdb.__version__, "before:", sorted(os.listdir(path)))
for options, files in (({"lock": False}, ["data.mdb"]), ({}, ["data.mdb", "lock.mdb"])):
    with lmdb.open(path, readonly=True, **options) as env, env.begin() as txn:
        assert txn.get(b"00000000") == b"a Datum"
    print(f"after reading with readonly=True, {options}:", sorted(os.listdir(path)))
    assert sorted(os.listdir(path)) == files, options
PYTHON
