"""Names that a file may contain, and that must remain plain names."""

NAMES = {
    "escape": "a\x1b[31mred\x1b[0m",
    "newline": "a\nimport os",
    "carriage return": "a\rb",
    "NUL": "a\0b",
    "bell": "\a",
    "quotes": "a'\"b",
    "triple quotes": '"""+__import__("os").system("x")+"""',
    "right to left": "a\u202eb",
    "a path": "../../etc/passwd",
    "HTML": "<script>alert(1)</script>",
    "a dunder": "__reduce__",
    "a format": "{0.__class__}%s$(x)`y`",
    "long": "x" * 10_000,
    "emoji": "\U0001f600",
    "surrogate": "a\ufffdb",
    "a hash": "#2",
    "spaces": "   ",
}
