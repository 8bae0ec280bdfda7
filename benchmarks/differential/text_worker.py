"""Reads prototxt with protobuf's C++ parser as Caffe does. Runs under Caffe's Python, see reading.py.

The answer to a text is what ReadProtoFromTextMemory (io.cpp) made of it, as bytes; nothing where it refused.
"""

import ctypes
import os
import struct
import sys

from caffe import _caffe

_STRING = struct.Struct("<QQ16x")  # libstdc++'s std::string: where, length, and room for a short one
_ROOM = 1 << 16  # more than an object of a message takes


class Reader:
    """A C++ message object of one type."""

    def __init__(self, library, protobuf, name):
        mangled = f"{len(name)}{name}"
        self.object = ctypes.create_string_buffer(_ROOM)
        new = getattr(library, f"_ZN5caffe{mangled}C1EPN6google8protobuf5ArenaEb")
        new(ctypes.byref(self.object), None, ctypes.c_bool(False))
        self.clear = getattr(library, f"_ZN5caffe{mangled}5ClearEv")
        self.read = library[
            "_ZN5caffe23ReadProtoFromTextMemoryERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEPN6google8protobuf7MessageE"
        ]
        self.read.restype = ctypes.c_bool
        self.write = protobuf["_ZNK6google8protobuf11MessageLite24SerializePartialAsStringB5cxx11Ev"]

    def __call__(self, text):
        this = ctypes.byref(self.object)
        self.clear(this)
        held = ctypes.create_string_buffer(text, len(text) + 1)
        string = ctypes.create_string_buffer(_STRING.pack(ctypes.addressof(held), len(text)), _STRING.size)
        if not self.read(ctypes.byref(string), this):
            return None
        made = ctypes.create_string_buffer(_STRING.size)
        self.write(ctypes.byref(made), this)
        where, length = _STRING.unpack(made.raw)
        data = ctypes.string_at(where, length)
        if where != ctypes.addressof(made) + 16:
            ctypes.CDLL(None).free(ctypes.c_void_p(where))
        return data


def main():
    """Answers until stdin ends. A question: type and text, each after its length; an answer: the bytes after theirs."""
    with open("/proc/self/maps") as maps:
        path = next(line.split()[-1] for line in maps if "/libprotobuf.so" in line)
    library, protobuf = ctypes.CDLL(_caffe.__file__), ctypes.CDLL(path)
    answers = os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    readers = {}
    while head := sys.stdin.buffer.read(8):
        name_length, length = struct.unpack("<II", head)
        name = sys.stdin.buffer.read(name_length).decode()
        text = sys.stdin.buffer.read(length)
        if name not in readers:
            readers[name] = Reader(library, protobuf, name)
        data = readers[name](text)
        answers.write(struct.pack("<i", -1) if data is None else struct.pack("<i", len(data)) + data)
        answers.flush()


main()
