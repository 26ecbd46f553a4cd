"""Find addresses that overflow 32 bits: bounds of the 32-bit integers in a kernel's Triton IR.

An offset wraps silently if a stride times an index is computed in 32 bits. For every i32 value of
the IR, this module computes the largest magnitude in one launch, from the launch's integer
arguments and grid. It reports each value beyond 31 bits that is part of an address.
"""

import re

LARGEST = 2**31 - 1
# An i32 that is read from memory is a slot, a position or a count of tokens.
READ = 2**30
LINE = re.compile(r"^\s*%([\w#]+)(?::\d+)? = \"?([\w.]+)\"?(.*?)(?: loc\(.*)?$")
COPIES = ("tt.splat", "tt.expand_dims", "tt.broadcast", "tt.reshape", "tt.trans", "tt.join")


def narrow(ttir: str, integers: dict[str, int], grid: tuple[int, ...]) -> list[str]:
    """The lines of the IR where an address is made of a 32-bit value that may have wrapped."""
    bounds = {name: abs(value) for name, value in integers.items()}
    programs = dict(zip("xyz", [*grid, 1, 1], strict=False))
    wrapped: set[str] = set()
    faults = []
    for line in ttir.splitlines():
        if loop := re.search(r"scf\.for %(\w+) = \S+ to %(\S+) step", line):
            bounds[loop[1]] = bounds.get(loop[2], LARGEST)
        if not (match := LINE.match(line)):
            continue
        name, operation, rest = match.groups()
        operands = re.findall(r"%([\w#]+)", rest)
        if operation == "tt.addptr":
            if operands[1] in wrapped:
                faults.append(line.strip().partition(" loc(")[0])
        elif operation == "tt.load":
            bounds[name] = READ
        elif re.search(r"i(32|64)>?$", rest):
            given = [bounds.get(operand, LARGEST) for operand in operands]
            bound = _bound(operation, rest, given, programs)
            if wrapped.intersection(operands):
                wrapped.add(name)
            if rest.rstrip(">").endswith("i32") and bound > LARGEST:
                wrapped.add(name)
            bounds[name] = bound
    return faults


def _bound(operation: str, rest: str, given: list[int], programs: dict[str, int]) -> int:
    kind = operation.removeprefix("arith.")
    if kind == "constant":
        text = re.search(r"dense<(-?\w+)>|(-?\d+) :|(true|false)", rest)
        return abs(int(text[1] or text[2] or 0, 0)) if text else LARGEST
    if kind == "tt.make_range":
        return int(re.search(r"end = (\d+)", rest)[1])
    if kind == "tt.get_program_id":
        return programs[rest.split()[0]]
    if kind in ("addi", "subi"):
        return sum(given)
    if kind == "muli":
        return given[0] * given[1]
    if kind in ("remsi", "remui", "minsi"):
        return min(given)
    if kind in ("divsi", "divui", "extsi", "extui", *COPIES):
        return given[0]
    if kind in ("maxsi", "select"):
        return max(given[-2:])
    return LARGEST
