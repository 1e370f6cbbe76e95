"""``python -m pilotfish_core.vectors``: write the test vectors anew."""

from pilotfish_core.vectors import PATH, build, dumps

if __name__ == "__main__":
    PATH.write_text(dumps(build()), encoding="utf-8")
